#!/usr/bin/env bash
# Copies a prepared data set to a bucket, where runs on all machines can read it.
#
#   launch/data.sh [--dry-run] DIR gs://BUCKET/FOLDER
#
# DIR is a data directory of multipath_jax.prepare or TFDS. Files that exist in the bucket are not
# copied again. Train with --config.dataset.data_dir=gs://BUCKET/FOLDER; reading a bucket in the region
# of the machines is free. Needs the Google Cloud CLI.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SYNOPSIS='usage: data.sh [--dry-run] DIR gs://BUCKET/FOLDER'

main() {
  local paths=() argument source destination
  for argument; do
    case $argument in
      --dry-run) dry_run=1 ;;
      --help | -h)
        usage
        return
        ;;
      -*) usage_error "unknown argument '$argument'; $SYNOPSIS" ;;
      *) paths+=("$argument") ;;
    esac
  done
  ((${#paths[@]} == 2)) || usage_error "two arguments are required; $SYNOPSIS"
  source=${paths[0]}
  destination=${paths[1]}
  [[ $destination =~ ^gs://[^/]+/.+ ]] ||
    usage_error "invalid destination '$destination': must have the form gs://BUCKET/FOLDER"
  [[ -d $source ]] || usage_error "$source is not a directory"
  # TFDS: NAME/VERSION/ or NAME/CONFIG/VERSION/
  compgen -G "$source/*/*/dataset_info.json" >/dev/null ||
    compgen -G "$source/*/*/*/dataset_info.json" >/dev/null ||
    usage_error "no prepared data set in $source; see python -m multipath_jax.prepare --help"
  [[ $dry_run ]] || command -v gcloud >/dev/null || usage_error "gcloud is not installed"
  run gcloud storage rsync --recursive "$source" "$destination"
  echo "# --config.dataset.data_dir=$destination"
}

main "$@"
