# shellcheck shell=bash
# What the scripts of this folder share: they source it, after `set -euo pipefail`.
# tpu_worker.sh and slurm.sbatch do not: they run as copies, away from this folder.

# shellcheck disable=SC2034 # the scripts use it
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run= # not empty: `run` prints

misuse() {
  echo "error: $1" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 1
}

# The comment at the head of the script.
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; }

# The words as a line that a shell reads back as the same words.
quote() {
  local word line="" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"$escaped"}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command; in a dry run prints it.
run() {
  if [[ $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}

# The argument is --OPTION=NUMBER.
positive() { [[ ${1#*=} =~ ^[1-9][0-9]*$ ]] || misuse "$1: a whole number from 1"; }
