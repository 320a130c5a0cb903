#!/bin/bash
# in_root.sh ROOT CONFIG CMD…: run a command in a root, in namespaces of its own: nothing stays mounted. The network is
# ours. The directory CONFIG is /opt/config there.
root=$(readlink -f "$1"); export CONFIG=$(readlink -f "$2"); shift 2
exec unshare --mount --pid --fork --kill-child=TERM bash -c '
  set -e; root=$1; shift; mount --make-rprivate /
  mount --bind "$root" "$root"; mount --bind "$CONFIG" "$root/opt/config"; cd "$root"
  mount -t proc proc proc; mount --rbind /dev dev; mount --rbind /sys sys; mount -t tmpfs tmpfs run
  touch etc/resolv.conf; mount --bind /etc/resolv.conf etc/resolv.conf
  exec chroot "$root" /usr/bin/env -i PATH=/opt/ha/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8 "$@"' \
  _ "$root" "$@"
