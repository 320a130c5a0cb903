#!/bin/bash
# run-in-systemd.sh — run one command under a REAL systemd (PID 1), on a machine whose own PID 1 may be
# something else, without building a root filesystem first.
#
#   run-in-systemd.sh [OPTIONS] [--] CMD [ARG…]
#
# What it does
#   * takes fresh pid, mount, uts, ipc, cgroup and net namespaces (the network: only lo, up);
#   * mounts an overlay: lower = this machine's own /, upper = a tmpfs that vanishes with the namespace;
#   * gives it private /proc, /sys, /dev, /run and its own cgroup subtree(s) — cgroup v1 "hybrid"
#     (systemd 252 can use it) or cgroup v2, whichever the machine has;
#   * execs /lib/systemd/systemd as PID 1 there, with a small target that runs CMD as a service,
#     in the caller's directory with the caller's exported environment, as root;
#   * CMD may drop unit files in /etc/systemd/system or /run/systemd/system, run systemctl,
#     journalctl, systemd-run …: all of it real, all of it gone afterwards;
#   * the machine's own timers, sockets and services stay off;
#   * CMD's stdout and stderr come out on ours; its exit status is our exit status.
#
# Options
#   --timeout SEC     whole run, boot included (default 300); then everything is killed, exit 124
#   --ro DIR          bind-mount DIR read-only (repeatable). Needed only for directories that are on
#                     another file system than / (the caller's directory is bound by itself then).
#   --check           only tell (exit status 0/69) whether this machine can do it
#
# Exit status: CMD's own; 124 time-out; 69 this machine cannot do it (said on stderr); 70 systemd did
# not start or died before CMD finished; 64 usage.
#
# Needs root, util-linux (unshare, mount, pivot_root, setpriv), iproute2 (ip), coreutils (mknod), overlayfs,
# and the package systemd (it need not be running).
set -u -o pipefail
me=run-in-systemd
say() { printf '%s: %s\n' "$me" "$*" >&2; }
self=$(readlink -f "${BASH_SOURCE[0]}")

# ---------------------------------------------------------------------------------------------------
# Stage 2: inside the new namespaces, PID 1 of the new pid namespace. Builds the root, then execs
# systemd. Gets its settings from the environment (RIS_*), set by stage 1.
# ---------------------------------------------------------------------------------------------------
if [ "${1-}" = --ris-stage2 ]; then
  set -e
  T=$RIS_T                       # the run's own directory on the machine (fifos, env, CMD, status)
  # cgroup v2: no process may stay in the cgroup that becomes PID 1's root, or no controller can be enabled below
  # it; so the waiting 'unshare' outside is moved out first, and says so
  if [ "$RIS_CG" = v2 ]; then for i in $(seq 200); do [ -e "$T/go" ] && break; sleep 0.05; done; fi
  mount --make-rprivate /
  R=$T/root                      # mount point of the new root; everything under $T/m is in a tmpfs
  mount -t tmpfs -o "size=1g,mode=0755" ris-upper "$T/m"
  mkdir "$T/m/upper" "$T/m/work"
  mount -t overlay -o "lowerdir=/,upperdir=$T/m/upper,workdir=$T/m/work" ris-root "$R"
  # --- API file systems ---
  mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
  # the machine's sysctls are not ours to write; systemd copes (as in any container)
  for p in sys sysrq-trigger; do
    [ -e "$R/proc/$p" ] && mount --bind "$R/proc/$p" "$R/proc/$p" && mount -o remount,bind,ro "$R/proc/$p"
  done
  mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$R/sys"
  mount -t tmpfs -o mode=0755,nosuid,strictatime,size=4m ris-dev "$R/dev"
  for n in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $n; mknod -m 0666 "$R/dev/$1" c "$2" "$3"
  done
  ln -s /proc/self/fd "$R/dev/fd"; ln -s /proc/self/fd/0 "$R/dev/stdin"
  ln -s /proc/self/fd/1 "$R/dev/stdout"; ln -s /proc/self/fd/2 "$R/dev/stderr"
  mkdir "$R/dev/shm" "$R/dev/pts" "$R/dev/mqueue"
  mount -t tmpfs -o mode=1777,nosuid,nodev ris-shm "$R/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$R/dev/pts"
  ln -s pts/ptmx "$R/dev/ptmx"
  mount -t tmpfs -o mode=0755,nosuid,nodev ris-run "$R/run"
  # --- cgroups: mounted from inside the new cgroup namespace, so that "/" is our own subtree ---
  if [ "$RIS_CG" = v2 ]; then
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
  else
    mount -t tmpfs -o mode=0755,nosuid,nodev,noexec ris-cg "$R/sys/fs/cgroup"
    for c in $RIS_CTRL; do
      mkdir "$R/sys/fs/cgroup/$c"
      mount -t cgroup -o "nosuid,nodev,noexec,$c" cgroup "$R/sys/fs/cgroup/$c"
    done
    mkdir "$R/sys/fs/cgroup/systemd" "$R/sys/fs/cgroup/unified"
    mount -t cgroup -o nosuid,nodev,noexec,none,name=systemd cgroup "$R/sys/fs/cgroup/systemd"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup/unified"
  fi
  # --- directories of the machine that CMD sees as they are ---
  while read -r d; do
    [ -n "$d" ] || continue
    mkdir -p "$R$d"
    mount --rbind "$d" "$R$d"
    mount -o remount,bind,ro "$R$d"
  done < "$T/binds"
  # --- the run's own directory: fifos and status ---
  mkdir "$R/run/ris"; mount --bind "$T/x" "$R/run/ris"
  # --- a private hostname and machine id ---
  hostname ris 2>/dev/null || true
  # --- units ---
  U=$R/etc/systemd/system
  rm -f "$R/etc/machine-id"; printf '%s\n' "$(tr -d - < /proc/sys/kernel/random/uuid)" > "$R/etc/machine-id"
  # everything enabled on the machine stays off, but what systemd itself needs
  for u in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
           systemd-udev-trigger.service systemd-udev-settle.service systemd-timesyncd.service systemd-pstore.service \
           systemd-networkd.service systemd-resolved.service systemd-journald-audit.socket \
           systemd-firstboot.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
           systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
           dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
           sys-fs-fuse-connections.mount getty.target timers.target remote-fs.target \
           e2scrub_reap.service keyboard-setup.service console-setup.service kmod-static-nodes.service \
           systemd-hwdb-update.service ldconfig.service systemd-random-seed.service \
           tmp.mount docker.socket containerd.service polkit.service ; do
    ln -sfn /dev/null "$U/$u"
  done
  : > "$R/etc/fstab"
  # systemd-tmpfiles would empty /tmp and /var/tmp of the overlay (the checkout may be there)
  mkdir -p "$R/etc/tmpfiles.d"; ln -sfn /dev/null "$R/etc/tmpfiles.d/tmp.conf"
  mkdir -p "$R/etc/systemd/system.conf.d" "$R/etc/systemd/journald.conf.d"
  printf '[Manager]\nDefaultTimeoutStopSec=%s\nCrashReboot=no\nCrashShell=no\n' 10s > "$R/etc/systemd/system.conf.d/ris.conf"
  printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitIntervalSec=0\nForwardToConsole=no\nForwardToWall=no\nForwardToSyslog=no\n' \
    > "$R/etc/systemd/journald.conf.d/ris.conf"
  printf '[Unit]\nDescription=run-in-systemd target\nRequires=basic.target\nWants=ris-cmd.service\nAfter=basic.target\nAllowIsolate=yes\n' > "$U/ris.target"
  cat > "$U/ris-cmd.service" <<U
[Unit]
Description=The command given to run-in-systemd.sh
Requires=basic.target
Wants=dbus.service
After=basic.target dbus.service
# The exit status of the main process becomes the exit status of PID 1, and so ours.
SuccessAction=exit-force
FailureAction=exit-force
StartLimitIntervalSec=0
[Service]
# exec, not oneshot: with oneshot the boot's start job would stay queued while CMD runs, and
# 'systemctl is-system-running --wait' inside CMD would never return.
Type=exec
ExecStart=/bin/bash /run/ris/cmd.sh
ExecStopPost=/bin/sh /run/ris/stop.sh
KillMode=mixed
TimeoutStopSec=10
LimitNOFILE=524288
U
  mkdir -p "$R$T/old"
  # --- swap roots. pivot_root, not chroot: mount namespaces of sandboxed units then start at our root
  cd "$R"
  mkdir -p "$R/run/old-root"
  pivot_root . run/old-root
  cd /
  umount -l /run/old-root && rmdir /run/old-root
  # on a machine PID 1 does this itself, in a container it leaves it to whoever made it; credentials need it
  mount --make-rshared /
  ip link set lo up
  # systemd 256 and 257 start on cgroup v1/hybrid only when told so; in a container PID 1's own arguments are its
  # kernel command line. (258 and later do not: they need a cgroup v2 machine.)
  RIS_ARGS=''; [ "$RIS_CG" = v2 ] || RIS_ARGS=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
  caps=""
  for c in sys_time sys_module; do caps="$caps,-$c"; done
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=ris LANG="${LANG-C.UTF-8}" \
    setpriv --bounding-set "${caps#,}" --inh-caps "${caps#,}" \
    "$RIS_SYSTEMD" $RIS_ARGS --system --unit=ris.target --log-target=journal-or-kmsg --show-status=no --crash-reboot=no \
    </dev/null >/dev/null 2>&1
fi

# ---------------------------------------------------------------------------------------------------
# Stage 0/1: on the machine.
# ---------------------------------------------------------------------------------------------------
timeout=300 check=no
binds=()
while [ $# -gt 0 ]; do
  case $1 in
    --timeout) timeout=$2; shift 2 ;;
    --ro) binds+=("$(readlink -f "$2")"); shift 2 ;;
    --check) check=yes; shift ;;
    -h|--help) sed -n '2,/^set -u/p' "$self" | sed 's/^# \{0,1\}//;$d'; exit 0 ;;
    --) shift; break ;;
    -*) say "unknown option $1"; exit 64 ;;
    *) break ;;
  esac
done
[ "$check" = yes ] || [ $# -gt 0 ] || { say "no command given"; exit 64; }
case $timeout in ''|*[!0-9]*) say "--timeout takes whole seconds"; exit 64 ;; esac

cannot() { say "cannot run systemd here: $*"; exit 69; }
[ "$(id -u)" = 0 ] || cannot "not root"
for t in unshare mount pivot_root setpriv ip mknod; do command -v $t >/dev/null || cannot "no $t"; done
sysd=''
for s in /lib/systemd/systemd /usr/lib/systemd/systemd; do [ -x $s ] && { sysd=$s; break; }; done
[ -n "$sysd" ] || cannot "package systemd is not installed"
grep -qw overlay /proc/filesystems || cannot "no overlayfs in this kernel"
unshare --mount --pid --fork --uts --ipc --cgroup --net /bin/sh -c 'mount --make-rprivate / && mount -t tmpfs ris /tmp &&
  mkdir /tmp/u /tmp/w /tmp/m && mount -t overlay -o lowerdir=/,upperdir=/tmp/u,workdir=/tmp/w ris /tmp/m' 2>/dev/null ||
  cannot "not allowed to make namespaces or an overlay of /"
# which cgroups?
cg='' ctrl=''
if [ "$(stat -f -c %T /sys/fs/cgroup 2>/dev/null)" = cgroup2fs ]; then
  cg=v2
else
  # v1/hybrid: use each controller hierarchy that is mounted, the v2 one and name=systemd
  for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
    [ -d /sys/fs/cgroup/$c ] && [ -e /sys/fs/cgroup/$c/cgroup.procs ] && ctrl="$ctrl $c"
  done
  if [ -e /sys/fs/cgroup/unified/cgroup.procs ] && [ -e /sys/fs/cgroup/systemd/cgroup.procs ]; then cg=hybrid; fi
fi
[ -n "$cg" ] || cannot "no usable cgroup mounts under /sys/fs/cgroup"
[ "$check" = yes ] && { say "can run: $("$sysd" --version | head -1), cgroup $cg${ctrl:+, controllers$ctrl}"; exit 0; }

# --- what a run that was itself killed with SIGKILL left behind (its processes die with it, see --pdeathsig) ---
for d in /sys/fs/cgroup/ris-*-* $(for c in $ctrl systemd unified; do p=$(awk -F: -v h="$c" '{n=split($2,a,","); for(i=1;i<=n;i++) if(a[i]==h||a[i]=="name="h||(h=="unified"&&$1=="0")){print $3; exit}}' /proc/self/cgroup); echo "/sys/fs/cgroup/$c${p%/}"/ris-*-*; done); do
  [ -d "$d" ] || continue
  o=${d##*/ris-}; [ -d "/proc/${o%%-*}" ] || find "$d" -depth -type d -exec rmdir {} + 2>/dev/null
done
for d in "${TMPDIR:-/tmp}"/ris.*; do [ -e "$d/pid" ] && ! [ -d "/proc/$(cat "$d/pid")" ] && rm -rf --one-file-system "$d"; done

# --- the run's directory ---
T=$(mktemp -d "${TMPDIR:-/tmp}/ris.XXXXXX") || exit 70
echo $$ > "$T/pid"; mkdir "$T/m" "$T/root" "$T/x"; mkfifo "$T/x/out" "$T/x/err"
# directories on another file system than /: bind the caller's directory's file system in
rootdev=$(stat -c %d /)
here=$(pwd -P)
if [ "$(stat -c %d "$here")" != "$rootdev" ]; then binds=("$(stat -c %m "$here")" "${binds[@]+"${binds[@]}"}"); fi
printf '%s\n' "${binds[@]+"${binds[@]}"}" > "$T/binds"
# CMD, its directory and its environment
{
  printf 'exec </dev/null >/run/ris/out 2>/run/ris/err\n'
  # not those that would mislead systemd's own tools
  export -p | grep -Ev '^declare -x (NOTIFY_SOCKET|WATCHDOG_|INVOCATION_ID|JOURNAL_STREAM|LISTEN_|SYSTEMD_|MAINPID|TMPDIR|XDG_RUNTIME_DIR|OLDPWD|PWD)'
  printf 'cd %q || exit 70\n' "$here"
  printf 'exec'; printf ' %q' "$@"; printf '\n'
} > "$T/x/cmd.sh"

# run by systemd when CMD has ended, however it ended: systemd tells how in $EXIT_CODE/$EXIT_STATUS
cat > "$T/x/stop.sh" <<'S'
echo "$EXIT_CODE $EXIT_STATUS" >/run/ris/done
S

# --- our own cgroup(s), below the caller's own ---
name=ris-$$-$RANDOM
cgdirs=()
mkcg() { mkdir "$1/$name" && cgdirs+=("$1/$name"); }
own() { # own HIERARCHY: the caller's cgroup there
  awk -F: -v h="$1" '(h=="" && $1=="0"){print $3; exit} {n=split($2,a,","); for(i=1;i<=n;i++) if(h!="" && a[i]==h){print $3; exit}}' /proc/self/cgroup; }
if [ $cg = v2 ]; then
  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do
    grep -qw "$c" /sys/fs/cgroup/cgroup.subtree_control || echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
  done
  mkcg /sys/fs/cgroup
else
  for c in $ctrl; do
    p=$(own $c); mkcg "/sys/fs/cgroup/$c${p%/}"
    if [ $c = cpuset ]; then d=/sys/fs/cgroup/$c${p%/}; cat "$d/cpuset.cpus" > "$d/$name/cpuset.cpus"; cat "$d/cpuset.mems" > "$d/$name/cpuset.mems"; echo 1 > "$d/$name/cgroup.clone_children"; fi
  done
  p=$(own name=systemd); mkcg "/sys/fs/cgroup/systemd${p%/}"
  p=$(own ''); mkcg "/sys/fs/cgroup/unified${p%/}"
fi

upid='' wd='' readers=()
cleanup() {
  trap - EXIT
  [ -z "$upid" ] || kill -KILL "$upid" 2>/dev/null     # unshare --kill-child: PID 1 and all below die with it
  # whatever is still in our cgroups (nothing, normally)
  for d in "${cgdirs[@]+"${cgdirs[@]}"}"; do
    for i in 1 2 3 4 5 6 7 8 9 10; do
      left=$(find "$d" -name cgroup.procs -exec cat {} + 2>/dev/null | head -200)
      [ -n "$left" ] || break
      kill -KILL $left 2>/dev/null; sleep 0.1
    done
    find "$d" -depth -type d -exec rmdir {} + 2>/dev/null
    [ ! -d "$d" ] || say "could not remove cgroup $d"
  done
  for r in $wd "${readers[@]+"${readers[@]}"}"; do kill "$r" 2>/dev/null; done
  rm -rf --one-file-system "$T"
  return 0
}
trap cleanup EXIT
trap 'exit 143' TERM; trap 'exit 130' INT; trap 'exit 129' HUP

# our stdout and stderr; opened read-write here so that neither end blocks or ends early
exec 8<>"$T/x/out" 9<>"$T/x/err"
cat <"$T/x/out" 8>&- 9>&- & readers+=($!)
cat <"$T/x/err" >&2 8>&- 9>&- & readers+=($!)

nsflags=(--pid --fork --kill-child=KILL --mount --uts --ipc --cgroup --net)
(
  exec 8>&- 9>&-
  for d in "${cgdirs[@]}"; do echo $BASHPID > "$d/cgroup.procs" || exit 70; done
  export RIS_T=$T RIS_CG=$cg RIS_CTRL=$ctrl RIS_SYSTEMD=$sysd
  exec setpriv --pdeathsig KILL unshare "${nsflags[@]}" /bin/bash "$self" --ris-stage2
) &
upid=$!
if [ $cg = v2 ]; then
  me_ns=$(readlink /proc/self/ns/cgroup)
  for i in $(seq 200); do n=$(readlink /proc/$upid/ns/cgroup) || break; [ "$n" = "$me_ns" ] || break; sleep 0.02; done
  echo $upid > "/sys/fs/cgroup$(own '')/cgroup.procs"; : > "$T/go"
fi
# wait, bounded
(
  exec 8>&- 9>&- 2>/dev/null
  sleep "$timeout" & s=$!
  trap 'kill $s; exit' TERM
  wait $s && { : > "$T/timed-out"; kill -KILL "$upid"; }
) & wd=$!
{ wait "$upid"; rc=$?; } 2>/dev/null
upid=''
{ kill "$wd"; wait "$wd"; } 2>/dev/null; wd=''
# let the readers drain, then end them
exec 8>&- 9>&-
for r in "${readers[@]}"; do wait "$r" 2>/dev/null; done
readers=()
if [ -e "$T/timed-out" ]; then say "timed out after $timeout s"; exit 124; fi
if [ ! -e "$T/x/done" ]; then say "systemd ended before the command did (status $rc)"; [ $rc -ne 0 ] || rc=70; exit 70; fi
read -r how st < "$T/x/done"
case $how in
  exited) exit "$st" ;;
  killed|dumped) n=$(kill -l "$st" 2>/dev/null) && exit $((128 + n)); exit 137 ;;
  *) exit $rc ;;
esac
