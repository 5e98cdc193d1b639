#!/usr/bin/env bash
# Trains with N processes on this machine, joined through JAX's distributed runtime.
#
#   launch/local.sh [options] N -- --config=digits --workdir=runs/digits
#
# Options
#   --cpu                     on the CPU, whatever else there is
#   --devices-per-process=K   with K virtual CPU devices in each process
#   --gpus-per-process=K      with K of the machine's GPUs in each process; needed on GPUs, as each
#                             process would take all of them
#   --logs=FOLDER             process 0 to the terminal, all to FOLDER/process_I.log
#   --grace=SECONDS           for the others when one has ended badly, before they are killed (60)
#   --help                    this text
#
# Each line is printed behind its process's number, as `[1] ...`. SIGINT and SIGTERM go to all
# processes. The exit status is the first that is not 0; the others are then stopped. PYTHON=...
# names another Python than the repository's .venv/bin/python, or python3 where there is none.
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
pids=()     # of the processes that run; each is the head of a process group
printers=() # of what passes their lines on
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
      *) misuse "what is '$1'? local.sh [options] N -- flags of multipath_jax.main" ;;
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

# How many GPUs JAX would see.
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

choose_gpus() { # of process I
  JAX_LOCAL_DEVICE_IDS=$(seq -s , $(($1 * gpus)) $((($1 + 1) * gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
}

start() { # process I, with the coordinator at port P
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

pass_on() { # the lines of process I
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

# Waits for all, gives the first status that is not 0. When one has ended badly the others wait
# for it in vain: they are asked to stop, unless a signal did that, and in the end killed.
wait_for_all() {
  local left=("${pids[@]}") first=0 ended status killer=""
  while ((${#left[@]})); do
    ended=
    status=0
    wait -n -p ended "${left[@]}" || status=$?
    if [[ ! ${ended-} ]]; then
      ((status == 127)) || continue # a trap ended the wait
      ended=${left[0]} # bash no longer counts it among its jobs, but remembers how it ended
      status=0
      wait "$ended" || status=$?
    fi
    mapfile -t left < <(printf '%s\n' "${left[@]}" | grep -vx "$ended" || true)
    ((status != 0 && first == 0)) || continue
    first=$status
    ((${#left[@]})) || break
    [[ $signalled ]] || signal_all TERM
    set -m # its sleep is in its process group, and ends with it
    (sleep "$grace" && signal_all KILL) &
    killer=$!
    disown "$killer" # or the shell tells that it was killed
    set +m
  done
  # KILL, since a TERM that arrives before the new process has dropped our traps is lost.
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
  # Jobs get process groups of their own: a signal reaches what a process started, and a Ctrl-C
  # comes through `forward` alone. Without it the shell has them ignore SIGINT.
  set -m
  trap 'forward INT' INT
  trap 'forward TERM' TERM
  for ((i = 0; i < count; i++)); do
    [[ $signalled ]] || start "$i" "$port"
  done
  set +m # or the shell tells of each job that a signal ends
  wait_for_all || status=$?
  wait "${printers[@]}" || true # their last lines
  exit "$status"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || misuse "bash 5.1 or newer is needed"
main "$@"
