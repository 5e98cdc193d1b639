# shellcheck shell=bash
# The command keep of tpu_vm.sh.

# Local variables that the other functions in this file also use:
#   result          empty while the run is to be continued; else an exit status, or
#                   unavailable (the TPU is not ready any more), or limit (--max-hours is reached)
#   limit_seconds   --max-hours in seconds
#   billed_seconds  for how long TPUs existed, without the time since ready_time
#   ready_time      $SECONDS when the wait for the TPU ended
keep() {
  local failures=0 result="" limit_seconds billed_seconds=0 ready_time
  set_run_flags
  if [[ $dry_run ]]; then
    wait_for_tpu=1
    create
    setup
    restart_run
    outcome
    delete_tpu
    return
  fi
  MAX_POLL_FAILURES=1000000 # the network may be down for hours
  limit_seconds=$(awk -v hours="$max_hours" 'BEGIN { print int(3600 * hours) }')
  warn_of_cost_at_exit
  while [[ ! $result ]]; do
    read_state_with_retries
    request_unless_present
    wait_while_pending
    ready_time=$SECONDS
    if [[ $phase == ready ]]; then
      setup_and_train
    else
      # --retries limits the requests that fail, such as for lack of quota, but not the preemptions.
      result=unavailable
      [[ $queued_state != FAILED ]] || result=1
    fi
    billed_seconds=$((billed_seconds + SECONDS - ready_time))
    case $result in
      unavailable | 143) result="" ;; # 143: SIGTERM, which is also sent when a machine shuts down
      0 | limit) ;;
      *)
        if ((++failures <= retries)); then
          echo "keep: failed with status $result; retry $failures of $retries"
          result=""
        fi
        ;;
    esac
    ((billed_seconds < limit_seconds)) || result=${result:-limit}
  done
  finish_keep
}

# Trains on a TPU that is ready, until the run ends; sets `result`.
setup_and_train() {
  result=0
  run_with_time_limit setup "${setup_options[@]}" || result=$?
  [[ $result != 0 ]] || run_with_time_limit train --grace="$grace" || result=$?
  [[ $result != 0 ]] || result=""
  while :; do
    # Also after a failure: if the TPU is not ready any more, that was the cause.
    read_state_with_retries
    if [[ $phase != ready ]]; then
      print_state
      result=unavailable
    elif (($(remaining_seconds) <= 0)); then
      result=limit
    elif [[ ! $result ]]; then
      sleep "$POLL_SECONDS"
      result=$(read_run_status)
      [[ $result == @(|0) ]] || sleep "$POLL_SECONDS" # a preemption shows in the state only later
      continue
    fi
    return 0
  done
}

# Prints the exit status of the run; nothing if it is running or the worker does not answer.
read_run_status() {
  local output
  output=$(run_with_time_limit outcome 2>/dev/null) || return 0
  case ${output##*$'\n'} in
    "ended "*) echo "${output##* }" ;;
    none) echo 1 ;; # the run was killed, or its machine was restarted
  esac
}

remaining_seconds() { echo $((limit_seconds - billed_seconds - SECONDS + ready_time)); }

# Runs a command of tpu_vm.sh, and ends it when --max-hours is reached.
run_with_time_limit() {
  local seconds
  seconds=$(remaining_seconds)
  ((seconds > 0)) || return 1
  timeout --foreground "$seconds" "$0" "$1" "${common_options[@]}" "${@:2}"
}

# Prints the result, deletes the TPU, and returns the exit status of keep.
finish_keep() {
  case $result in
    0) echo "keep: the run has completed" ;;
    limit)
      echo "keep: reached --max-hours=$max_hours; to resume the run, rerun keep"
      on_all_workers stop "$grace" || true
      result=1
      ;;
    *)
      echo "keep: failed with status $result${reason:+: $reason}"
      [[ $phase != ready ]] || on_worker 0 logs 50 || true
      ;;
  esac
  delete_tpu
  cost_warning=
  return "$result"
}
