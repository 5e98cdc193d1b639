#!/usr/bin/env bash
# Trains with N processes on this machine, connected by jax.distributed.
#
#   launch/local.sh [options] N -- --config=digits --workdir=runs/digits
#
# Options
#   --cpu                     use CPUs even if there are GPUs
#   --devices-per-process=K   use K virtual CPU devices per process
#   --gpus-per-process=K      use K GPUs per process; required on GPUs, since otherwise each process
#                             uses all of them
#   --logs=FOLDER             print only process 0, and write all output to FOLDER/process_I.log
#   --grace=SECONDS           if a process fails, kill the others after this time (60)
#   --help                    print this text
#
# Each line is prefixed by the number of its process, such as `[1] ...`. SIGINT and SIGTERM are
# forwarded to all processes. If a process fails, the others are stopped, and its exit status is
# returned. PYTHON=... selects a Python; the default is the repository's .venv/bin/python, or else
# python3.
# Needs bash 5.1.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SYNOPSIS='usage: local.sh [options] N -- FLAGS of multipath_jax.main'

num_processes=
cpu=
devices_per_process=
gpus_per_process=
logs=
grace=60
flags=()
pids=()         # the training processes; each leads a process group
printer_pids=() # the processes that print their output
signalled=      # if not empty, SIGINT or SIGTERM was received

# --- command line ----------------------------------------------------------------------------

read_options() {
  while (($#)); do
    case $1 in
      --cpu) cpu=1 ;;
      --devices-per-process=*) devices_per_process=${1#*=} && check_positive "$1" ;;
      --gpus-per-process=*) gpus_per_process=${1#*=} && check_positive "$1" ;;
      --logs=?*) logs=${1#*=} ;;
      --grace=*) grace=${1#*=} && check_positive "$1" ;;
      --help | -h)
        usage
        exit
        ;;
      --)
        flags=("${@:2}")
        break
        ;;
      [0-9]*)
        [[ ! $num_processes ]] || usage_error "N is given twice: $num_processes and $1"
        check_positive "N=$1"
        num_processes=$1
        ;;
      *) usage_error "unknown argument '$1'; $SYNOPSIS" ;;
    esac
    shift
  done
  [[ $num_processes ]] || usage_error "N, the number of processes, is required; $SYNOPSIS"
  [[ ! $gpus_per_process || ! $cpu ]] ||
    usage_error "--cpu and --gpus-per-process are mutually exclusive"
  [[ " ${flags[*]-}" != *" --"@(distributed|process_id|num_processes)* ]] ||
    usage_error "--distributed, --process_id and --num_processes are set by local.sh"
}

find_python() {
  if [[ ! ${PYTHON-} ]]; then
    PYTHON=$ROOT/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  command -v "$PYTHON" >/dev/null || usage_error "PYTHON=$PYTHON: command not found"
}

# --- processes -------------------------------------------------------------------------------

# Prints a free port.
find_free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

set_devices() {
  [[ ! $cpu ]] || export JAX_PLATFORMS=cpu
  [[ ! $devices_per_process ]] || export JAX_NUM_CPU_DEVICES=$devices_per_process
  [[ ${JAX_PLATFORMS-} == cpu ]] || check_gpus
}

# Prints the number of GPUs that are visible to JAX.
count_gpus() {
  if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
    grep -o '[^,]\+' <<<"$CUDA_VISIBLE_DEVICES"
  else
    nvidia-smi --list-gpus 2>/dev/null | grep '^GPU '
  fi | wc -l
}

check_gpus() {
  local found
  found=$(count_gpus || true)
  ((found)) || return 0
  [[ $gpus_per_process ]] || ((num_processes == 1)) ||
    usage_error "each of $num_processes processes would use all $found GPUs:" \
      "pass --gpus-per-process=K or --cpu"
  ((num_processes * ${gpus_per_process:-1} <= found)) ||
    usage_error "$num_processes processes with $gpus_per_process GPUs each: only $found GPUs are visible"
}

# Sets the GPUs of process I.
set_gpus() {
  JAX_LOCAL_DEVICE_IDS=$(seq -s , $(($1 * gpus_per_process)) $((($1 + 1) * gpus_per_process - 1)))
  export JAX_LOCAL_DEVICE_IDS
}

# Starts process I; the coordinator listens on port P.
start_process() {
  local i=$1 port=$2 pipe=$scratch/$1
  mkfifo "$pipe"
  print_output "$i" <"$pipe" &
  printer_pids+=($!)
  (
    [[ ! $gpus_per_process ]] || set_gpus "$i"
    exec "$PYTHON" -u -m multipath_jax.main "${flags[@]}" --distributed="127.0.0.1:$port" \
      --num_processes="$num_processes" --process_id="$i"
  ) >"$pipe" 2>&1 </dev/null &
  pids+=($!)
}

# Prints and logs the output of process I, which it reads from stdin.
print_output() {
  local line
  while IFS= read -r line || [[ $line ]]; do
    [[ ! $logs ]] || printf '%s\n' "$line" >>"$logs/process_$1.log"
    [[ $logs && $1 != 0 ]] || printf '[%s] %s\n' "$1" "$line"
  done
}

# Sends a signal to all process groups.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

# shellcheck disable=SC2317,SC2329 # called by a trap
forward_signal() {
  signalled=1
  signal_all "$1"
}

# Waits for all processes and returns the first nonzero exit status. If one fails, the others, which
# would wait for it forever, are stopped by SIGTERM, and killed after the grace time.
wait_for_all() {
  local running=("${pids[@]}") first_failure=0 ended status killer=""
  while ((${#running[@]})); do
    ended=
    status=0
    wait -n -p ended "${running[@]}" || status=$?
    if [[ ! ${ended-} ]]; then
      ((status == 127)) || continue # the wait was interrupted by a trap
      ended=${running[0]} # no longer in bash's list of jobs, but bash still has its status
      status=0
      wait "$ended" || status=$?
    fi
    mapfile -t running < <(printf '%s\n' "${running[@]}" | grep -vx "$ended" || true)
    ((status != 0 && first_failure == 0)) || continue
    first_failure=$status
    ((${#running[@]})) || break
    [[ $signalled ]] || signal_all TERM
    set -m # puts the sleep into a process group that can be killed
    (sleep "$grace" && signal_all KILL) &
    killer=$!
    disown "$killer" # suppresses the shell's message that it was killed
    set +m
  done
  # KILL, since a TERM is lost if it arrives before the new process has reset the traps.
  [[ ! $killer ]] || kill -KILL -- "-$killer" 2>/dev/null || true
  return "$first_failure"
}

main() {
  local i port status=0
  read_options "$@"
  find_python
  set_devices
  if [[ $logs ]]; then
    mkdir -p "$logs" 2>/dev/null || usage_error "cannot create the directory --logs=$logs"
    logs=$(cd "$logs" && pwd)
    echo "local.sh: the logs of all processes are in $logs"
  fi
  port=$(find_free_port)
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  # Gives each job its own process group, so that signals reach its children, and Ctrl-C reaches it
  # only by forward_signal. Without it, jobs ignore SIGINT.
  set -m
  trap 'forward_signal INT' INT
  trap 'forward_signal TERM' TERM
  for ((i = 0; i < num_processes; i++)); do
    [[ $signalled ]] || start_process "$i" "$port"
  done
  set +m # suppresses the shell's messages about jobs that end by a signal
  wait_for_all || status=$?
  wait "${printer_pids[@]}" || true # until all output is printed
  exit "$status"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || usage_error "bash 5.1 or newer is required"
main "$@"
