# Shared by the scripts of this folder: `. "$(dirname "$0")/lib.sh"`.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

may_install || die "$exit_set_up" "needs root on Debian"

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

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
