#!/usr/bin/env bash
# Checks that README.md and docs (or the files given) say what is true: every command is
# run, every output compared, every generated part made again. Safe to repeat.
#
#   ```sh                           is run in a clean shell; a status other than 0 fails
#   <!-- not run: REASON -->        above a ```sh block: it is not
#   <!-- output: exact -->          above a ```text block: what the last ```sh block printed
#   <!-- output: pattern -->        the same, where … stands for anything, also for many lines
#   <!-- generated: COMMAND -->     up to <!-- end -->: what COMMAND prints; --write puts it there
. "$(dirname "$0")/lib.sh"

readonly most_lines=149 first_command_by=15

main() {
  local write='' file bad=0
  if [[ ${1-} == --write ]]; then write=1 && shift; fi
  [[ ${1-} != -* ]] || die "$exit_usage" "unknown argument $1; usage: scripts/check-readme.sh [--write] [FILE…]"
  cd "$root"
  (($#)) || set -- README.md docs/*.md
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  for file in "$@"; do
    if [[ -n $write ]]; then
      regenerate "$file" >"$work/new" && cat "$work/new" >"$file"
    else
      [[ $file != README.md ]] || check_length "$file" || bad=1
      check_generated "$file" || bad=1
      check_commands "$file" || bad=1
    fi
  done
  return "$bad"
}

wrong() { # FILE LINE REASON
  printf '%s:%s: %s\n' "$@"
  return 1
}

check_length() {
  local lines first bad=0
  lines=$(wc -l <"$1")
  ((lines <= most_lines)) || wrong "$1" "$lines" "at most $most_lines lines" || bad=1
  first=$(grep -nm1 '^```sh$' "$1" | cut -d: -f1) || first=none
  [[ $first != none ]] && ((first <= first_command_by)) || wrong "$1" "$first" "the first command stands by line $first_command_by" || bad=1
  return "$bad"
}

# shellcheck disable=SC2094 # wrong prints the name of the file that is read
# regenerate FILE — FILE with what its generated parts should hold
regenerate() {
  local line command=''
  while IFS= read -r line; do
    if [[ -z $command || $line == '<!-- end -->' ]]; then
      [[ $line == '<!-- end -->' ]] && command=''
      printf '%s\n' "$line"
    fi
    if [[ $line =~ ^'<!-- generated: '(.*)' -->'$ ]]; then
      command=${BASH_REMATCH[1]}
      clean_shell "$command" </dev/null || wrong "$1" "$command" "failed" >&2 || return 1
    fi
  done <"$1"
  [[ -z $command ]] || wrong "$1" "$command" "no <!-- end --> follows" >&2
}

check_generated() {
  regenerate "$1" >"$work/new" || return 1
  diff -u --label "$1" --label "as generated" "$1" "$work/new" || wrong "$1" generated "stale: scripts/check-readme.sh --write $1"
}

# A reader's shell: nothing of ours is set in it. What go needs to find its
# modules stays.
clean_shell() {
  local keep
  mapfile -t keep < <(env | grep -E '^(HOME|PATH|TMPDIR|GO[A-Z0-9]*|CI)=')
  env -i LANG=C.UTF-8 "${keep[@]}" "$BASH" -euo pipefail -c "$1"
}

# shellcheck disable=SC2094 # as above
check_commands() {
  local line n=0 mark='' kind='' start block bad=0
  : >"$work/output"
  while IFS= read -r line; do
    n=$((n + 1))
    if [[ -n $kind ]]; then
      if [[ $line == '```' ]]; then
        "block_$kind" "$1" "$start" "$mark" "$block" || bad=1
        kind='' mark=''
      else
        block+=$line$'\n'
      fi
      continue
    fi
    case $line in
      '```sh') kind=sh start=$n block='' ;;
      '```'*) kind=other start=$n block='' ;;
      '<!-- not run: '*' -->' | '<!-- output: '*' -->') mark=$line ;;
      '') ;; # an empty line may stand between a mark and its block
      *) mark='' ;;
    esac
  done <"$1"
  [[ -z $kind ]] || wrong "$1" "$start" "a block without an end" || bad=1
  return "$bad"
}

block_sh() { # FILE LINE MARK BLOCK
  if [[ $3 =~ ^'<!-- not run: '(.+)' -->'$ ]]; then
    printf '%s:%s: not run: %s\n' "$1" "$2" "${BASH_REMATCH[1]}"
    return
  fi
  local began=$SECONDS
  if clean_shell "$4" >"$work/output" 2>"$work/errors" </dev/null; then
    printf '%s:%s: ok, %ds\n' "$1" "$2" $((SECONDS - began))
    return
  fi
  wrong "$1" "$2" "failed:" || tail -n 60 "$work/output" "$work/errors"
  return 1
}

block_other() { # FILE LINE MARK BLOCK
  local pattern
  case $3 in
    '<!-- output: exact -->') pattern=$(escaped <<<"$4") ;;
    '<!-- output: pattern -->') pattern=$(escaped <<<"$4" | sed 's/…/*/g') ;;
    *) return 0 ;;
  esac
  # shellcheck disable=SC2053 # a pattern on purpose
  [[ $(<"$work/output") == $pattern ]] && return
  wrong "$1" "$2" "the command prints something else:" || diff -u --label README --label printed <(printf '%s' "$4") "$work/output"
  return 1
}

# escaped — text that matches itself as a pattern
escaped() { sed 's/[][\\*?()|+@!]/\\&/g'; }

main "$@"
