#!/bin/bash
# in_root.sh ROOT CMD…: run a command in a root, with proc, dev and sys, in namespaces of its own: nothing stays mounted.
# Our edge_daemon/sources is /opt/sources there.
root=$(readlink -f "$1"); shift
export SOURCES=$(readlink -f "$(dirname "$0")/../../edge_daemon/sources")
exec unshare --mount --pid --fork --kill-child=KILL bash -c '
  set -e; root=$1; shift; mount --make-rprivate /
  mount --bind "$root" "$root"; cd "$root"
  mount -t proc proc proc; mount --rbind /dev dev; mount --rbind /sys sys; mount -t tmpfs tmpfs run
  touch etc/resolv.conf; mount --bind /etc/resolv.conf etc/resolv.conf
  mount --bind "$SOURCES" opt/sources
  exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8 "$@"' _ "$root" "$@"
