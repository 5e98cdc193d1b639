#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU VM; it copies this file there and calls it.
#
#   tpu_worker.sh setup archive PYTHON_VERSION        unpacks source.tar.gz, then installs
#   tpu_worker.sh setup URL REF PYTHON_VERSION        clones URL at REF, then installs
#   tpu_worker.sh stop SECONDS                        ends the run; kills it after SECONDS
#   tpu_worker.sh start FLAG...                       starts a run, detached
#   tpu_worker.sh status                              one line: is there a run, its last log line
#   tpu_worker.sh logs LINES [-f]                     the end of the log
#
# Everything lies in the folder of this file:
#   trees/HASH  the sources; source -> the newest   venv/  with venv/.ready, what it was made from
#   run.pid     process group and its start time    run.log  kept and appended to by each start
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=$HERE/venv
PID_FILE=$HERE/run.pid
LOG=$HERE/run.log
UV_VERSION=0.13.9 # fetches a Python where the machine's own is too old

fail() {
  echo "error: $(uname -n): $1" >&2
  exit 1
}

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

# --- setup -----------------------------------------------------------------------------------

setup() {
  if (($# == 2)); then
    unpack_archive
  else
    clone "$1" "$2"
  fi
  install_packages "${!#}"
}

unpack_archive() {
  local hash
  hash=$(sha256sum "$HERE/source.tar.gz" | cut -c 1-12)
  if [[ ! -d $HERE/trees/$hash ]]; then
    new_tree
    tar -xzf "$HERE/source.tar.gz" -C "$HERE/trees/new"
    mv "$HERE/trees/new" "$HERE/trees/$hash"
  fi
  use_tree "$hash"
}

clone() {
  local hash
  new_tree
  git clone --quiet "$1" "$HERE/trees/new"
  git -C "$HERE/trees/new" checkout --quiet "$2"
  hash=$(git -C "$HERE/trees/new" rev-parse --short=12 HEAD)
  [[ -d $HERE/trees/$hash ]] || mv "$HERE/trees/new" "$HERE/trees/$hash"
  rm -rf "$HERE/trees/new"
  use_tree "$hash"
}

# A tree gets its name when it is complete: what was interrupted is begun again.
new_tree() {
  rm -rf "$HERE/trees/new"
  mkdir -p "$HERE/trees/new"
}

# A run that lives keeps the tree that it was started from.
use_tree() {
  ln -sfn "trees/$1" "$HERE/source"
  echo "$(uname -n): source $1"
}

install_packages() {
  local wanted
  wanted=$(cat "$HERE/source/constraints.txt" "$HERE/source/pyproject.toml" - <<<"$1" | sha256sum)
  if [[ -f $VENV/.ready && $(<"$VENV/.ready") == "$wanted" ]]; then
    echo "$(uname -n): the packages are installed"
    return
  fi
  local python
  python=$(find_python "$1")
  rm -rf "$VENV" # none of its packages may stay from an older list
  "$python" -m venv "$VENV"
  (cd "$HERE/source" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt '.[tpu]')
  echo "$wanted" >"$VENV/.ready"
  echo "$(uname -n): installed the packages of constraints.txt"
}

# The path of a Python of that version: the machine's, or a stand-alone build that uv fetches.
find_python() {
  local uv=$HERE/tools/bin/uv
  # Debian leaves out ensurepip, and with it venv, unless it was asked for.
  if command -v "python$1" >/dev/null && "python$1" -c 'import ensurepip' 2>/dev/null; then
    command -v "python$1"
    return
  fi
  python3 -m pip install --quiet --disable-pip-version-check --upgrade --target "$HERE/tools" \
    "uv==$UV_VERSION" >&2
  "$uv" python install --quiet "$1" >&2
  "$uv" python find --managed-python "$1"
}

# --- the run ---------------------------------------------------------------------------------

# When a process began, in ticks since the machine did: with its number, which Linux uses again,
# this names one process. Nothing if there is none.
started_at() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The fields after the program's name, which is in brackets and may hold spaces.
  awk '{ print $20 }' <<<"${line##*) }"
}

# Prints the process group of the recorded run if any process of it is left.
live_group() {
  local group began seen
  [[ -f $PID_FILE ]] || return 0
  read -r group began <"$PID_FILE" || return 0
  seen=$(started_at "$group")
  [[ -z $seen || $seen == "$began" ]] || return 0 # the number is another program's by now
  # A zombie has ended: only its parent has not asked for the status.
  ps -e -o pgid=,stat= | awk -v group="$group" \
    '$1 == group && $2 !~ /^Z/ { found = 1 } END { if (found) print group }'
}

stop() {
  local group
  group=$(live_group)
  if [[ -z $group ]]; then
    rm -f "$PID_FILE"
    echo "$(uname -n): nothing to stop"
    return
  fi
  kill -TERM -- "-$group" 2>/dev/null || true
  if ! ends_within "$1"; then
    kill -KILL -- "-$group" 2>/dev/null || true
    ends_within 10 || fail "process group $group does not end"
    echo "$(uname -n): killed the earlier run, process group $group"
  else
    echo "$(uname -n): stopped the earlier run, process group $group"
  fi
  rm -f "$PID_FILE"
}

ends_within() {
  local end=$((SECONDS + $1))
  while [[ -n $(live_group) ]]; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

start() {
  local pid
  [[ -x $VENV/bin/python && -f $VENV/.ready ]] || fail "not set up: run setup first"
  [[ -z $(live_group) ]] || fail "a run is alive: process group $(live_group)"
  # A session of its own outlives the connection; its number is also the process group's.
  setsid nohup bash "$HERE/tpu_worker.sh" _run "$@" >>"$LOG" 2>&1 </dev/null &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$PID_FILE"
  echo "$(uname -n): started, process group $pid"
}

# The detached part: the run between a first and a last line in the log.
run() {
  local status=0
  # This shell has to see the run's end; a trap that does something is not inherited by it.
  trap : INT TERM
  echo "=== $(now) $(uname -n): python -m multipath_jax.main$(printf ' %q' "$@")"
  cd -P "$HERE/source" # `python -m` takes the package from here
  "$VENV/bin/python" -u -m multipath_jax.main "$@" || status=$?
  echo "=== $(now) $(uname -n): ended with status $status"
}

status() {
  local group state="no run" last=""
  group=$(live_group)
  [[ -z $group ]] || state="running, process group $group"
  [[ ! -f $LOG ]] || last=$(tail -n 1 "$LOG")
  echo "$(uname -n): $state; last line: ${last:-none}"
}

logs() {
  [[ -f $LOG ]] || fail "there is no log yet"
  if [[ ${2-} == -f ]]; then
    exec tail -n "$1" -F "$LOG"
  fi
  tail -n "$1" "$LOG"
}

case ${1-} in
  setup | stop | start | status | logs) "$@" ;;
  _run) run "${@:2}" ;;
  *)
    echo "error: ${1-no command}? it is one of: setup stop start status logs" >&2
    exit 2
    ;;
esac
