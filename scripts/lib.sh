# Shared by the scripts of this folder: `. "$(dirname "$0")/lib.sh"`. What is
# missing is installed where we may, and otherwise named with the command that
# mends it.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
export PATH="$PATH:/usr/sbin:/usr/local/go/bin" # where Debian puts rabbitmq-server, and Go's own installer puts go

# Exit statuses, the lab's own.
readonly exit_set_up=3 exit_usage=64

say() { printf '▸ %s\n' "$*" >&2; }

# die STATUS MESSAGE — one line, and out
die() {
  printf '%s: %s\n' "${0##*/}" "$2" >&2
  exit "$1"
}

have() { command -v "$1" >/dev/null; }

# quietly COMMAND… — its output only if it fails
quietly() {
  local log
  log=$(mktemp)
  "$@" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "$exit_set_up" "$1: failed, see above"
  }
  rm -f "$log"
}

may_install() { [[ $EUID == 0 ]] && have apt-get; }

# need COMMAND PACKAGE… — installs the packages where COMMAND is missing
need() {
  local command=$1
  shift
  have "$command" && return
  may_install || die "$exit_set_up" "$command is missing: sudo apt-get install --no-install-recommends $*"
  say "installing $*"
  install_packages "$@"
}

# install_packages PACKAGE… — in a subshell, so that the trap is its own
install_packages() (
  # A freshly installed server must not start: it would take the ports of a
  # broker that somebody else may want. Debian asks this file first.
  local policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "$exit_set_up" "apt-get install $*: failed, see above"
  fi
  rm -f "$log"
)

need_go() { have go || die "$exit_set_up" "go is missing: https://go.dev/doc/install, 1.21 or newer (it fetches the version that go.work asks for)"; }

# tool NAME ARGUMENT… — one of the tools that tools/go.mod pins. It refuses a
# workspace, and so do the checks that it runs: every module stands alone.
tool() { GOWORK=off go tool -modfile="$root/scripts/tools/go.mod" "$@"; }

# kind ARGUMENT… — file arguments are absolute
kind() { GOWORK=off go -C "$root/scripts/tools" tool kind "$@"; }

# build_lab — builds the lab and sets $lab. `go run` would turn each of its
# exit statuses into 1.
build_lab() {
  need_go
  lab=$root/.bin/lab
  (cd "$root" && go build -o "$lab" ./services/lab) || die "$exit_set_up" "the lab does not build, see above"
}

# The lab's word for where a RabbitMQ of that version comes from.
kind_of() {
  case $1 in
    3.10) echo process ;;
    4.3) echo container ;;
    *) die "$exit_usage" "--broker $1: want 3.10 or 4.3" ;;
  esac
}

# need_broker 3.10|4.3 — makes sure that the lab can start that RabbitMQ. Says
# why and returns 1 if there is no way to have a container.
need_broker() {
  case $(kind_of "$1") in
    process) need rabbitmq-server rabbitmq-server ;;
    container) need_container ;;
  esac
}

engine_answers() { have docker && docker version >/dev/null 2>&1; }

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# need_engine — makes sure that a Docker engine answers. Says why and returns 1
# if there is no way to have one.
need_engine() {
  engine_answers && return
  if ! may_install; then
    say "no Docker engine answers; start one, or as root on Debian: scripts/airgap/docker-engine"
    return 1
  fi
  "$root/scripts/airgap/docker-engine" >&2
}

# need_image VARIABLE IMAGE AIRGAP RECIPE — exports in VARIABLE the name of an
# image that is there: the one that VARIABLE names already, or AIRGAP, built
# earlier, or IMAGE, pulled, or AIRGAP after all, built by scripts/airgap/RECIPE.
need_image() {
  local image
  for image in ${!1:-"$3" "$2"}; do
    have_image "$image" && export "$1=$image" && return
  done
  image=${!1:-$2}
  say "pulling $image"
  if docker pull --quiet "$image" >/dev/null 2>&1; then
    export "$1=$image"
  elif [[ -n ${!1-} ]]; then
    say "$1=$image: not here, and no registry has it"
    return 1
  elif ! may_install; then
    say "no registry answers; as root on Debian: scripts/airgap/$4"
    return 1
  else
    "$root/scripts/airgap/$4" >&2 && export "$1=$3"
  fi
}

readonly rabbitmq_airgap=(rabbitmq:4-management-airgap rabbitmq-image)

# The lab takes whichever of the two names is there, and no other.
need_container() { need_engine && RABBITMQ_IMAGE='' need_image RABBITMQ_IMAGE "$(lab_rabbitmq_image)" "${rabbitmq_airgap[@]}"; }

# need_cluster_images — an engine, and in KIND_NODE_IMAGE, RABBITMQ_IMAGE and
# POSTGRES_IMAGE what a kind cluster is made of. Says why and returns 1 if there
# is no way to have them.
need_cluster_images() {
  need_go
  need_engine &&
    need_image KIND_NODE_IMAGE "$(default_node_image)" kindest/node:v1.34.2-airgap node-image &&
    need_image RABBITMQ_IMAGE "$(chart_rabbitmq_image)" "${rabbitmq_airgap[@]}" &&
    need_image POSTGRES_IMAGE "$(chart_postgres_image)" postgres:15-airgap postgres-image
}

# What the charts pull, and what the lab does on one machine.
chart_rabbitmq_image() { sed -n 's/^  repository: //p; s/^  tag: //p' "$root/charts/rabbitmq/values.yaml" | paste -s -d : -; }
chart_postgres_image() { sed -n 's/^  image: //p' "$root/charts/warren/values.yaml"; }
lab_rabbitmq_image() { sed -n 's/^var DefaultImages = .*"\(.*\)"}$/\1/p' "$root/services/lab/substrate/local/launcher.go"; }

# kind_source — the folder of kind's module, as tools/go.mod pins it
kind_source() { GOWORK=off go list -C "$root/scripts/tools" -f '{{.Dir}}' sigs.k8s.io/kind; }

default_node_image() { sed -n 's/^const Image = "\(.*\)"/\1/p' "$(kind_source)/pkg/apis/config/defaults/image.go"; }
