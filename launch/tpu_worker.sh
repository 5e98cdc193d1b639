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
#   trees/HASH   the sources                   source      link to the newest of trees
#   venvs/HASH   the virtual environments      venv        link to the newest of venvs
#   run.pid      process group, start time     run.flags   flags of the run
#   run.status   exit status of the run        run.log     log; each start appends to it
#   lock         held by setup, stop and start
#
# The lock is needed because gcloud repeats a command after a lost connection, while the first one
# still runs.
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

# Waits until no other command changes files here.
acquire_lock() {
  exec 9>"$HERE/lock"
  flock --wait "$LOCK_SECONDS" 9 || fail "timed out after $LOCK_SECONDS s: another command holds the lock"
}

timestamp() { date -u +%Y-%m-%dT%H:%M:%SZ; }

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
    make_new_tree
    tar -xzf "$HERE/source.tar.gz" -C "$HERE/trees/new"
    mv "$HERE/trees/new" "$HERE/trees/$hash"
  fi
  link_tree "$hash"
}

clone() {
  local hash
  make_new_tree
  git clone --quiet "$1" "$HERE/trees/new"
  git -C "$HERE/trees/new" checkout --quiet "$2"
  hash=$(git -C "$HERE/trees/new" rev-parse --short=12 HEAD)
  [[ -d $HERE/trees/$hash ]] || mv "$HERE/trees/new" "$HERE/trees/$hash"
  rm -rf "$HERE/trees/new"
  link_tree "$hash"
}

# A tree gets its final name when it is complete, so that an interrupted one is created again.
make_new_tree() {
  rm -rf "$HERE/trees/new"
  mkdir -p "$HERE/trees/new"
}

# Other trees stay, since a run may use them.
link_tree() {
  ln -sfn "trees/$1" "$HERE/source"
  echo "$(uname -n): source $1"
}

# A virtual environment cannot be moved, so it has its final name from the start, and a file .ready
# when it is complete.
install_packages() {
  local hash folder python
  hash=$(cat "$HERE/source/constraints.txt" "$HERE/source/pyproject.toml" - <<<"$1" | sha256sum)
  hash=${hash:0:12}
  folder=$HERE/venvs/$hash
  if [[ -f $folder/.ready ]]; then
    echo "$(uname -n): the packages are already installed"
  else
    python=$(find_python "$1")
    rm -rf "$folder"
    "$python" -m venv "$folder"
    (cd "$HERE/source" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt '.[tpu]')
    touch "$folder/.ready"
    echo "$(uname -n): installed the packages of constraints.txt"
  fi
  ln -sfn "venvs/$hash" "$VENV"
  [[ $(active_group) ]] || remove_other_venvs "$folder"
}

# The environment of an active run must stay.
remove_other_venvs() {
  local folder
  for folder in "$HERE"/venvs/*; do
    [[ $folder == "$1" ]] || rm -rf "$folder"
  done
}

# Prints the path of a Python of the given version, which uv downloads if it is not installed.
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

# Prints the start time of a process in clock ticks since boot, or nothing if it does not exist.
# Process IDs are reused; ID and start time together identify a process.
start_time() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The fields after the name of the program, which is in parentheses and can contain spaces.
  awk '{ print $20 }' <<<"${line##*) }"
}

# Prints the process group of the run, or nothing if none of its processes is running.
active_group() {
  local group recorded_time current_time
  [[ -f $PID_FILE ]] || return 0
  read -r group recorded_time <"$PID_FILE" || return 0
  current_time=$(start_time "$group")
  [[ -z $current_time || $current_time == "$recorded_time" ]] || return 0 # the ID was reused
  # Zombies (state Z) have ended.
  ps -e -o pgid=,stat= | awk -v group="$group" \
    '$1 == group && $2 !~ /^Z/ { found = 1 } END { if (found) print group }'
}

stop() {
  local group
  group=$(active_group)
  if [[ -z $group ]]; then
    rm -f "$PID_FILE"
    echo "$(uname -n): no run to stop"
    return
  fi
  kill -TERM -- "-$group" 2>/dev/null || true
  if ! wait_for_end "$1"; then
    kill -KILL -- "-$group" 2>/dev/null || true
    wait_for_end 10 || fail "process group $group is still running after SIGKILL"
    echo "$(uname -n): killed the previous run, process group $group"
  else
    echo "$(uname -n): stopped the previous run, process group $group"
  fi
  rm -f "$PID_FILE"
}

# Returns 1 if the run does not end within the given seconds.
wait_for_end() {
  local end=$((SECONDS + $1))
  while [[ -n $(active_group) ]]; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

start() {
  local pid flags
  flags=$(printf '%q ' "$@")
  if [[ $(active_group) ]]; then
    [[ -f $FLAGS_FILE && $(<"$FLAGS_FILE") == "$flags" ]] ||
      fail "another run is active: process group $(active_group)"
    echo "$(uname -n): already started, process group $(active_group)"
    return
  fi
  [[ -x $VENV/bin/python && -f $VENV/.ready ]] || fail "setup is required first"
  enable_huge_pages
  rm -f "$STATUS_FILE"
  echo "$flags" >"$FLAGS_FILE"
  # In a new session, the run continues after the connection ends; its process group has the same ID.
  setsid nohup bash "$HERE/tpu_worker.sh" _run "$@" >>"$LOG" 2>&1 </dev/null 9>&- &
  pid=$!
  echo "$pid $(start_time "$pid")" >"$PID_FILE"
  echo "$(uname -n): started, process group $pid"
}

# Recommended by Google: faster transfers between a TPU and host memory.
enable_huge_pages() {
  ! grep -qs '\[always\]' "$HUGE_PAGES" || return 0
  echo always | sudo -n tee "$HUGE_PAGES" >/dev/null ||
    echo "warning: $(uname -n): cannot enable transparent huge pages" >&2
}

# The background process: trains, and writes a first and a last line to the log.
run() {
  local status=0 python
  # Signals must not end this shell before the run. The run does not inherit these traps, which are
  # not empty.
  trap : INT TERM
  echo "=== $(timestamp) $(uname -n): python -m multipath_jax.main$(printf ' %q' "$@")"
  python=$(cd -P "$VENV" && pwd)/bin/python
  cd -P "$HERE/source" # `python -m` imports the package from the current folder
  "$python" -u -m multipath_jax.main "$@" || status=$?
  echo "$status" >"$STATUS_FILE"
  echo "=== $(timestamp) $(uname -n): ended with status $status"
}

outcome() {
  if [[ $(active_group) ]]; then
    echo "running"
  elif [[ -f $STATUS_FILE ]]; then
    echo "ended $(<"$STATUS_FILE")"
  else
    echo "none"
  fi
}

status() {
  local group state="no run" last=""
  group=$(active_group)
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
  setup | stop | start) acquire_lock && "$@" ;;
  status | outcome | logs) "$@" ;;
  _run) run "${@:2}" ;;
  *)
    echo "error: unknown command '${1-}': must be setup, stop, start, status, outcome or logs" >&2
    exit 2
    ;;
esac
