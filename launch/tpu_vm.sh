#!/usr/bin/env bash
# Trains on a Google Cloud TPU VM: one host, or every host of a pod slice.
#
#   launch/tpu_vm.sh create --name=my-tpu --zone=us-west4-a --accelerator-type=v5litepod-16
#   launch/tpu_vm.sh setup  --name=my-tpu --zone=us-west4-a
#   launch/tpu_vm.sh train  --name=my-tpu --zone=us-west4-a -- \
#       --config=cifar:BaseCNN-2-CC --workdir=gs://my-bucket/runs/cifar
#   launch/tpu_vm.sh logs|status|delete --name=my-tpu --zone=us-west4-a
#
# Commands
#   create   asks for the TPU as a queued resource; leaves one that waits or is there alone, and
#            replaces one that was preempted or failed
#   setup    copies the sources to all workers and installs the pinned packages; does only what
#            is left to do
#   train    ends the earlier run on all workers, then starts one, detached. The flags after --
#            are those of multipath_jax.main and are recorded on this machine: without them the
#            last command runs again, and goes on from the newest checkpoint in its workdir
#   logs     the end of the log; -f follows it
#   status   the queued resource, the TPU, and the run and its last log line on each worker
#   delete   gives the TPU back, after a question
#
# After a preemption: create --wait, setup, train.
#
# Option                    Variable       Default             Of       Meaning
# --name=NAME               TPU_NAME       (needed)            all      queued resource and TPU VM
# --zone=ZONE               TPU_ZONE       (needed)            all      such as us-west4-a
# --project=ID              TPU_PROJECT    gcloud's            all      the project that pays
# --accelerator-type=TYPE   TPU_TYPE       v5litepod-8         create   v5litepod-16: 16 v5e chips
# --runtime-version=NAME    TPU_RUNTIME    v2-alpha-tpuv5-lite create   the VM's image
# --capacity=spot|on-demand TPU_CAPACITY   spot                create   spot is cheap and preempted
# --wait                                                       create   until the TPU is there
# --repo=URL                TPU_REPO       (HEAD, from here)   setup    clone this instead
# --ref=REF                 TPU_REF        (needed with repo)  setup    its commit, tag or branch
# --python=3.N              TPU_PYTHON     3.11                setup    3.11 or newer
# --grace=SECONDS           TPU_GRACE      120                 train    for a checkpoint before kill
# --worker=N                TPU_WORKER     0                   logs     whose log
# --lines=N                                200                 logs     how much of it
# -f                                                           logs     follow it
# --yes                                                        delete   do not ask
# --dry-run                                                    all      print the commands, run none
# --help                                                                this text
#
# Exit status: 0 done; 1 something failed; 2 wrong use; else gcloud's.
# Needs bash 4.4, git and the Google Cloud CLI. The record of commands is in
# $XDG_STATE_HOME/multipath_jax (by default ~/.local/state/multipath_jax).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REMOTE=multipath_jax_tpu # a folder in the user's home on each worker
POLL_SECONDS=${TPU_POLL_SECONDS:-30}

name=${TPU_NAME-}
zone=${TPU_ZONE-}
project=${TPU_PROJECT-}
accelerator=${TPU_TYPE:-v5litepod-8}
runtime=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
capacity=${TPU_CAPACITY:-spot}
repo=${TPU_REPO-}
ref=${TPU_REF-}
python=${TPU_PYTHON:-3.11}
grace=${TPU_GRACE:-120}
worker=${TPU_WORKER:-0}
lines=200
follow=
wait=
yes=
dry_run=
run_flags=()
place=() # --zone and --project, for every gcloud command

misuse() {
  echo "error: $1" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 1
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

# --- commands: printed or run ----------------------------------------------------------------

# The words as a line that a shell reads back as the same words.
quote() {
  local word line="" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"$escaped"}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if [[ $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# On the workers named by the first argument (a number, or all): tpu_worker.sh with the others.
on_workers() {
  local who=$1
  shift
  remote "$who" "bash $REMOTE/tpu_worker.sh $(quote "$@")"
}

remote() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

describe() { # queued-resources or tpu-vm, and the field that holds its state
  run gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="value($2)"
}

# Prints the state by describe; nothing if there is no such thing. Other errors are the user's.
state_of() {
  local answer status=0
  answer=$(describe "$@" 2>&1) || status=$?
  if ((status == 0)); then
    echo "$answer"
  elif [[ $answer != *NOT_FOUND* ]]; then
    echo "$answer" >&2
    return "$status"
  fi
}

# --- create, delete --------------------------------------------------------------------------

create() {
  local state="" flags=()
  if [[ $dry_run ]]; then
    describe queued-resources state.state
  else
    state=$(state_of queued-resources state.state)
  fi
  case $state in
    "") ;;
    FAILED | SUSPENDED)
      echo "the queued resource $name is $state; asking anew"
      delete_queued
      ;;
    SUSPENDING | DELETING) fail "the queued resource $name is $state; create it again after that" ;;
    *)
      echo "the queued resource $name is there: $state"
      wait_until_active
      return
      ;;
  esac
  [[ $capacity != spot ]] || flags=(--spot)
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${flags[@]}"
  wait_until_active
}

wait_until_active() {
  local state=""
  [[ $wait ]] || return 0
  if [[ $dry_run ]]; then
    describe queued-resources state.state
    return
  fi
  while state=$(state_of queued-resources state.state); do
    echo "$(date +%H:%M:%S) ${state:-NOT_FOUND}"
    case $state in
      ACTIVE) return ;;
      "" | FAILED | SUSPENDED | SUSPENDING | DELETING) fail "the queued resource is ${state:-gone}" ;;
    esac
    sleep "$POLL_SECONDS"
  done
  fail "the queued resource's state cannot be read"
}

delete_queued() {
  # --force deletes the TPU as well; --quiet, as whoever is here was asked before.
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

delete() {
  local answer=""
  if [[ ! $yes && ! $dry_run ]]; then
    read -r -p "Delete the TPU $name in $zone and all that is on it? [y/N] " answer || true
    [[ $answer == [yY] || $answer == [yY]es ]] || fail "nothing was deleted"
  fi
  delete_queued
}

# --- setup -----------------------------------------------------------------------------------

setup() {
  local archive=$state_folder/source.tar.gz files=("$ROOT/launch/tpu_worker.sh")
  if [[ ! $repo ]]; then
    run mkdir -p "$state_folder"
    run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
    warn_of_changes
    files+=("$archive")
  fi
  remote all "mkdir -p $REMOTE"
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:$REMOTE/" "${place[@]}" --worker=all
  if [[ $repo ]]; then
    on_workers all setup "$repo" "$ref" "$python"
  else
    on_workers all setup archive "$python"
  fi
}

warn_of_changes() {
  local query=(git -C "$ROOT" status --porcelain)
  if [[ $dry_run ]]; then
    run "${query[@]}"
  elif [[ $("${query[@]}") ]]; then
    echo "warning: there are changes that are not committed; HEAD goes to the workers" >&2
  fi
}

# --- train, logs, status ---------------------------------------------------------------------

train() {
  local flag record=$state_folder/flags
  if ((${#run_flags[@]})); then
    check_run_flags
    record_flags "$record"
  else
    [[ -f $record ]] || misuse "no earlier run of $name is recorded: train -- --config=... --workdir=..."
    while IFS= read -r -d '' flag; do run_flags+=("$flag"); done <"$record"
    echo "again: $(quote "${run_flags[@]}")"
  fi
  # First on all, then on any: a worker that starts beside a stale one waits for it in vain.
  on_workers all stop "$grace"
  on_workers all start "${run_flags[@]}"
}

check_run_flags() {
  local flag config="" workdir="" distributed=""
  for flag in "${run_flags[@]}"; do
    case $flag in
      --config=?*) config=$flag ;;
      --workdir=?*) workdir=${flag#*=} ;;
      --distributed=*) distributed=$flag ;;
    esac
  done
  [[ $config ]] || misuse "the run's flags need --config=..."
  [[ $workdir ]] || misuse "the run's flags need --workdir=gs://..."
  [[ $workdir == gs://* ]] ||
    echo "warning: $workdir is lost with the TPU VM, and its workers do not share it" >&2
  [[ $distributed ]] || run_flags+=(--distributed=auto)
}

record_flags() {
  if [[ $dry_run ]]; then
    echo "# records the flags in $1"
    return
  fi
  mkdir -p "$state_folder"
  printf '%s\0' "${run_flags[@]}" >"$1"
}

logs() { on_workers "$worker" logs "$lines" ${follow:+-f}; }

status() {
  local queued node
  if [[ $dry_run ]]; then
    describe queued-resources state.state
    describe tpu-vm state
    on_workers all status
    return
  fi
  queued=$(state_of queued-resources state.state)
  node=$(state_of tpu-vm state)
  echo "queued resource $name: ${queued:-none}"
  echo "TPU VM $name: ${node:-none}"
  if [[ $node == READY ]]; then
    on_workers all status
  elif [[ $queued == SUSPENDED ]]; then
    echo "preempted: create --wait, setup and train go on with the run"
  fi
}

# --- the command line ------------------------------------------------------------------------

# An option of one command is an error beside another.
only_for() { [[ $command == "$1" ]] || misuse "$2 is an option of $1, not of $command"; }

read_options() {
  local value
  while (($#)); do
    value=${1#*=}
    case $1 in
      --name=*) name=$value ;;
      --zone=*) zone=$value ;;
      --project=*) project=$value ;;
      --dry-run) dry_run=1 ;;
      --accelerator-type=*) only_for create "${1%%=*}" && accelerator=$value ;;
      --runtime-version=*) only_for create "${1%%=*}" && runtime=$value ;;
      --capacity=*) only_for create "${1%%=*}" && capacity=$value ;;
      --wait) only_for create "$1" && wait=1 ;;
      --repo=*) only_for setup "${1%%=*}" && repo=$value ;;
      --ref=*) only_for setup "${1%%=*}" && ref=$value ;;
      --python=*) only_for setup "${1%%=*}" && python=$value ;;
      --grace=*) only_for train "${1%%=*}" && grace=$value ;;
      --worker=*) only_for logs "${1%%=*}" && worker=$value ;;
      --lines=*) only_for logs "${1%%=*}" && lines=$value ;;
      -f) only_for logs "$1" && follow=1 ;;
      --yes) only_for delete "$1" && yes=1 ;;
      --help | -h)
        usage
        exit
        ;;
      --)
        only_for train "what follows --"
        (($# > 1)) || misuse "there are no flags after --"
        run_flags=("${@:2}")
        return
        ;;
      *) misuse "what is '$1'? --help lists the options" ;;
    esac
    shift
  done
}

check_options() {
  local name_rule='^[a-z]([-a-z0-9]*[a-z0-9])?$' type_rule='^v[0-9][a-z0-9]*-[0-9]+$'
  [[ $name ]] || misuse "which TPU? --name=... or TPU_NAME"
  [[ $zone ]] || misuse "in which zone? --zone=... or TPU_ZONE"
  [[ $name =~ $name_rule ]] || misuse "--name=$name: lower-case letters, digits and hyphens"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || misuse "--zone=$zone is not like us-west4-a"
  [[ $project =~ ^[-a-z0-9:.]*$ ]] || misuse "--project=$project is not a project's id"
  [[ $accelerator =~ $type_rule ]] || misuse "--accelerator-type=$accelerator is not like v5litepod-16"
  [[ $runtime =~ ^[-a-z0-9.]+$ ]] || misuse "--runtime-version=$runtime is not like v2-alpha-tpuv5-lite"
  [[ $capacity == spot || $capacity == on-demand ]] || misuse "--capacity=$capacity: spot or on-demand"
  [[ $python =~ ^3\.(1[1-9]|[2-9][0-9])$ ]] || misuse "--python=$python: 3.11 or newer"
  [[ $grace =~ ^[0-9]+$ ]] || misuse "--grace=$grace: a number of seconds"
  [[ $worker =~ ^[0-9]+$ ]] || misuse "--worker=$worker: a number from 0"
  [[ $lines =~ ^[0-9]+$ ]] || misuse "--lines=$lines: a number"
  [[ ! $repo || $ref ]] || misuse "--repo needs --ref=REF, a commit, tag or branch"
  [[ $repo || ! $ref ]] || misuse "--ref needs --repo=URL"
  # Words that begin with a hyphen are options to git.
  [[ $repo != -* && $ref != -* ]] || misuse "--repo=$repo --ref=$ref: neither begins with a hyphen"
}

main() {
  command=${1-}
  case $command in
    create | setup | train | logs | status | delete) shift ;;
    --help | -h | help)
      usage
      return
      ;;
    "") misuse "which command? create, setup, train, logs, status or delete" ;;
    *) misuse "what is '$command'? create, setup, train, logs, status or delete" ;;
  esac
  read_options "$@"
  check_options
  [[ $dry_run ]] || command -v gcloud >/dev/null || misuse "gcloud is not installed"
  place=(--zone="$zone")
  [[ ! $project ]] || place+=(--project="$project")
  state_folder=${XDG_STATE_HOME:-$HOME/.local/state}/multipath_jax/tpu/${project:-default}.$zone.$name
  "$command"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || misuse "bash 4.4 or newer is needed"
main "$@"
