# shellcheck shell=bash
# The state of the queued resource and its TPU VMs.

POLL_SECONDS=${TPU_POLL_SECONDS:-30}
MAX_POLL_FAILURES=20 # consecutive failures
QUEUED_RESOURCE_FIELDS=state.state,state.failedData.error.message

# Prints fields of a resource. Arguments: queued-resources or tpu-vm, the name, the fields.
describe() {
  run "${gcloud[@]}" "$1" describe "$2" "${location_flags[@]}" --format="value($3)"
}

# As describe, but prints nothing if the resource does not exist. Prints other errors.
describe_if_exists() {
  local errors status=0
  { errors=$(describe "$@" 2>&1 >&3) || status=$?; } 3>&1
  ((status == 0)) || [[ $errors == *NOT_FOUND* || $errors == *"/$2' was not found"* ]] || {
    echo "$errors" >&2
    return "$status"
  }
}

# Reads the state of the TPU, and sets
#   queued_state  the state of the queued resource; empty if it does not exist
#   reason        an explanation; may be empty
#   phase         absent      there is no queued resource
#                 pending     it is not ready yet
#                 ready       all TPU VMs are ready
#                 terminated  it has failed or was preempted, and can be requested again
#                 deleting    it is being suspended or deleted
#                 unusable    a TPU VM was stopped; only the user can start or delete it
read_state() {
  local fields
  fields=$(describe_if_exists queued-resources "$name" "$QUEUED_RESOURCE_FIELDS") || return
  IFS=$'\t' read -r queued_state reason <<<"$fields"
  case $queued_state in
    "") phase=absent ;;
    ACTIVE) read_node_states || return ;;
    FAILED | SUSPENDED) phase=terminated ;;
    SUSPENDING | DELETING) phase=deleting ;;
    *) phase=pending ;;
  esac
}

# For a queued resource that is ACTIVE, which it remains for a while after a TPU VM was preempted.
read_node_states() {
  local node state
  phase=ready
  for node in "${nodes[@]}"; do
    state=$(describe_if_exists tpu-vm "$node" state) || return
    [[ $state != READY ]] || continue
    reason="TPU VM $node is ${state:-NOT_FOUND}"
    case $state in
      "" | PREEMPTED | TERMINATED) phase=terminated ;;
      STOPPING | STOPPED | HIDING | HIDDEN | DELETING | UNKNOWN) phase=unusable ;;
      *) phase=pending ;;
    esac
    return 0
  done
}

# As read_state, but retries after errors, such as those of the network.
read_state_with_retries() {
  local failures=0
  until read_state; do
    ((++failures < MAX_POLL_FAILURES)) || fail "cannot read the state of $name"
    sleep "$POLL_SECONDS"
  done
}

print_state() { echo "$(date +%H:%M:%S) ${queued_state:-NOT_FOUND}${reason:+: $reason}"; }

# Prints the commands of read_state, in a dry run.
print_read_state() {
  local node
  describe queued-resources "$name" "$QUEUED_RESOURCE_FIELDS"
  for node in "${nodes[@]}"; do describe tpu-vm "$node" state; done
}
