#!/bin/bash
# on_board.sh pi4|pi5 ROOT TMP CMD…: run a command of an arm64 ROOT as on that board, TMP being its /tmp; as root.
# It and what it starts run in qemu, in namespaces of their own. Nothing is registered on this machine: binfmt_misc is
# the namespace's, which takes Linux 6.7 or newer. ROOT/opt/board is where /proc/cpuinfo and /sys come from.
set -eu
me=$(readlink -f "$0")
case ${1-} in
  --in-user-namespace)  # it has no uid map yet: wait until the parent has written it
    read -r _ <&7; exec 7<&-
    exec setpriv --pdeathsig KILL \
      unshare --mount --pid --net --fork --kill-child=KILL --setuid 0 --setgid 0 bash "$me" --on-board "${@:2}" ;;
  --on-board)
    board=$2 root=$3 tmp=$4; shift 4
    ip link set lo up
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || { echo "$me: needs Linux 6.7 or newer" >&2; exit 69; }
    # the magic number and its mask as QEMU's own qemu-binfmt-conf.sh has them; F: opened now, so it works in any root
    printf %s ':aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' >/proc/sys/fs/binfmt_misc/register
    mount --bind "$root" "$root"; cd "$root"
    mount --rbind /proc proc; mount --rbind /dev dev; mount -t tmpfs tmpfs run
    mount --bind "$tmp" tmp
    mount --bind "opt/boards/$board/sys" sys
    mount --bind "opt/boards/$board/cpuinfo" proc/cpuinfo
    case $board in pi4) cpu=cortex-a72 ;; pi5) cpu=cortex-a76 ;; esac
    rc=0  # not exec: what a test orphans is this process's to reap, as init's anywhere else
    chroot . /usr/bin/env -i QEMU_CPU="$cpu" PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
      LANG=C.UTF-8 OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1 "$@" || rc=$?
    exit $rc ;;
esac
pipe=$(mktemp -u); mkfifo "$pipe"; exec 7<>"$pipe"; rm "$pipe"
unshare --user bash "$me" --in-user-namespace "$@" <&0 &
pid=$!
trap 'kill -KILL $pid 2>/dev/null' EXIT; trap 'exit 143' TERM; trap 'exit 130' INT
while [ "$(readlink "/proc/$pid/ns/user")" = "$(readlink /proc/self/ns/user)" ]; do sleep 0.02; done
echo '0 0 65536' >"/proc/$pid/uid_map"; echo '0 0 65536' >"/proc/$pid/gid_map"
echo go >&7; exec 7>&-
rc=0; wait $pid || rc=$?
trap - EXIT; exit $rc
