# shellcheck shell=bash
# What install.sh, upgrade.sh, uninstall.sh and the Debian package share. To be sourced, by bash with `set -euo pipefail`.
#
# A release is a virtual environment of its own, /opt/edge-daemon/<version>-<8 digits of its content>, and `current` is a
# symbolic link to the one that runs. So another one is made and tried beside it, and going back is a link and a restart.
# A running service keeps the files that it was started from.

umask 022                   # the service's user reads what root installs

OPT=/opt/edge-daemon
ETC=/etc/edge-daemon
STATE=/var/lib/edge-daemon
UNITS=/etc/systemd/system
SERVICE_USER=edge-daemon
DONE=release.done           # in a release: it is whole
NEEDED_DISK_MIB=2500        # of a release: 1500, and what is unpacked for a moment
NEEDED_MEMORY_MIB=700       # the small model; the 0.5B is told about by `edge-daemon model list`
READY_WITHIN_S=${READY_WITHIN_S:-900}   # as TimeoutStartSec in the unit
STAYS_S=${STAYS_S:-5}       # a release that is ready has to stay so for this long

dry_run=${dry_run:-}        # not empty: say what would be done, and change nothing
wheelhouse=${wheelhouse:-}  # a directory of wheels; then no network is used
changes=0

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf '\033[1m==>\033[0m %s\n' "$1" >&2; exit "${2:-69}"; }

# act WHAT COMMAND…: say it and do it, or only say it.
act() {
  local what=$1; shift
  changes=$((changes + 1))
  if [ -n "$dry_run" ]; then say "would: $what"; return 0; fi
  say "$what"
  "$@"
}

# usage: the comment that a script begins with.
usage() { sed -n '2,/^set -euo/p' "$0" | sed '$d;s/^# \{0,1\}//'; }

need_root() { [ "$(id -u)" = 0 ] || [ -n "$dry_run" ] || fail "this changes the system: run it with sudo" 77; }

debian_has() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed'; }

# --- is this a machine for it? -----------------------------------------------------------------------------------

machine_is_fit() {
  local memory_mib
  [ "$(getconf LONG_BIT)" = 64 ] ||
    fail "a 64-bit system is needed: PyTorch has no build for 32-bit Raspberry Pi OS. Reinstall with the 64-bit image"
  case $(uname -m) in
    x86_64 | aarch64) ;;
    *) fail "processor $(uname -m): there are builds of PyTorch for x86_64 and aarch64 only" ;;
  esac
  memory_mib=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))
  [ "$memory_mib" -ge "$NEEDED_MEMORY_MIB" ] ||
    fail "$memory_mib MiB of memory: the service needs $NEEDED_MEMORY_MIB MiB with the smallest model"
  [ "$memory_mib" -ge 1700 ] ||
    say "$memory_mib MiB of memory: enough for the demo model, not for Moondream 0.5B (a board with 2 GB, in int8)"
}

# The system's Python, which the unit sees; one in a home it does not. (-P, here and below: it imports nothing from the
# directory that root is in, which may be one that others write to.)
usable_python() {
  local python
  for python in /usr/bin/python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/local/bin/python3; do
    if "$python" -P -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$python"; return
    fi
  done
  fail "Python 3.11, 3.12 or 3.13 with venv is needed in /usr/bin: sudo apt-get install python3-venv"
}

# Why only the pinned PyTorch is installed; empty when it is the one asked for.
torch_problem() {
  local wanted=$1 pinned
  pinned=$(pinned_torch)
  [ "$wanted" != "$pinned" ] || return 0
  if [ "$(uname -m)" = aarch64 ]; then
    case $wanted in
      2.4.0 | 2.10.*) echo "torch $wanted dies with an illegal instruction when a Raspberry Pi 4 imports it" ;;
      2.6.*) echo "torch $wanted is known to die in torch.jit on a Raspberry Pi 4" ;;
      2.1[1-9].* | 2.[2-9][0-9].*)
        echo "torch $wanted is built for NVIDIA's CUDA on aarch64: it brings several GB of libraries, does not start" \
             "without them, and dies in matrix products on a Raspberry Pi 4" ;;
      *) echo "torch $wanted was not tested with this release" ;;
    esac
  else
    echo "torch $wanted was not tested with this release"
  fi
  echo "; $pinned is the one for $(uname -m)"
}

pinned_torch() { if [ "$(uname -m)" = aarch64 ]; then echo 2.9.1; else echo 2.13.0; fi; }

# --- making a release --------------------------------------------------------------------------------------------

# The wheel that comes with us, in the package's dist/ or in the wheelhouse; nothing in a checkout.
shipped_wheel() {
  local place found
  for place in "$1/dist" "$wheelhouse"; do
    [ -n "$place" ] || continue
    found=$(find "$place" -maxdepth 1 -name 'edge_daemon-*.whl' 2>/dev/null | sort -V | tail -1)
    [ -z "$found" ] || { readlink -f "$found"; return; }
  done
}

# Where the release of these files belongs.
release_of() {
  local root=$1 wheel version content
  wheel=$(shipped_wheel "$root")
  if [ -n "$wheel" ]; then
    version=${wheel##*/edge_daemon-}; version=${version%%-*}
    content=$(sha256sum <"$wheel")
  else
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/edge_daemon/__init__.py")
    content=$(cd "$root" && find edge_daemon pyproject.toml -type f ! -name '*.pyc' -print0 | sort -z |
      xargs -0 sha256sum | sha256sum)
  fi
  content=$(printf '%s' "$content" | cat - "$root/deploy/constraints.txt" "$root/systemd/edge-daemon.service" | sha256sum)
  echo "$OPT/$version-${content:0:8}"
}

# our_wheel ROOT VENV WORK DIRECTORY: from a copy in WORK, as a build leaves its traces in the directory of its source.
our_wheel() {
  local root=$1 venv=$2 source=$3/source out=$4
  mkdir "$source" || return
  cp -r "$root/edge_daemon" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$source/" || return
  pip_in "$venv" wheel --no-deps --wheel-dir "$out" "$source"
}

# is_whole DIR: it was made to its end, and its Python finds it. After an upgrade of Debian that is another Python, which
# looks elsewhere. (-I: not in the directory that we are in, which may be a checkout.)
is_whole() { [ -e "$1/$DONE" ] && "$1/bin/python" -I -c 'import edge_daemon' 2>/dev/null; }

# make_release ROOT DIR: the virtual environment, whole or not at all.
make_release() {
  local root=$1 dir=$2 free_mib
  ! is_whole "$dir" || return 0
  rm -rf -- "$dir"
  mkdir -p "$OPT"
  free_mib=$(df --output=avail -m "$OPT" | tail -1)
  if [ "$free_mib" -lt "$NEEDED_DISK_MIB" ]; then
    say "$((free_mib)) MiB are free for $OPT; $NEEDED_DISK_MIB MiB are needed (PyTorch alone takes 800)"
    return 1
  fi
  if ! fill_release "$root" "$dir"; then
    rm -rf -- "$dir"
    return 1
  fi
  touch "$dir/$DONE"
}

fill_release() {
  local root=$1 dir=$2 wheel work python
  python=$(usable_python) || return
  wheel=$(shipped_wheel "$root")
  "$python" -P -m venv "$dir" || return
  work=$dir/work
  mkdir "$work" || return
  if [ -z "$wheel" ]; then
    our_wheel "$root" "$dir" "$work" "$work" || return
    wheel=$(echo "$work"/edge_daemon-*.whl)
  fi
  pip_in "$dir" install --constraint "$root/deploy/constraints.txt" "edge-daemon[models,cameras] @ file://$wheel" || return
  rm -rf -- "$work"
  mkdir -p "$dir/systemd"
  cp "$root/systemd/edge-daemon.service" "$dir/systemd/" || return
  template_of "$root/systemd/edge-daemon.service" >"$dir/systemd/edge-daemon@.service" || return
  release_works "$dir"
}

pip_in() {
  local dir=$1 options=(--disable-pip-version-check --no-input --quiet --no-cache-dir); shift
  if [ -n "$wheelhouse" ]; then
    options+=(--no-index --find-links "$wheelhouse")
  elif [ "$(uname -m)" = x86_64 ] && ! env | grep -q '^PIP_' && ! "$dir/bin/pip" config list | grep -qE 'index|find-links'; then
    options+=(--extra-index-url https://download.pytorch.org/whl/cpu)  # elsewhere there are CUDA builds of gigabytes
  fi
  local command=$1; shift
  "$dir/bin/python" -P -m pip "$command" "${options[@]}" "$@"
}

# The unit for several instances is the unit with another configuration and another state. All see the models of the
# first: model: {name: /var/lib/edge-daemon/models/NAME}.
template_of() {
  sed -e 's|/config\.yaml|/%i.yaml|' -e 's|^Description=.*|&, instance %i|' \
      -e 's|^StateDirectory=.*|StateDirectory=edge-daemon-%i edge-daemon\nEnvironment=EDGE_DAEMON_STATE_DIR=%S/edge-daemon-%i|' "$1"
}

# Tried in a process of its own, where nothing can be hurt: PyTorch, then a whole caption with the built-in model.
release_works() {
  local dir=$1 work=$1/work status=0
  mkdir -p "$work" || return
  (cd "$work" && OMP_NUM_THREADS=2 EDGE_DAEMON_STATE_DIR=$work "$dir/bin/python" - >said 2>&1 <<'PYTHON') || status=$?
import sys
from pathlib import Path
import torch
import torch.nn.functional as F
torch.set_num_threads(2)  # some builds die of an unknown instruction only with more than one
a, q = torch.randn(300, 300), torch.randn(1, 4, 64, 32)
assert torch.isfinite(F.gelu(F.linear(a, a)) @ a).all() and torch.isfinite(F.scaled_dot_product_attention(q, q, q)).all()
from edge_daemon import cli
from edge_daemon.demo.scenes import sample_pictures
pictures = sample_pictures(Path(), count=1, seed=1)
sys.exit(cli.main(["caption", "--cpu", str(pictures[0][0])]))
PYTHON
  if [ "$status" != 0 ]; then
    tail -3 "$work/said" >&2
    [ "$status" != 132 ] || say "PyTorch uses an instruction that this processor does not have"
    say "${dir##*/} cannot caption a picture here (exit status $status)"
    return 1
  fi
  rm -rf -- "$work"
}

# Whether a release understands every configuration. (One whose secrets come by `!env` from a drop-in of the unit can be
# read in the unit only; then its start is what tells.)
configurations_are_good() {
  local dir=$1 file problem
  for file in "$ETC"/*.yaml; do
    [ -e "$file" ] || continue
    problem=$("$dir/bin/edge-daemon" check-config -c "$file" 2>&1 >/dev/null) && continue
    say "$problem"
    [[ $problem == *"the environment variable"*"is not set"* ]] || return 1
    say "so $file cannot be checked outside of the unit"
  done
}

# --- switching ---------------------------------------------------------------------------------------------------

# Where an image for a board is made, in a chroot, no systemd runs: it reads the units when it starts.
systemd_runs() { [ -d /run/systemd/system ]; }

reload_units() { ! systemd_runs || systemctl daemon-reload; }

# activate DIR: `current` means it, in one step, and the units are its own. What was current is `previous`.
activate() {
  local dir=$1 unit before
  before=$(readlink "$OPT/current" || true)
  if [ "$before" != "${dir##*/}" ]; then
    ln -sfn "${dir##*/}" "$OPT/current.new"
    mv -T "$OPT/current.new" "$OPT/current"
    [ -z "$before" ] || ln -sfn "$before" "$OPT/previous"
  fi
  for unit in edge-daemon.service edge-daemon@.service; do
    [ -z "${UNITS_ARE_PACKAGED:-}" ] || break
    cmp -s "$dir/systemd/$unit" "$UNITS/$unit" || install -m 644 "$dir/systemd/$unit" "$UNITS/$unit"
  done
  reload_units
}

# units_that_are STATES: of ours.
units_that_are() {
  systemd_runs || return 0
  systemctl list-units --plain --no-legend "--state=$1" 'edge-daemon.service' 'edge-daemon@*.service' | awk '{print $1}'
}

# start_and_wait UNIT: start it anew and wait until it is ready and stays so. Fails at its first death.
start_and_wait() {
  local unit=$1 before id state end
  before=$(systemctl show -P InvocationID "$unit")
  systemctl reset-failed "$unit" 2>/dev/null || true
  systemctl restart --no-block "$unit"
  end=$((SECONDS + READY_WITHIN_S))
  while [ "$SECONDS" -lt "$end" ]; do
    id=$(systemctl show -P InvocationID "$unit")
    state=$(systemctl show -P ActiveState "$unit")/$(systemctl show -P SubState "$unit")
    if [ "$id" != "$before" ]; then
      case $state in
        active/*) stays_up "$unit" "$id"; return ;;
        failed/* | */auto-restart | inactive/*) return 1 ;;
      esac
    elif [ "${state%/*}" = failed ]; then
      return 1  # it could not even be started
    fi
    sleep 0.2
  done
  return 1
}

stays_up() {
  local end=$((SECONDS + STAYS_S))
  while [ "$SECONDS" -lt "$end" ]; do
    [ "$(systemctl show -P InvocationID "$1")/$(systemctl show -P ActiveState "$1")" = "$2/active" ] || return 1
    sleep 0.2
  done
}

# switch_to DIR: the units that are well run the release, or what they ran before. Fails in the second case.
switch_to() {
  local dir=$1 before units unit failed=""
  before=$(readlink "$OPT/current" || true)
  units=$(units_that_are active,reloading)
  activate "$dir"
  for unit in $(units_that_are activating); do systemctl restart --no-block "$unit"; done  # it could only be helped
  for unit in $units; do
    start_and_wait "$unit" || { failed=$unit; break; }
  done
  [ -n "$failed" ] || return 0
  say "$failed is not well with ${dir##*/}. Its last words:"
  journalctl --no-pager -o cat -n 15 -u "$failed" >&2 || true
  [ "${before:-${dir##*/}}" != "${dir##*/}" ] || return 1  # none, or this one, made anew
  say "going back to $before"
  activate "$OPT/$before"
  ln -sfn "${dir##*/}" "$OPT/previous"
  for unit in $units; do
    READY_WITHIN_S=900 start_and_wait "$unit" || say "$unit is not well with $before either: journalctl -u $unit"
  done
  return 1
}

# Releases that are neither current nor the one before it take a gigabyte each.
drop_old_releases() {
  local dir name
  for dir in "$OPT"/*/; do
    name=$(basename "$dir")
    case $name in
      current | previous | "$(readlink "$OPT/current" || true)" | "$(readlink "$OPT/previous" || true)") ;;
      *) [ -L "${dir%/}" ] || rm -rf -- "${dir%/}" ;;
    esac
  done
}

# --- what else belongs to it -------------------------------------------------------------------------------------

# A user of its own, to whom rights can be given. The unit would else make one each time it starts.
make_user() {
  useradd --system --user-group --no-create-home --home-dir "$STATE" --shell /usr/sbin/nologin "$SERVICE_USER"
}

# What the unit may open, for every configuration: devices, homes, credentials; with `strict` nobody but the broker and
# cameras can be reached. One that is made again keeps what it was made with.
render() {
  local file unit drop_in options
  for file in "$ETC"/*.yaml; do
    [ -e "$file" ] || continue
    unit=edge-daemon.service
    [ "$file" = "$ETC/config.yaml" ] || unit=edge-daemon@$(basename "$file" .yaml).service
    drop_in=$UNITS/$unit.d/50-configuration.conf
    options=("$@")
    [ ${#options[@]} -gt 0 ] || [ ! -e "$drop_in" ] ||
      read -ra options < <(sed -n '1s/.* -c [^ ]* \(.*\)--write$/\1/p' "$drop_in")
    "$OPT/current/bin/edge-daemon" systemd render -c "$file" --write "${options[@]}" || return 1
  done
  reload_units
}

# All that is ours but data and configuration. Drop-ins that the owner made are configuration.
remove_program() {
  local drop_ins
  systemctl stop 'edge-daemon.service' 'edge-daemon@*.service' 2>/dev/null || true
  systemctl disable --quiet edge-daemon.service 2>/dev/null || true
  rm -rf -- "$UNITS/edge-daemon.service" "$UNITS/edge-daemon@.service" "$OPT" \
    "$UNITS"/multi-user.target.wants/edge-daemon@*.service
  for drop_ins in "$UNITS"/edge-daemon.service.d "$UNITS"/edge-daemon@*.service.d; do
    rm -f -- "$drop_ins/50-configuration.conf"
    rmdir --ignore-fail-on-non-empty "$drop_ins" 2>/dev/null || true
  done
  [ "$(readlink /usr/local/bin/edge-daemon || true)" != "$OPT/current/bin/edge-daemon" ] || rm /usr/local/bin/edge-daemon
  systemctl daemon-reload 2>/dev/null || true
}

# Data and configuration; the pictures in the folders of the sources are nobody's but their owner's. Of what is called
# edge-daemon-SOMETHING, the state of instances that there are goes: the rest may be the owner's as well. As deb/postrm.
remove_data() {
  local path name
  for path in "$ETC"/*.yaml "$UNITS"/edge-daemon@?*.service.d; do
    name=${path##*/}; name=${name#edge-daemon@}; name=${name%.service.d}; name=${name%.yaml}
    [ "$name" = config ] || rm -rf -- "$STATE-$name" "/var/lib/private/edge-daemon-$name"
  done
  rm -rf -- "$ETC" "$STATE" /var/lib/private/edge-daemon "$UNITS"/edge-daemon.service.d "$UNITS"/edge-daemon@*.service.d
  systemctl daemon-reload 2>/dev/null || true
  ! id "$SERVICE_USER" >/dev/null 2>&1 || userdel "$SERVICE_USER"
}
