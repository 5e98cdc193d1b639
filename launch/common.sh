# shellcheck shell=bash
# Functions shared by the scripts in this folder, which source it after `set -euo pipefail`.
# tpu_worker.sh and slurm.sbatch do not, since they run as copies outside of this folder.

# shellcheck disable=SC2034 # used by the scripts
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run= # if not empty, `run` only prints commands

fail() {
  echo "error: $*" >&2
  exit 1
}

# For errors in the command line.
usage_error() {
  echo "error: $*" >&2
  exit 2
}

# Prints the comment at the top of the script.
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

# Quotes words for a shell.
quote() {
  local word line="" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"$escaped"}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it in a dry run.
run() {
  if [[ $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# Checks an argument --OPTION=NUMBER.
check_positive() {
  [[ ${1#*=} =~ ^[1-9][0-9]*$ ]] || usage_error "invalid $1: must be a positive integer"
}
