# Shared by the scripts of this folder: `. "$(dirname "$0")/lib.sh"`.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

may_install || die "$exit_set_up" "needs root on Debian"

# begin — the engine, and $work, a folder that goes with the script
begin() {
  "$(dirname "$0")/docker-engine"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
}

# rootfs SUITE IMAGE PACKAGE… — a minimal Debian with these packages as an image
rootfs() {
  local mirror packages
  have_image "$2" && return
  need debootstrap debootstrap
  say "Debian $1 with ${*:3}"
  # shellcheck disable=SC2016 # apt's own variable
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sed -n 1p)
  packages=$(IFS=, && echo "${*:3}")
  # New suites share sid's bootstrap script, which an older debootstrap does
  # not know under their names.
  quietly debootstrap --variant=minbase --include="$packages" "$1" "$work/root" "$mirror" /usr/share/debootstrap/scripts/sid
  tar -C "$work/root" --exclude='./var/cache/apt/archives/*.deb' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/locale/*' --exclude='./var/lib/apt/lists/*' --exclude='./usr/lib/*/libLLVM*' --exclude='./usr/lib/*/libz3*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . |
    docker import - "$2" >/dev/null
  rm -rf "$work/root"
}

# build IMAGE FOLDER [OPTION…] — BuildKit is not in Debian's docker.io
build() { DOCKER_BUILDKIT=0 quietly docker build --tag "$1" "${@:3}" "$2"; }
