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

main() {
  local places=() word
  for word; do
    case $word in
      --dry-run) dry_run=1 ;;
      --help | -h)
        usage
        return
        ;;
      -*) misuse "unknown argument '$word': data.sh [--dry-run] DIR gs://BUCKET/FOLDER" ;;
      *) places+=("$word") ;;
    esac
  done
  ((${#places[@]} == 2)) || misuse "from where to where? data.sh DIR gs://BUCKET/FOLDER"
  [[ ${places[1]} =~ ^gs://[^/]+/.+ ]] || misuse "${places[1]} is not like gs://BUCKET/FOLDER"
  [[ -d ${places[0]} ]] || misuse "${places[0]} is not a folder"
  # TFDS: NAME/VERSION/ or NAME/CONFIG/VERSION/
  compgen -G "${places[0]}/*/*/dataset_info.json" >/dev/null ||
    compgen -G "${places[0]}/*/*/*/dataset_info.json" >/dev/null ||
    misuse "${places[0]} has no prepared data set: python -m multipath_jax.prepare --help"
  [[ $dry_run ]] || command -v gcloud >/dev/null || misuse "gcloud is not installed"
  run gcloud storage rsync --recursive "${places[@]}"
  echo "# --config.dataset.data_dir=${places[1]}"
}

main "$@"
