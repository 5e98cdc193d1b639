#!/usr/bin/env bash
# Trains on Google Cloud TPU VMs: one host, all hosts of a slice, or several slices.
#
#   launch/tpu_vm.sh keep --name=my-tpu --zone=us-west4-a --accelerator-type=v5litepod-16 \
#       --max-hours=24 -- --config=cifar:BaseCNN-2-CC --workdir=gs://my-bucket/runs/cifar
#
# or step by step, with the same --name and --zone:
#
#   launch/tpu_vm.sh create --accelerator-type=v5litepod-16 --wait ...
#   launch/tpu_vm.sh setup ...
#   launch/tpu_vm.sh train ... -- --config=cifar:BaseCNN-2-CC --workdir=gs://my-bucket/runs/cifar
#   launch/tpu_vm.sh logs|status|stop|delete ...
#
# Commands
#   keep     create --wait, setup and train, repeated after every preemption. Deletes the TPU when
#            the run has ended, has failed more than --retries times, or after --max-hours. Ctrl-C
#            leaves the TPU and the run unchanged; rerun keep to resume
#   create   requests the TPU as a queued resource; keeps one that is waiting or ready, and replaces
#            one that was preempted or has failed
#   setup    copies the sources to all workers and installs the pinned packages, if necessary
#   train    ends the previous run on all workers and starts one in the background. The flags after
#            -- are those of multipath_jax.main. They are recorded on this machine: without them,
#            the previous command is rerun, and resumes from the newest checkpoint in its workdir
#   stop     saves a checkpoint and ends the run on all workers
#   logs     prints the end of the log; -f follows it
#   status   prints the queued resource, the TPU, and the run with its last log line on each worker
#   outcome  prints the outcome of the run: running, ended STATUS, or none
#   delete   deletes the TPU, after a confirmation
#
# Option                     Variable         Default           Of      Meaning
# --name=NAME                TPU_NAME         (needed)          all     queued resource and TPU VM
# --zone=ZONE                TPU_ZONE         (needed)          all     such as us-west4-a
# --project=ID               TPU_PROJECT      gcloud's          all     the project to bill
# --node-count=N             TPU_NODE_COUNT   1                 all     slices, NAME-0 to NAME-(N-1)
# --ssh-flag=FLAG            TPU_SSH_FLAGS                      all     additional flag for gcloud ssh
#                                                                       and scp, as --internal-ip
# --release-track=ga|alpha   TPU_TRACK        ga                all     alpha: gcloud alpha ...
# --accelerator-type=TYPE    TPU_TYPE         v5litepod-8       create  v5litepod-16: 16 v5e chips
# --runtime-version=NAME     TPU_RUNTIME      by the type       create  the image of the VM
# --capacity=KIND            TPU_CAPACITY     spot              create  spot (cheap, preemptible),
#                                                                       on-demand or reserved
# --valid-until-duration=D   TPU_VALID_UNTIL                    create  longest wait, such as 6h
# --create-flag=FLAG         TPU_CREATE_FLAGS                   create  additional flag for gcloud,
#                                                                       as --network=NAME
# --wait                                                        create  wait until the TPU is ready
# --repo=URL                 TPU_REPO         (local HEAD)      setup   clone this repository
# --ref=REF                  TPU_REF          (needed with repo) setup  its commit, tag or branch
# --python=3.N               TPU_PYTHON       3.11              setup   3.11 or newer
# --grace=SECONDS            TPU_GRACE        120               train   time to save a checkpoint
# --max-hours=H              TPU_MAX_HOURS    (needed)          keep    delete the TPU after H hours
# --retries=N                TPU_RETRIES      3                 keep    retries after failures
# --worker=N                 TPU_WORKER       0                 logs    the worker
# --lines=N                                   200               logs    number of lines
# -f                                                            logs    follow the log
# --yes                                                         delete  do not ask
# --dry-run                                                     all     print commands only
# --help                                                                print this text
#
# keep also has the options of create, setup and train; stop also has --grace. Repeat --ssh-flag and
# --create-flag for several flags; in their variables, separate the flags by spaces.
# Exit status: 0 success; 1 failure; 2 wrong usage; of keep, that of the run; else that of gcloud.
# Needs bash 4.4, git and the Google Cloud CLI. Commands are recorded in
# $XDG_STATE_HOME/multipath_jax (by default ~/.local/state/multipath_jax).
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

REMOTE=multipath_jax_tpu # a folder in the user's home on each worker
POLL_SECONDS=${TPU_POLL_SECONDS:-30}
POLLS=20 # consecutive polls that may fail

name=${TPU_NAME-}
zone=${TPU_ZONE-}
project=${TPU_PROJECT-}
node_count=${TPU_NODE_COUNT:-1}
track=${TPU_TRACK:-ga}
accelerator=${TPU_TYPE:-v5litepod-8}
runtime=${TPU_RUNTIME-}
capacity=${TPU_CAPACITY:-spot}
valid_until=${TPU_VALID_UNTIL-}
repo=${TPU_REPO-}
ref=${TPU_REF-}
python=${TPU_PYTHON:-3.11}
grace=${TPU_GRACE:-120}
max_hours=${TPU_MAX_HOURS-}
retries=${TPU_RETRIES:-3}
worker=${TPU_WORKER:-0}
read -r -a ssh_flags <<<"${TPU_SSH_FLAGS-}"
read -r -a create_flags <<<"${TPU_CREATE_FLAGS-}"
lines=200
follow=
wait=
yes=
run_flags=()
place=()   # --zone and --project, for every gcloud command
nodes=()   # the names of the TPU VMs
own=()     # the given options of all commands
setup_own=() # the given options of setup
gcloud=()
costs=     # if not empty, a TPU is billed after the script ends

# --- state -----------------------------------------------------------------------------------

describe() { # arguments: queued-resources or tpu-vm, a name, and the fields to print
  run "${gcloud[@]}" "$1" describe "$2" "${place[@]}" --format="value($3)"
}

# Prints the fields by describe; nothing if the resource does not exist. Other errors are printed.
ask() {
  local errors status=0
  { errors=$(describe "$@" 2>&1 >&3) || status=$?; } 3>&1
  ((status == 0)) || [[ $errors == *NOT_FOUND* || $errors == *"/$2' was not found"* ]] || {
    echo "$errors" >&2
    return "$status"
  }
}

# Sets `queued`, the state of the queued resource; `why`, a message about it; and `what`: none,
# queued, ready, lost (to be requested again), leaving, or stuck.
look() {
  local answer
  answer=$(ask queued-resources "$name" state.state,state.failedData.error.message) || return
  IFS=$'\t' read -r queued why <<<"$answer"
  case $queued in
    "") what=none ;;
    ACTIVE) look_at_nodes || return ;;
    FAILED | SUSPENDED) what=lost ;;
    SUSPENDING | DELETING) what=leaving ;;
    *) what=queued ;;
  esac
}

# A queued resource stays ACTIVE for a while after its TPU VM was preempted.
look_at_nodes() {
  local node state
  what=ready
  for node in "${nodes[@]}"; do
    state=$(ask tpu-vm "$node" state) || return
    [[ $state != READY ]] || continue
    why="the TPU VM $node is ${state:-gone}"
    case $state in
      "" | PREEMPTED | TERMINATED) what=lost ;;
      STOPPING | STOPPED | HIDING | HIDDEN | DELETING | UNKNOWN) what=stuck ;;
      *) what=queued ;;
    esac
    return 0
  done
}

# As above, but tolerates some network failures.
look_patiently() {
  local failures=0
  until look; do
    ((++failures < POLLS)) || fail "the state of $name cannot be read"
    sleep "$POLL_SECONDS"
  done
}

describe_all() { # for dry runs
  local node
  describe queued-resources "$name" state.state,state.failedData.error.message
  for node in "${nodes[@]}"; do describe tpu-vm "$node" state; done
}

say_state() { echo "$(date +%H:%M:%S) ${queued:-NOT_FOUND}${why:+: $why}"; }

# --- the workers -----------------------------------------------------------------------------

# Calls a function for all nodes in parallel; returns the last status that is not 0.
each_node() {
  local node pid pids=() status=0
  if [[ $dry_run ]] || ((node_count == 1)); then
    for node in "${nodes[@]}"; do "$1" "$node" "${@:2}"; done
    return
  fi
  for node in "${nodes[@]}"; do
    "$1" "$node" "${@:2}" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

on_node() { # arguments: a node, the number of a worker or all, and a command
  run "${gcloud[@]}" tpu-vm ssh "$1" "${place[@]}" --worker="$2" "${ssh_flags[@]}" --command="$3"
}

copy_to() { # arguments: a node, and files
  run "${gcloud[@]}" tpu-vm scp "${@:2}" "$1:$REMOTE/" "${place[@]}" --worker=all \
    "${ssh_flags[@]/#--ssh-flag=/--scp-flag=}"
}

worker_command() { echo "bash $REMOTE/tpu_worker.sh $(quote "$@")"; }

on_all() { each_node on_node all "$(worker_command "$@")"; }

on_one() { on_node "${nodes[0]}" "$1" "$(worker_command "${@:2}")"; }

# --- create, delete --------------------------------------------------------------------------

create() {
  if [[ $dry_run ]]; then
    describe queued-resources "$name" state.state,state.failedData.error.message
    ask_for_tpu
    [[ ! $wait ]] || describe_all
    return
  fi
  look
  [[ $what != leaving || $wait ]] || fail "the queued resource $name is $queued; create it after that"
  make_or_leave
  [[ $wait ]] || return 0
  guard
  wait_while_queued
  [[ $what == ready ]] || fail "the queued resource is ${queued:-gone}${why:+: $why}"
  costs=
}

# Requests the TPU, unless it exists or is requested already.
make_or_leave() {
  while [[ $what == leaving ]]; do
    say_state
    sleep "$POLL_SECONDS"
    look_patiently
  done
  case $what in
    none) ask_for_tpu ;;
    lost)
      echo "the queued resource $name is $queued${why:+: $why}; asking anew"
      delete_queued
      ask_for_tpu
      ;;
    stuck) fail "$why: start it, or delete it" ;;
    *) echo "the queued resource $name is there: $queued${why:+, $why}" ;;
  esac
}

ask_for_tpu() {
  local flags=("${nodes[@]/#/--node-id=}")
  ((node_count == 1)) || flags=(--node-count="$node_count")
  run "${gcloud[@]}" queued-resources create "$name" "${flags[@]}" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${create_flags[@]}"
}

wait_while_queued() {
  costs=1
  look_patiently
  say_state
  while [[ $what == queued ]]; do
    sleep "$POLL_SECONDS"
    look_patiently
    say_state
  done
  [[ $what == ready ]] || costs=
}

delete_queued() {
  # --force also deletes the TPU; --quiet, since the user has confirmed already.
  run "${gcloud[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
}

delete() {
  local answer=""
  if [[ ! $yes && ! $dry_run ]]; then
    read -r -p "Delete the TPU $name in $zone and all that is on it? [y/N] " answer || true
    [[ $answer == [yY] || $answer == [yY]es ]] || fail "nothing was deleted"
  fi
  delete_queued
}

# Warns at exit, while waiting, that a TPU may still be billed.
guard() {
  trap say_cost EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

# shellcheck disable=SC2317,SC2329 # called by a trap
say_cost() {
  [[ ! $costs ]] || echo "the request for $name stays, and a TPU that is there costs; to end that:" \
    "$(quote "$0" delete --name="$name" --zone="$zone" ${project:+--project="$project"})" >&2
}

# --- setup -----------------------------------------------------------------------------------

setup() {
  local archive=$state_folder/source.tar.gz files=("$ROOT/launch/tpu_worker.sh")
  check_ssh_agent
  if [[ ! $repo ]]; then
    run mkdir -p "$state_folder"
    run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
    warn_of_changes
    files+=("$archive")
  fi
  each_node on_node all "mkdir -p $REMOTE"
  each_node copy_to "${files[@]}"
  if [[ $repo ]]; then
    on_all setup "$repo" "$ref" "$python"
  else
    on_all setup archive "$python"
  fi
}

# gcloud needs a key in an SSH agent to connect to several workers; without one it hangs.
check_ssh_agent() {
  local workers
  if [[ $dry_run ]]; then
    describe tpu-vm "${nodes[0]}" "networkEndpoints.len()"
    run ssh-add -l
    return
  fi
  workers=$(ask tpu-vm "${nodes[0]}" "networkEndpoints.len()")
  ((${workers:-0} * node_count > 1)) || return 0
  # shellcheck disable=SC2016 # for the user's shell
  ssh-add -l >/dev/null 2>&1 || fail 'no agent holds an SSH key, which several workers need:'\
' eval "$(ssh-agent)" && ssh-add ~/.ssh/google_compute_engine'
}

warn_of_changes() {
  local query=(git -C "$ROOT" status --porcelain)
  if [[ $dry_run ]]; then
    run "${query[@]}"
  elif [[ $("${query[@]}") ]]; then
    echo "warning: there are changes that are not committed; HEAD goes to the workers" >&2
  fi
}

# --- train, stop, logs, status ---------------------------------------------------------------

train() {
  find_run_flags
  start_run
}

start_run() {
  # Ends the run on all workers before starting: a new worker would wait for a stale one forever.
  on_all stop "$grace"
  on_all start "${run_flags[@]}"
}

find_run_flags() {
  local flag record=$state_folder/flags
  if ((${#run_flags[@]})); then
    check_run_flags
    record_flags "$record"
  else
    [[ -f $record ]] || misuse "no earlier run of $name is recorded: train -- --config=... --workdir=..."
    while IFS= read -r -d '' flag; do run_flags+=("$flag"); done <"$record"
    echo "again: $(quote "${run_flags[@]}")"
  fi
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
  [[ $workdir == gs://* || $command != keep ]] || misuse "keep needs --workdir=gs://...: TPUs come and go"
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

stop() { on_all stop "$grace"; }

logs() { on_one "$worker" logs "$lines" ${follow:+-f}; }

outcome() { on_one 0 outcome; }

status() {
  if [[ $dry_run ]]; then
    describe_all
    on_all status
    return
  fi
  look
  echo "queued resource $name: ${queued:-none}${why:+, $why}"
  case $what in
    ready) on_all status ;;
    lost) echo "create --wait, setup and train go on with the run, as keep does by itself" ;;
  esac
}

# --- keep ------------------------------------------------------------------------------------

keep() {
  local failures=0 result=""
  find_run_flags
  if [[ $dry_run ]]; then
    wait=1
    create
    setup
    start_run
    outcome
    delete_queued
    return
  fi
  POLLS=1000000 # keep polling even if the network fails for a night
  held=0        # seconds for which the TPU existed, up to `since`
  limit=$(awk -v hours="$max_hours" 'BEGIN { print int(3600 * hours) }')
  guard
  while [[ ! $result ]]; do
    look_patiently
    make_or_leave
    wait_while_queued
    since=$SECONDS
    if [[ $what == ready ]]; then
      use_tpu
    else
      # A TPU that is preempted immediately is requested again; one that is not available, some times.
      result=lost
      [[ $queued != FAILED ]] || result=1
    fi
    held=$((held + SECONDS - since))
    case $result in
      lost | 143) result="" ;; # 143: SIGTERM, which is also sent when a machine shuts down
      0 | limit) ;;
      *) ((++failures > retries)) || again ;;
    esac
    ((held < limit)) || result=${result:-limit}
  done
  give_back
}

again() {
  echo "keep: failed with status $result; attempt $((failures + 1)) of $((retries + 1))"
  result=""
}

# Trains on a TPU that is ready; sets `result` to lost, limit, or a status.
use_tpu() {
  result=0
  step setup "${setup_own[@]}" || result=$?
  [[ $result != 0 ]] || step train --grace="$grace" || result=$?
  [[ $result != 0 ]] || result=""
  while :; do
    look_patiently
    if [[ $what != ready ]]; then
      say_state
      result=lost
    elif (($(left) <= 0)); then
      result=limit
    elif [[ ! $result ]]; then
      sleep "$POLL_SECONDS"
      result=$(ask_outcome)
      [[ $result == @(|0) ]] || sleep "$POLL_SECONDS" # a preemption is reported after its effects
      continue
    fi
    return 0
  done
}

# Prints the exit status of the run; nothing while it is running or if the host does not answer.
ask_outcome() {
  local answer
  answer=$(step outcome 2>/dev/null) || return 0
  case ${answer##*$'\n'} in
    "ended "*) echo "${answer##* }" ;;
    none) echo 1 ;; # killed, or its host was restarted
  esac
}

left() { echo $((limit - held - SECONDS + since)); }

# Runs a command of this script with the remaining hours as its time limit.
step() {
  local seconds
  seconds=$(left)
  ((seconds > 0)) || return 1
  timeout --foreground "$seconds" "$0" "$1" "${own[@]}" "${@:2}"
}

give_back() {
  case $result in
    0) echo "keep: the run has ended" ;;
    limit)
      echo "keep: the $max_hours hours are over; keep with more of them goes on with the run"
      on_all stop "$grace" || true
      result=1
      ;;
    *)
      echo "keep: failed with status $result${why:+: $why}"
      [[ $what != ready ]] || on_one 0 logs 50 || true
      ;;
  esac
  delete_queued
  costs=
  return "$result"
}

# --- the command line ------------------------------------------------------------------------

# Rejects options of other commands.
only_for() {
  [[ " $1 " == *" $command "* ]] || misuse "$2 is an option of ${1%% *}, not of $command"
}

read_options() {
  local value
  while (($#)); do
    value=${1#*=}
    case $1 in
      --name=* | --zone=* | --project=* | --node-count=* | --ssh-flag=* | --release-track=*) own+=("$1") ;;
      --repo=* | --ref=* | --python=*) only_for "setup keep" "${1%%=*}" && setup_own+=("$1") ;;
      --accelerator-type=* | --runtime-version=* | --capacity=* | --valid-until-duration=* | \
        --create-flag=*) only_for "create keep" "${1%%=*}" ;;
      --max-hours=* | --retries=*) only_for keep "${1%%=*}" ;;
      --grace=*) only_for "train stop keep" "${1%%=*}" ;;
      --worker=* | --lines=*) only_for logs "${1%%=*}" ;;
    esac
    case $1 in
      --name=*) name=$value ;;
      --zone=*) zone=$value ;;
      --project=*) project=$value ;;
      --node-count=*) node_count=$value ;;
      --ssh-flag=*) ssh_flags+=("$value") ;;
      --release-track=*) track=$value ;;
      --dry-run) dry_run=1 ;;
      --accelerator-type=*) accelerator=$value ;;
      --runtime-version=*) runtime=$value ;;
      --capacity=*) capacity=$value ;;
      --valid-until-duration=*) valid_until=$value ;;
      --create-flag=*) create_flags+=("$value") ;;
      --wait) only_for create "$1" && wait=1 ;;
      --repo=*) repo=$value ;;
      --ref=*) ref=$value ;;
      --python=*) python=$value ;;
      --grace=*) grace=$value ;;
      --max-hours=*) max_hours=$value ;;
      --retries=*) retries=$value ;;
      --worker=*) worker=$value ;;
      --lines=*) lines=$value ;;
      -f) only_for logs "$1" && follow=1 ;;
      --yes) only_for delete "$1" && yes=1 ;;
      --help | -h)
        usage
        exit
        ;;
      --)
        only_for "train keep" "what follows --"
        (($# > 1)) || misuse "there are no flags after --"
        run_flags=("${@:2}")
        return
        ;;
      *) misuse "unknown argument '$1': --help lists the options" ;;
    esac
    shift
  done
}

check_options() {
  local name_rule='^[a-z]([-a-z0-9]*[a-z0-9])?$' zone_rule='^[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]$'
  [[ $name ]] || misuse "which TPU? --name=... or TPU_NAME"
  [[ $zone ]] || misuse "in which zone? --zone=... or TPU_ZONE"
  [[ $name =~ $name_rule ]] || misuse "--name=$name: lower-case letters, digits and hyphens"
  [[ $zone =~ $zone_rule ]] || misuse "--zone=$zone is not like us-west4-a or us-central1-ai1a"
  [[ $project =~ ^[-a-z0-9:.]*$ ]] || misuse "--project=$project is not a project's id"
  positive "--node-count=$node_count"
  [[ $track == ga || $track == alpha ]] || misuse "--release-track=$track: ga or alpha"
  check_flags --ssh-flag "${ssh_flags[@]}"
  check_flags --create-flag "${create_flags[@]}"
  [[ $capacity == @(spot|on-demand|reserved) ]] || misuse "--capacity=$capacity: spot, on-demand or reserved"
  [[ $valid_until =~ ^([0-9]+[smhdw])*$ ]] || misuse "--valid-until-duration=$valid_until is not like 6h"
  [[ $python =~ ^3\.(1[1-9]|[2-9][0-9])$ ]] || misuse "--python=$python: 3.11 or newer"
  [[ $grace =~ ^[0-9]+$ ]] || misuse "--grace=$grace: a number of seconds"
  [[ $retries =~ ^[0-9]+$ ]] || misuse "--retries=$retries: a number"
  [[ $worker =~ ^[0-9]+$ ]] || misuse "--worker=$worker: a number from 0"
  [[ $lines =~ ^[0-9]+$ ]] || misuse "--lines=$lines: a number"
  [[ ! $repo || $ref ]] || misuse "--repo needs --ref=REF, a commit, tag or branch"
  [[ $repo || ! $ref ]] || misuse "--ref needs --repo=URL"
  # git treats words that begin with a hyphen as options.
  [[ $repo != -* && $ref != -* ]] || misuse "--repo=$repo --ref=$ref: neither begins with a hyphen"
  [[ $command != @(create|keep) ]] || check_type
  [[ $command != keep || $max_hours =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
    misuse "how many hours may the TPU be there? --max-hours=${max_hours:-H}"
}

check_flags() { # arguments: the option and its values
  local flag
  for flag in "${@:2}"; do
    [[ $flag == --?* ]] || misuse "$1=$flag: a flag of gcloud's, $1=--NAME=VALUE"
  done
}

check_type() {
  [[ $accelerator != v5e-* ]] || misuse "--accelerator-type=$accelerator is named v5litepod-${accelerator#*-}"
  [[ $accelerator =~ ^[a-z0-9]+-[0-9]+$ ]] || misuse "--accelerator-type=$accelerator is not like v5litepod-16"
  [[ $runtime ]] || case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) misuse "which image does a $accelerator take? --runtime-version=..." ;;
  esac
  [[ $runtime =~ ^[-a-z0-9.]+$ ]] || misuse "--runtime-version=$runtime is not like v2-alpha-tpuv5-lite"
}

# Evaluates the options.
derive() {
  local i
  place=(--zone="$zone")
  [[ ! $project ]] || place+=(--project="$project")
  gcloud=(gcloud compute tpus)
  [[ $track == ga ]] || gcloud=(gcloud "$track" compute tpus)
  nodes=("$name")
  ((node_count == 1)) || for ((i = 0; i < node_count; i++)); do nodes[i]=$name-$i; done
  case $capacity in
    spot) create_flags=(--spot "${create_flags[@]}") ;;
    reserved) create_flags=(--reserved "${create_flags[@]}") ;;
  esac
  [[ ! $valid_until ]] || create_flags+=(--valid-until-duration="$valid_until")
  state_folder=${XDG_STATE_HOME:-$HOME/.local/state}/multipath_jax/tpu/${project:-default}.$zone.$name
}

main() {
  command=${1-}
  case $command in
    keep | create | setup | train | stop | logs | status | outcome | delete) shift ;;
    --help | -h | help)
      usage
      return
      ;;
    "") misuse "which command? keep, create, setup, train, stop, logs, status, outcome or delete" ;;
    *) misuse "unknown argument '$command': keep, create, setup, train, stop, logs, status, outcome or delete" ;;
  esac
  read_options "$@"
  check_options
  [[ $dry_run ]] || command -v gcloud >/dev/null || misuse "gcloud is not installed"
  derive
  "$command"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || misuse "bash 4.4 or newer is needed"
main "$@"
