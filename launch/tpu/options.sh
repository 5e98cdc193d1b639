# shellcheck shell=bash
# Options of tpu_vm.sh: default values from the environment, parsing, checks, and derived variables.

name=${TPU_NAME-}
zone=${TPU_ZONE-}
project=${TPU_PROJECT-}
node_count=${TPU_NODE_COUNT:-1}
track=${TPU_TRACK:-ga}
accelerator=${TPU_TYPE:-v5litepod-8}
runtime=${TPU_RUNTIME-}
capacity=${TPU_CAPACITY:-spot}
valid_until=${TPU_VALID_UNTIL-}
repo=${TPU_REPO-}
ref=${TPU_REF-}
python=${TPU_PYTHON:-3.11}
grace=${TPU_GRACE:-120}
max_hours=${TPU_MAX_HOURS-}
retries=${TPU_RETRIES:-3}
worker=${TPU_WORKER:-0}
read -r -a ssh_flags <<<"${TPU_SSH_FLAGS-}"
read -r -a create_flags <<<"${TPU_CREATE_FLAGS-}"
lines=200
follow=
wait_for_tpu=
skip_prompt=
run_flags=()      # the flags of multipath_jax.main
common_options=() # the given options that all commands have, passed on by keep
setup_options=()  # the given options of setup, passed on by keep

parse_options() {
  local value
  while (($#)); do
    value=${1#*=}
    case $1 in
      --name=* | --zone=* | --project=* | --node-count=* | --ssh-flag=* | --release-track=*)
        common_options+=("$1")
        ;;
      --repo=* | --ref=* | --python=*) only_for "setup keep" "${1%%=*}" && setup_options+=("$1") ;;
      --accelerator-type=* | --runtime-version=* | --capacity=* | --valid-until-duration=* | \
        --create-flag=*) only_for "create keep" "${1%%=*}" ;;
      --max-hours=* | --retries=*) only_for keep "${1%%=*}" ;;
      --grace=*) only_for "train stop keep" "${1%%=*}" ;;
      --worker=* | --lines=*) only_for logs "${1%%=*}" ;;
    esac
    case $1 in
      --name=*) name=$value ;;
      --zone=*) zone=$value ;;
      --project=*) project=$value ;;
      --node-count=*) node_count=$value ;;
      --ssh-flag=*) ssh_flags+=("$value") ;;
      --release-track=*) track=$value ;;
      --dry-run) dry_run=1 ;;
      --accelerator-type=*) accelerator=$value ;;
      --runtime-version=*) runtime=$value ;;
      --capacity=*) capacity=$value ;;
      --valid-until-duration=*) valid_until=$value ;;
      --create-flag=*) create_flags+=("$value") ;;
      --wait) only_for create "$1" && wait_for_tpu=1 ;;
      --repo=*) repo=$value ;;
      --ref=*) ref=$value ;;
      --python=*) python=$value ;;
      --grace=*) grace=$value ;;
      --max-hours=*) max_hours=$value ;;
      --retries=*) retries=$value ;;
      --worker=*) worker=$value ;;
      --lines=*) lines=$value ;;
      -f) only_for logs "$1" && follow=1 ;;
      --yes) only_for delete "$1" && skip_prompt=1 ;;
      --help | -h)
        usage
        exit
        ;;
      --)
        only_for "train keep" "$1"
        (($# > 1)) || usage_error "flags are required after --"
        run_flags=("${@:2}")
        return
        ;;
      *) usage_error "unknown argument '$1'; --help lists the options" ;;
    esac
    shift
  done
}

# Checks that the command is one of those that have an option. Arguments: the commands, the option.
only_for() {
  [[ " $1 " == *" $command "* ]] || usage_error "$2 is not an option of $command, but of ${1// /, }"
}

check_options() {
  local name_pattern='^[a-z]([-a-z0-9]*[a-z0-9])?$'
  local zone_pattern='^[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]$'
  [[ $name ]] || usage_error "--name=NAME or TPU_NAME is required"
  [[ $zone ]] || usage_error "--zone=ZONE or TPU_ZONE is required"
  [[ $name =~ $name_pattern ]] ||
    usage_error "invalid --name=$name: must start with a lower-case letter," \
      "and contain only lower-case letters, digits and hyphens"
  [[ $zone =~ $zone_pattern ]] ||
    usage_error "invalid --zone=$zone: must be a zone such as us-west4-a or us-central1-ai1a"
  [[ $project =~ ^[-a-z0-9:.]*$ ]] || usage_error "invalid --project=$project: must be a project ID"
  check_positive "--node-count=$node_count"
  [[ $track == ga || $track == alpha ]] ||
    usage_error "invalid --release-track=$track: must be ga or alpha"
  check_gcloud_flags --ssh-flag "${ssh_flags[@]}"
  check_gcloud_flags --create-flag "${create_flags[@]}"
  [[ $capacity == @(spot|on-demand|reserved) ]] ||
    usage_error "invalid --capacity=$capacity: must be spot, on-demand or reserved"
  [[ $valid_until =~ ^([0-9]+[smhdw])*$ ]] ||
    usage_error "invalid --valid-until-duration=$valid_until: must be a duration such as 6h"
  [[ $python =~ ^3\.(1[1-9]|[2-9][0-9])$ ]] ||
    usage_error "invalid --python=$python: must be 3.N, 3.11 or newer"
  check_integer "--grace=$grace"
  check_integer "--retries=$retries"
  check_integer "--worker=$worker"
  check_integer "--lines=$lines"
  [[ ! $repo || $ref ]] || usage_error "--repo requires --ref=REF, a commit, tag or branch"
  [[ $repo || ! $ref ]] || usage_error "--ref requires --repo=URL"
  # git would parse them as options.
  [[ $repo != -* && $ref != -* ]] || usage_error "--repo and --ref must not begin with a hyphen"
  [[ $command != @(create|keep) ]] || check_accelerator
  [[ $command != keep ]] || check_max_hours
}

# Checks an argument --OPTION=NUMBER.
check_integer() {
  [[ ${1#*=} =~ ^[0-9]+$ ]] || usage_error "invalid $1: must be a non-negative integer"
}

# Checks flags for gcloud. Arguments: the option of tpu_vm.sh, and its values.
check_gcloud_flags() {
  local flag
  for flag in "${@:2}"; do
    [[ $flag == --?* ]] ||
      usage_error "invalid $1=$flag: must have the form $1=--FLAG or $1=--FLAG=VALUE"
  done
}

# Checks the type, and sets the default runtime version for it.
check_accelerator() {
  [[ $accelerator != v5e-* ]] ||
    usage_error "invalid --accelerator-type=$accelerator: use v5litepod-${accelerator#*-}"
  [[ $accelerator =~ ^[a-z0-9]+-[0-9]+$ ]] ||
    usage_error "invalid --accelerator-type=$accelerator: must be a type such as v5litepod-16"
  [[ $runtime ]] || case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) usage_error "--runtime-version=NAME is required for --accelerator-type=$accelerator" ;;
  esac
  [[ $runtime =~ ^[-a-z0-9.]+$ ]] ||
    usage_error "invalid --runtime-version=$runtime: must be a version such as v2-alpha-tpuv5-lite"
}

check_max_hours() {
  [[ $max_hours ]] || usage_error "--max-hours=HOURS or TPU_MAX_HOURS is required"
  [[ $max_hours =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
    usage_error "invalid --max-hours=$max_hours: must be a number of hours"
}

# Sets the variables that depend on the options:
#   gcloud          the start of all gcloud commands
#   location_flags  --zone and --project, for all gcloud commands
#   nodes           the names of the TPU VMs
#   create_flags    with the flags for the capacity
#   state_folder    the folder for files about this TPU
set_derived_variables() {
  local i
  gcloud=(gcloud compute tpus)
  [[ $track == ga ]] || gcloud=(gcloud "$track" compute tpus)
  location_flags=(--zone="$zone")
  [[ ! $project ]] || location_flags+=(--project="$project")
  nodes=("$name")
  ((node_count == 1)) || for ((i = 0; i < node_count; i++)); do nodes[i]=$name-$i; done
  case $capacity in
    spot) create_flags=(--spot "${create_flags[@]}") ;;
    reserved) create_flags=(--reserved "${create_flags[@]}") ;;
  esac
  [[ ! $valid_until ]] || create_flags+=(--valid-until-duration="$valid_until")
  state_folder=${XDG_STATE_HOME:-$HOME/.local/state}/multipath_jax/tpu/${project:-default}.$zone.$name
}
