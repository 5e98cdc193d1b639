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
# Each line is prefixed by the number of its process, as `[1] ...`. SIGINT and SIGTERM are forwarded
# to all processes. If a process fails, the others are stopped, and its exit status is returned.
# PYTHON=... selects a Python; the default is the repository's .venv/bin/python, or else python3.
# Needs bash 5.1.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

count=
cpu=
devices=
gpus=
logs=
grace=60
flags=()
pids=()     # the running processes; each leads a process group
printers=() # the processes that print their lines
signalled=

# --- the command line ------------------------------------------------------------------------

read_options() {
  while (($#)); do
    case $1 in
      --cpu) cpu=1 ;;
      --devices-per-process=*) devices=${1#*=} && positive "$1" ;;
      --gpus-per-process=*) gpus=${1#*=} && positive "$1" ;;
      --logs=?*) logs=${1#*=} ;;
      --grace=*) grace=${1#*=} && positive "$1" ;;
      --help | -h)
        usage
        exit
        ;;
      --)
        flags=("${@:2}")
        break
        ;;
      [0-9]*)
        [[ ! $count ]] || misuse "how many processes, $count or $1?"
        positive "N=$1"
        count=$1
        ;;
      *) misuse "unknown argument '$1': local.sh [options] N -- flags of multipath_jax.main" ;;
    esac
    shift
  done
  [[ $count ]] || misuse "how many processes? local.sh [options] N -- flags"
  [[ ! $gpus || ! $cpu ]] || misuse "--cpu and --gpus-per-process: one of them"
  [[ " ${flags[*]-}" != *" --"@(distributed|process_id|num_processes)* ]] ||
    misuse "--distributed, --process_id and --num_processes are set here"
}

find_python() {
  if [[ ! ${PYTHON-} ]]; then
    PYTHON=$ROOT/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  command -v "$PYTHON" >/dev/null || misuse "PYTHON=$PYTHON is no program"
}

# --- processes -------------------------------------------------------------------------------

free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

set_devices() {
  [[ ! $cpu ]] || export JAX_PLATFORMS=cpu
  [[ ! $devices ]] || export JAX_NUM_CPU_DEVICES=$devices
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
  [[ $gpus ]] || ((count == 1)) ||
    misuse "each of $count processes would take all $found GPUs: --gpus-per-process=K, or --cpu"
  ((count * ${gpus:-1} <= found)) || misuse "$count processes with $gpus GPUs each: there are $found"
}

choose_gpus() { # for process I
  JAX_LOCAL_DEVICE_IDS=$(seq -s , $(($1 * gpus)) $((($1 + 1) * gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
}

start() { # starts process I, with the coordinator at port P
  local i=$1 port=$2 pipe=$scratch/$1
  mkfifo "$pipe"
  pass_on "$i" <"$pipe" &
  printers+=($!)
  (
    [[ ! $gpus ]] || choose_gpus "$i"
    exec "$PYTHON" -u -m multipath_jax.main "${flags[@]}" --distributed="127.0.0.1:$port" \
      --num_processes="$count" --process_id="$i"
  ) >"$pipe" 2>&1 </dev/null &
  pids+=($!)
}

pass_on() { # prints or logs the lines of process I
  local line
  while IFS= read -r line || [[ $line ]]; do
    [[ ! $logs ]] || printf '%s\n' "$line" >>"$logs/process_$1.log"
    [[ $logs && $1 != 0 ]] || printf '[%s] %s\n' "$1" "$line"
  done
}

signal_all() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

# shellcheck disable=SC2317,SC2329 # called by a trap
forward() {
  signalled=1
  signal_all "$1"
}

# Waits for all processes and returns the first status that is not 0. If one fails, the others, which
# would wait for it forever, are stopped by SIGTERM, and killed after the grace time.
wait_for_all() {
  local left=("${pids[@]}") first=0 ended status killer=""
  while ((${#left[@]})); do
    ended=
    status=0
    wait -n -p ended "${left[@]}" || status=$?
    if [[ ! ${ended-} ]]; then
      ((status == 127)) || continue # the wait was interrupted by a trap
      ended=${left[0]} # bash has removed it from its jobs, but still knows its status
      status=0
      wait "$ended" || status=$?
    fi
    mapfile -t left < <(printf '%s\n' "${left[@]}" | grep -vx "$ended" || true)
    ((status != 0 && first == 0)) || continue
    first=$status
    ((${#left[@]})) || break
    [[ $signalled ]] || signal_all TERM
    set -m # puts the sleep into a process group that can be killed
    (sleep "$grace" && signal_all KILL) &
    killer=$!
    disown "$killer" # suppresses the shell's message that it was killed
    set +m
  done
  # KILL, since a TERM is lost if it arrives before the new process has reset the traps.
  [[ ! $killer ]] || kill -KILL -- "-$killer" 2>/dev/null || true
  return "$first"
}

main() {
  local i port status=0
  read_options "$@"
  find_python
  set_devices
  if [[ $logs ]]; then
    mkdir -p "$logs" 2>/dev/null || misuse "--logs=$logs cannot be made"
    logs=$(cd "$logs" && pwd)
    echo "local.sh: the logs of all processes are in $logs"
  fi
  port=$(free_port)
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  # Gives jobs separate process groups, so that signals reach their children and Ctrl-C only comes
  # through `forward`. Without it, jobs ignore SIGINT.
  set -m
  trap 'forward INT' INT
  trap 'forward TERM' TERM
  for ((i = 0; i < count; i++)); do
    [[ $signalled ]] || start "$i" "$port"
  done
  set +m # suppresses the shell's messages about jobs that are ended by a signal
  wait_for_all || status=$?
  wait "${printers[@]}" || true # until the last lines are printed
  exit "$status"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || misuse "bash 5.1 or newer is needed"
main "$@"
