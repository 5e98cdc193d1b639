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
# Option                     Variable         Default           Command Meaning
# --name=NAME                TPU_NAME         (required)        all     queued resource and TPU VM
# --zone=ZONE                TPU_ZONE         (required)        all     such as us-west4-a
# --project=ID               TPU_PROJECT      (gcloud's)        all     the project to bill
# --node-count=N             TPU_NODE_COUNT   1                 all     slices, NAME-0 to NAME-(N-1)
# --ssh-flag=FLAG            TPU_SSH_FLAGS                      all     additional flag for gcloud ssh
#                                                                       and scp, e.g. --internal-ip
# --release-track=ga|alpha   TPU_TRACK        ga                all     alpha: gcloud alpha ...
# --accelerator-type=TYPE    TPU_TYPE         v5litepod-8       create  v5litepod-16: 16 v5e chips
# --runtime-version=NAME     TPU_RUNTIME      (from the type)   create  the image of the VM
# --capacity=KIND            TPU_CAPACITY     spot              create  spot (cheap, preemptible),
#                                                                       on-demand or reserved
# --valid-until-duration=D   TPU_VALID_UNTIL                    create  longest wait, such as 6h
# --create-flag=FLAG         TPU_CREATE_FLAGS                   create  additional flag for gcloud,
#                                                                       e.g. --network=NAME
# --wait                                                        create  wait until the TPU is ready
# --repo=URL                 TPU_REPO         (local HEAD)      setup   clone this repository; --ref
#                                                                       is required
# --ref=REF                  TPU_REF          (see --repo)      setup   its commit, tag or branch
# --python=3.N               TPU_PYTHON       3.11              setup   3.11 or newer
# --grace=SECONDS            TPU_GRACE        120               train   time to save a checkpoint
# --max-hours=H              TPU_MAX_HOURS    (required)        keep    delete the TPU after H hours
# --retries=N                TPU_RETRIES      3                 keep    retries after failures
# --worker=N                 TPU_WORKER       0                 logs    the worker
# --lines=N                                   200               logs    number of lines
# -f                                                            logs    follow the log
# --yes                                                         delete  delete without confirmation
# --dry-run                                                     all     print commands only
# --help                                                                print this text
#
# keep also has the options of create, setup and train; stop also has --grace. Repeat --ssh-flag and
# --create-flag for several flags; in their variables, separate the flags by spaces.
# Exit status: 0 success; 1 failure; 2 wrong usage; of keep, that of the run; else that of gcloud.
# Needs bash 4.4, git and the Google Cloud CLI. Commands are recorded in
# $XDG_STATE_HOME/multipath_jax (by default ~/.local/state/multipath_jax).
set -euo pipefail

folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$folder/common.sh"
# shellcheck source-path=SCRIPTDIR source=tpu/options.sh
source "$folder/tpu/options.sh"
# shellcheck source-path=SCRIPTDIR source=tpu/state.sh
source "$folder/tpu/state.sh"
# shellcheck source-path=SCRIPTDIR source=tpu/workers.sh
source "$folder/tpu/workers.sh"
# shellcheck source-path=SCRIPTDIR source=tpu/keep.sh
source "$folder/tpu/keep.sh"

cost_warning= # if not empty, a warning is printed at exit that a TPU may be billed

# --- create, delete --------------------------------------------------------------------------

create() {
  if [[ $dry_run ]]; then
    describe queued-resources "$name" "$QUEUED_RESOURCE_FIELDS"
    request_tpu
    [[ ! $wait_for_tpu ]] || print_read_state
    return
  fi
  read_state
  [[ $phase != deleting || $wait_for_tpu ]] ||
    fail "queued resource $name is $queued_state: rerun create later, or with --wait"
  request_unless_present
  [[ $wait_for_tpu ]] || return 0
  warn_of_cost_at_exit
  wait_while_pending
  [[ $phase == ready ]] ||
    fail "queued resource $name is ${queued_state:-NOT_FOUND}${reason:+: $reason}"
  cost_warning=
}

# Requests the TPU, unless it was requested before. Replaces one that has failed or was preempted.
request_unless_present() {
  while [[ $phase == deleting ]]; do
    print_state
    sleep "$POLL_SECONDS"
    read_state_with_retries
  done
  case $phase in
    absent) request_tpu ;;
    terminated)
      echo "queued resource $name is $queued_state${reason:+: $reason}; requesting it again"
      delete_tpu
      request_tpu
      ;;
    unusable) fail "$reason: start or delete it" ;;
    *) echo "queued resource $name already exists: $queued_state${reason:+, $reason}" ;;
  esac
}

request_tpu() {
  local flags=("${nodes[@]/#/--node-id=}")
  ((node_count == 1)) || flags=(--node-count="$node_count")
  run "${gcloud[@]}" queued-resources create "$name" "${flags[@]}" "${location_flags[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" "${create_flags[@]}"
}

wait_while_pending() {
  cost_warning=1
  read_state_with_retries
  print_state
  while [[ $phase == pending ]]; do
    sleep "$POLL_SECONDS"
    read_state_with_retries
    print_state
  done
  [[ $phase == ready ]] || cost_warning=
}

# Deletes the queued resource and its TPU VMs (--force), without gcloud's prompt (--quiet).
delete_tpu() {
  run "${gcloud[@]}" queued-resources delete "$name" "${location_flags[@]}" --force --quiet
}

delete() {
  local answer=""
  if [[ ! $skip_prompt && ! $dry_run ]]; then
    read -r -p "Delete TPU $name in $zone and all data on it? [y/N] " answer || true
    [[ $answer == [yY] || $answer == [yY]es ]] || fail "not confirmed; nothing was deleted"
  fi
  delete_tpu
}

warn_of_cost_at_exit() {
  trap print_cost_warning EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

# shellcheck disable=SC2317,SC2329 # called by a trap
print_cost_warning() {
  [[ ! $cost_warning ]] ||
    echo "warning: queued resource $name still exists; its TPU is billed once it is created;" \
      "to delete both: $(quote "$0" delete --name="$name" --zone="$zone" ${project:+--project="$project"})" >&2
}

# --- setup -----------------------------------------------------------------------------------

setup() {
  local archive=$state_folder/source.tar.gz files=("$ROOT/launch/tpu_worker.sh")
  check_ssh_agent
  if [[ ! $repo ]]; then
    run mkdir -p "$state_folder"
    run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
    warn_of_uncommitted_changes
    files+=("$archive")
  fi
  for_each_node ssh_to_node all "mkdir -p $REMOTE_FOLDER"
  for_each_node copy_to_node "${files[@]}"
  if [[ $repo ]]; then
    on_all_workers setup "$repo" "$ref" "$python"
  else
    on_all_workers setup archive "$python"
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
  workers=$(describe_if_exists tpu-vm "${nodes[0]}" "networkEndpoints.len()")
  ((${workers:-0} * node_count > 1)) || return 0
  # shellcheck disable=SC2016 # for the user's shell
  ssh-add -l >/dev/null 2>&1 || fail 'several workers require a key in an SSH agent; run:' \
    'eval "$(ssh-agent)" && ssh-add ~/.ssh/google_compute_engine'
}

warn_of_uncommitted_changes() {
  local git_status=(git -C "$ROOT" status --porcelain)
  if [[ $dry_run ]]; then
    run "${git_status[@]}"
  elif [[ $("${git_status[@]}") ]]; then
    echo "warning: uncommitted changes are not copied to the workers" >&2
  fi
}

# --- train, stop, logs, outcome, status ------------------------------------------------------

train() {
  set_run_flags
  restart_run
}

# Ends the previous run on all workers before starting one: workers would wait for others that still
# have the previous run.
restart_run() {
  on_all_workers stop "$grace"
  on_all_workers start "${run_flags[@]}"
}

# Records the given flags, or sets `run_flags` to the recorded ones.
set_run_flags() {
  local flag file=$state_folder/flags
  if ((${#run_flags[@]})); then
    check_run_flags
    record_run_flags "$file"
  else
    [[ -f $file ]] ||
      usage_error "no flags are recorded for $name:" \
        "-- --config=CONFIG --workdir=gs://BUCKET/FOLDER is required"
    while IFS= read -r -d '' flag; do run_flags+=("$flag"); done <"$file"
    echo "using the recorded flags: $(quote "${run_flags[@]}")"
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
  [[ $config ]] || usage_error "--config=CONFIG is required after --"
  [[ $workdir ]] || usage_error "--workdir=gs://BUCKET/FOLDER is required after --"
  [[ $workdir == gs://* || $command != keep ]] ||
    usage_error "keep requires --workdir=gs://BUCKET/FOLDER:" \
      "files on a TPU VM are lost when it is preempted"
  [[ $workdir == gs://* ]] ||
    echo "warning: --workdir=$workdir is a separate folder on each worker," \
      "and is deleted with the TPU VM" >&2
  [[ $distributed ]] || run_flags+=(--distributed=auto)
}

record_run_flags() {
  if [[ $dry_run ]]; then
    echo "# records the flags in $1"
    return
  fi
  mkdir -p "$state_folder"
  printf '%s\0' "${run_flags[@]}" >"$1"
}

stop() { on_all_workers stop "$grace"; }

logs() { on_worker "$worker" logs "$lines" ${follow:+-f}; }

outcome() { on_worker 0 outcome; }

status() {
  if [[ $dry_run ]]; then
    print_read_state
    on_all_workers status
    return
  fi
  read_state
  echo "queued resource $name: ${queued_state:-NOT_FOUND}${reason:+, $reason}"
  case $phase in
    ready) on_all_workers status ;;
    terminated) echo "to resume the run: keep, or create --wait, setup and train" ;;
  esac
}

# --- main ------------------------------------------------------------------------------------

main() {
  local commands="keep, create, setup, train, stop, logs, status, outcome or delete"
  command=${1-}
  case $command in
    keep | create | setup | train | stop | logs | status | outcome | delete) shift ;;
    --help | -h | help)
      usage
      return
      ;;
    "") usage_error "a command is required: $commands" ;;
    *) usage_error "unknown command '$command': must be $commands" ;;
  esac
  parse_options "$@"
  check_options
  [[ $dry_run ]] || command -v gcloud >/dev/null || usage_error "gcloud is not installed"
  set_derived_variables
  "$command"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || usage_error "bash 4.4 or newer is required"
main "$@"
