#!/usr/bin/env bash
# Removes edge-daemon from this machine:
#
#   sudo deploy/uninstall.sh [--purge] [--dry-run]
#
# Kept: the configuration (/etc/edge-daemon, and your own drop-ins), models, unsent results and the list of captioned files
# (/var/lib/edge-daemon), the user. --purge removes these as well. Pictures in the folders of the sources, Debian packages
# and what the broker has retained are kept in any case.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=deploy/release.sh
. "$root/deploy/release.sh"

purge=""
for option in "$@"; do
  case $option in
    --purge) purge=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown option $option; --help lists the options" 2 ;;
  esac
done
need_root
! debian_has edge-daemon ||
  fail "edge-daemon came as a Debian package: sudo apt-get remove edge-daemon (or purge)"
act "stop the service; remove $OPT, the units and the command edge-daemon" remove_program
if [ -n "$purge" ]; then
  act "remove configuration, models, results that were not sent, and the user" remove_data
else
  say "kept: $ETC and $STATE; --purge removes them"
fi
