#!/usr/bin/env bash
# Upgrades edge-daemon. The new release takes over only if it works:
#
#   sudo deploy/upgrade.sh [--wheelhouse DIR | --no-index] [--ready-within SECONDS] [--dry-run]
#   sudo deploy/upgrade.sh --back        go back to the release before this one
#
# The new release is made and tried while the old one runs: PyTorch, a caption with the built-in model, every
# configuration in /etc/edge-daemon. Then the service is restarted. If it is not ready within 900 s, dies, or does not
# stay up, the old release is started again; the service is then down for about two start-ups.
# Exit codes: 0 the new release runs, 2 wrong command line, 69 the old release runs, 77 not root.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=deploy/release.sh
. "$root/deploy/release.sh"

back=""
while [ $# -gt 0 ]; do
  case $1 in
    --wheelhouse | --ready-within) [ $# -ge 2 ] || fail "$1 needs a value" 2 ;;&
    --wheelhouse) wheelhouse=$2; shift ;;
    --no-index) wheelhouse=$root/dist ;;
    --ready-within) READY_WITHIN_S=$2; shift ;;
    --back) back=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown option $1; --help lists the options" 2 ;;
  esac
  shift
done
[[ $READY_WITHIN_S =~ ^[0-9]+$ ]] || fail "--ready-within: value '$READY_WITHIN_S': seconds are expected" 2

main() {
  local release current
  need_root
  current=$(readlink "$OPT/current") || fail "there is nothing to upgrade in $OPT: deploy/install.sh"
  if [ -n "$back" ]; then
    release=$OPT/$(readlink "$OPT/previous") || fail "there is no release before $current"
    is_whole "$release" || fail "${release##*/} is not whole any more, or made for another Python"
  else
    release=$(release_of "$root")
  fi
  if [ "${release##*/}" = "$current" ]; then
    if is_whole "$release"; then say "$current runs already"; return 0; fi
    say "$current is not whole, or made for another Python than this system has now: it is made anew"
  fi
  machine_is_fit
  is_whole "$release" || act "make ${release##*/} and try it" make_release "$root" "$release" ||
    fail "${release##*/} could not be made: see above; what runs was not switched"
  if [ -z "$dry_run" ] && ! configurations_are_good "$release"; then
    fail "${release##*/} does not take the configuration; nothing was changed, $current runs on"
  fi
  if [ "${release##*/}" = "$current" ]; then
    act "start the service with it" switch_to "$release" || fail "$current is not well here, and there is no other to go back to"
    return 0
  fi
  act "switch from $current to ${release##*/}" switch_to "$release" || fail "${release##*/} is not well here; $current is back"
  [ -z "$dry_run" ] || return 0
  drop_old_releases
  say "${release##*/} runs; deploy/upgrade.sh --back takes $current again"
}

main
