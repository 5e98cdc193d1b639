# shellcheck shell=bash
# Commands on the workers of the TPU VMs.

REMOTE_FOLDER=multipath_jax_tpu # in the user's home on each worker

# Calls a function for all nodes in parallel; returns the last nonzero exit status.
for_each_node() {
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

# Arguments: the node, the number of a worker or all, the command.
ssh_to_node() {
  run "${gcloud[@]}" tpu-vm ssh "$1" "${location_flags[@]}" --worker="$2" \
    "${ssh_flags[@]}" --command="$3"
}

# Copies files to all workers of a node. Arguments: the node, the files.
copy_to_node() {
  run "${gcloud[@]}" tpu-vm scp "${@:2}" "$1:$REMOTE_FOLDER/" "${location_flags[@]}" --worker=all \
    "${ssh_flags[@]/#--ssh-flag=/--scp-flag=}"
}

# Prints the command that runs tpu_worker.sh with the given arguments.
worker_command() { echo "bash $REMOTE_FOLDER/tpu_worker.sh $(quote "$@")"; }

# Runs tpu_worker.sh on all workers of all nodes.
on_all_workers() { for_each_node ssh_to_node all "$(worker_command "$@")"; }

# Runs tpu_worker.sh on a worker of the first node. Arguments: its number, those of tpu_worker.sh.
on_worker() { ssh_to_node "${nodes[0]}" "$1" "$(worker_command "${@:2}")"; }
