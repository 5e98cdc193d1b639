#!/usr/bin/env bash
# The part of launch/tpu_vm.sh that runs on each worker of a TPU VM; tpu_vm.sh copies it there.
#
#   tpu_worker.sh setup archive PYTHON_VERSION        unpacks source.tar.gz, then installs
#   tpu_worker.sh setup URL REF PYTHON_VERSION        clones URL at REF, then installs
#   tpu_worker.sh stop SECONDS                        ends the run; kills it after SECONDS
#   tpu_worker.sh start FLAG...                       starts a run in the background, unless the
#                                                     same run is running
#   tpu_worker.sh status                              prints one line about the run
#   tpu_worker.sh outcome                             prints running, ended STATUS, or none
#   tpu_worker.sh logs LINES [-f]                     prints the end of the log
#
# All files are in the folder of this file:
#   trees/HASH  the sources; source -> the newest    venvs/HASH  the packages; venv -> the newest
#   run.pid     process group and start time         run.flags, run.status  flags, exit status
#   run.log     log; each start appends to it        lock        held by setup, stop and start
#
# The lock is needed since gcloud repeats a command if its connection breaks, while the first one
# continues.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=$HERE/venv
PID_FILE=$HERE/run.pid
FLAGS_FILE=$HERE/run.flags
STATUS_FILE=$HERE/run.status
LOG=$HERE/run.log
LOCK_SECONDS=${TPU_LOCK_SECONDS:-1800}
HUGE_PAGES=${TPU_HUGE_PAGES:-/sys/kernel/mm/transparent_hugepage/enabled}
UV_VERSION=0.13.9 # downloads a Python if that of the machine is too old

fail() {
  echo "error: $(uname -n): $1" >&2
  exit 1
}

# Waits for other commands that change files here.
lock() {
  exec 9>"$HERE/lock"
  flock --wait "$LOCK_SECONDS" 9 || fail "another command has been at work here for $LOCK_SECONDS seconds"
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

# A tree is renamed to its final name when it is complete, so an interrupted one is extracted again.
new_tree() {
  rm -rf "$HERE/trees/new"
  mkdir -p "$HERE/trees/new"
}

# A running run keeps its tree.
use_tree() {
  ln -sfn "trees/$1" "$HERE/source"
  echo "$(uname -n): source $1"
}

# An environment cannot be moved, so it has its final name from the start, and a mark when it is
# complete. A running run keeps its environment.
install_packages() {
  local wanted folder python
  wanted=$(cat "$HERE/source/constraints.txt" "$HERE/source/pyproject.toml" - <<<"$1" | sha256sum)
  folder=$HERE/venvs/${wanted:0:12}
  if [[ -f $folder/.ready ]]; then
    echo "$(uname -n): the packages are installed"
  else
    python=$(find_python "$1")
    rm -rf "$folder"
    "$python" -m venv "$folder"
    (cd "$HERE/source" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt '.[tpu]')
    touch "$folder/.ready"
    echo "$(uname -n): installed the packages of constraints.txt"
  fi
  ln -sfn "venvs/${wanted:0:12}" "$VENV"
  [[ $(live_group) ]] || remove_other_environments "$folder"
}

remove_other_environments() {
  local folder
  for folder in "$HERE"/venvs/*; do
    [[ $folder == "$1" ]] || rm -rf "$folder"
  done
}

# Prints the path of a Python of the given version: the machine's, or one that uv downloads.
find_python() {
  local uv=$HERE/tools/bin/uv
  # On Debian, ensurepip, which venv needs, is a separate package.
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

# Prints the start time of a process in ticks since boot, which together with its reusable number
# identifies it; nothing if there is no such process.
started_at() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The fields after the name of the program, which is in brackets and can contain spaces.
  awk '{ print $20 }' <<<"${line##*) }"
}

# Prints the process group of the recorded run if any process of it is left.
live_group() {
  local group began seen
  [[ -f $PID_FILE ]] || return 0
  read -r group began <"$PID_FILE" || return 0
  seen=$(started_at "$group")
  [[ -z $seen || $seen == "$began" ]] || return 0 # the number is that of another process now
  # A zombie has ended, but its parent has not read its status.
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
  local pid flags
  flags=$(printf '%q ' "$@")
  if [[ $(live_group) ]]; then
    [[ -f $FLAGS_FILE && $(<"$FLAGS_FILE") == "$flags" ]] ||
      fail "another run is alive: process group $(live_group)"
    echo "$(uname -n): started already, process group $(live_group)"
    return
  fi
  [[ -x $VENV/bin/python && -f $VENV/.ready ]] || fail "not set up: run setup first"
  use_huge_pages
  rm -f "$STATUS_FILE"
  echo "$flags" >"$FLAGS_FILE"
  # A new session survives the connection; its number is that of the process group.
  setsid nohup bash "$HERE/tpu_worker.sh" _run "$@" >>"$LOG" 2>&1 </dev/null 9>&- &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$PID_FILE"
  echo "$(uname -n): started, process group $pid"
}

# From Google's guides: makes transfers between a TPU and host memory faster.
use_huge_pages() {
  ! grep -qs '\[always\]' "$HUGE_PAGES" || return 0
  echo always | sudo -n tee "$HUGE_PAGES" >/dev/null ||
    echo "warning: $(uname -n): transparent hugepages stay as they are" >&2
}

# The background process: the run, between a first and a last line in the log.
run() {
  local status=0 python
  # This shell must outlive the run; the run does not inherit a trap that is not empty.
  trap : INT TERM
  echo "=== $(now) $(uname -n): python -m multipath_jax.main$(printf ' %q' "$@")"
  python=$(cd -P "$VENV" && pwd)/bin/python
  cd -P "$HERE/source" # from where `python -m` imports the package
  "$python" -u -m multipath_jax.main "$@" || status=$?
  echo "$status" >"$STATUS_FILE"
  echo "=== $(now) $(uname -n): ended with status $status"
}

outcome() {
  if [[ $(live_group) ]]; then
    echo "running"
  elif [[ -f $STATUS_FILE ]]; then
    echo "ended $(<"$STATUS_FILE")"
  else
    echo "none"
  fi
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
  setup | stop | start) lock && "$@" ;;
  status | outcome | logs) "$@" ;;
  _run) run "${@:2}" ;;
  *)
    echo "error: ${1-no command}? it is one of: setup stop start status outcome logs" >&2
    exit 2
    ;;
esac
