#!/usr/bin/env bash
# Installs edge-daemon as a service, on Debian 12 or 13 or 64-bit Raspberry Pi OS:
#
#   sudo deploy/install.sh [OPTIONS]
#
#   --broker HOST[:PORT]          the MQTT broker (default: localhost, which installs mosquitto)
#   --broker-user NAME            its user name, if it needs a login
#   --broker-password-file FILE   its password; copied to where only root can read it
#   --model NAME                  demo-shapes (default), moondream-0.5b, moondream-2b (fetched), or /a/model/directory
#   --pictures DIR                the folder to watch (default: /srv/pictures); cameras: edit the configuration later
#   --picamera                    install Debian's python3-picamera2, for a camera on the board's connector
#   --strict                      allow network access only to the configured broker and cameras, or start nothing
#   --allow ADDRESS[/BITS]        with --strict: also allow this address or network (repeatable), such as 192.168.1.0/24
#   --wheelhouse DIR              no network: all Python packages from this directory (deploy/build-deb --collect)
#   --no-index                    no network: like --wheelhouse, with the packages in this copy's dist/
#   --torch VERSION               refused with the reason, unless it is the tested version
#   --no-packages                 install no Debian packages
#   --no-start                    do not enable or start the service
#   --yes                         ask nothing
#   --dry-run                     say what would be done, and change nothing
#
# Run again, it changes what is not as it should be, and nothing else; it never overwrites a configuration.
# Exit codes: 0 done, 2 wrong command line, 69 impossible on this machine, 77 not root, 78 the configuration is wrong.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=deploy/release.sh
. "$root/deploy/release.sh"

broker="" broker_user="" broker_password_file="" model="" pictures="" packages=yes start=yes picamera="" yes="" torch=""
render_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --broker | --broker-user | --broker-password-file | --model | --pictures | --allow | --wheelhouse | --torch)
      [ $# -ge 2 ] || fail "$1 needs a value" 2 ;;&
    --broker) broker=$2; shift ;;
    --broker-user) broker_user=$2; shift ;;
    --broker-password-file) broker_password_file=$2; shift ;;
    --model) model=$2; shift ;;
    --pictures) pictures=$2; shift ;;
    --picamera) picamera=yes ;;
    --strict) render_options+=(--strict) ;;
    --allow) render_options+=(--allow "$2"); shift ;;
    --wheelhouse) wheelhouse=$2; shift ;;
    --no-index) wheelhouse=$root/dist ;;
    --torch) torch=$2; shift ;;
    --no-packages) packages="" ;;
    --no-start) start="" ;;
    --yes | -y) yes=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown option $1; --help lists the options" 2 ;;
  esac
  shift
done

ask() { # ask VARIABLE QUESTION DEFAULT
  local answer=""
  [ -z "${!1}" ] || return 0
  if [ -z "$yes$dry_run" ] && [ -t 0 ] && [ ! -e "$ETC/config.yaml" ]; then read -rp "$2 [$3]: " answer; fi
  printf -v "$1" '%s' "${answer:-$3}"
}

check_words() {
  local word='^[A-Za-z0-9_.:%-]+$' path='^/[^"\\]*$' problem
  [ -z "$torch" ] || { problem=$(torch_problem "$torch"); [ -z "$problem" ] || fail "--torch: $problem"; }
  [[ $broker =~ $word ]] || fail "--broker: value '$broker': a host such as 192.168.1.20 or broker.local:8883 is expected" 2
  [[ $pictures =~ $path ]] || fail "--pictures: value '$pictures': an absolute path such as /srv/pictures is expected" 2
  [[ $model =~ $path || $model =~ $word ]] || fail "--model: value '$model': a name or an absolute path is expected" 2
  [ -z "$broker_password_file" ] || [ -r "$broker_password_file" ] || fail "--broker-password-file: $broker_password_file cannot be read" 2
  [ -z "$broker_password_file" ] || [ -n "$broker_user" ] || fail "--broker-password-file needs --broker-user" 2
  [[ $broker_user != *[\"\\]* ]] || fail '--broker-user: a name without " and \ is expected' 2
  ! debian_has edge-daemon ||
    fail "the Debian package edge-daemon is installed here: use apt, or remove it first (apt-get remove edge-daemon)"
}

install_packages() {
  local wanted=(python3 python3-venv ca-certificates) missing=() package
  case $broker in localhost | localhost:* | 127.0.0.1*) [ -e "$ETC/config.yaml" ] || wanted+=(mosquitto) ;; esac
  [ -z "$picamera" ] || wanted+=(python3-picamera2)
  for package in "${wanted[@]}"; do
    debian_has "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  act "install Debian packages: ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
  apt-get update -qq || say "apt-get update failed; continuing with the old lists"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || {
    [[ $* != *python3-picamera2* ]] || say "python3-picamera2 is a package of Raspberry Pi OS; Debian has none"
    fail "apt-get could not install: $*"
  }
}

configuration() {
  local host=${broker%:*} port=${broker##*:}
  if [[ $broker != *:* || $broker == *:*:* ]]; then host=$broker port=1883; fi  # an IPv6 address has no port here
  printf '# Written by deploy/install.sh; yours from now on. Every key: %s\n' "$ETC/full.yaml.example"
  printf '# After a change: edge-daemon check-config; and where a source, the broker or the model changed:\n'
  printf '# sudo edge-daemon systemd render --write; then sudo systemctl restart edge-daemon\n'
  printf 'mqtt:\n  host: "%s"\n  port: %s\n' "$host" "$port"
  [ "$port" != 8883 ] || printf '  tls: {enabled: true}\n'
  [ -z "$broker_user" ] || printf '  username: "%s"\n' "$broker_user"
  [ -z "$broker_password_file" ] || printf '  password: !credential mqtt-password\n'
  printf 'model:\n  name: "%s"\n' "$model"
  printf 'sources:\n  inbox:\n    type: folder\n    path: "%s"\n' "$pictures"
}

write_configuration() {
  mkdir -p "$ETC"
  configuration >"$ETC/config.yaml.new"
  mv "$ETC/config.yaml.new" "$ETC/config.yaml"
}

store_password() {
  install -d -m 700 "$ETC/credentials"
  install -m 600 "$broker_password_file" "$ETC/credentials/mqtt-password"
}

# What holds the settings of a machine that was installed before: its own configuration.
have_configuration() {
  if [ -e "$ETC/config.yaml" ]; then
    [ -n "$dry_run" ] || say "$ETC/config.yaml already exists and is left as it is"
    return 0
  fi
  [ -d "$pictures" ] || act "make the folder $pictures; pictures that are put there are captioned" install -d -m 755 "$pictures"
  [ -z "$broker_password_file" ] || act "store the broker's password in $ETC/credentials, for root alone" store_password
  act "write $ETC/config.yaml: broker $broker, model $model, folder $pictures" write_configuration
}

# The units, the link and the drop-ins as this release wants them.
in_place() {
  local release=$1 unit
  [ "$(readlink "$OPT/current" || true)" = "${release##*/}" ] &&
    for unit in edge-daemon.service edge-daemon@.service; do
      cmp -s "$release/systemd/$unit" "$UNITS/$unit" || return 1
    done
}

switch() {
  [ ! -e "$OPT/current" ] || configurations_are_good "$1" || fail "the configuration does not fit this release: see above" 78
  switch_to "$1" || fail "the service runs as it did before"
  drop_old_releases
}

fetch_model() {
  local configured
  configured=$("$OPT/current/bin/edge-daemon" check-config -c "$ETC/config.yaml") || {
    systemctl is-active --quiet edge-daemon.service || fail "$ETC/config.yaml cannot be used: see above" 78
    say "the service runs with it: its secrets are known in the unit only"
    return 0
  }
  [[ $configured == *"not on this machine"* ]] || return 0
  configured=$(sed -n 's/^  model \([^ ]*\).*/\1/p' <<<"$configured")
  act "fetch the model $configured" "$OPT/current/bin/edge-daemon" model pull "$configured"
}

start_service() {
  systemctl enable --quiet edge-daemon.service
  start_and_wait edge-daemon.service || fail "the service did not become ready: journalctl -u edge-daemon"
}

main() {
  local release before made=""
  need_root
  ask broker "MQTT broker" localhost
  ask model "Model (demo-shapes, moondream-0.5b, moondream-2b)" demo-shapes
  ask pictures "Folder to watch" /srv/pictures
  check_words
  machine_is_fit
  systemd_runs || { start=""; say "no systemd runs here, as in a chroot: nothing is started; sudo systemctl enable edge-daemon"; }
  [ -z "$packages" ] || install_packages
  release=$(release_of "$root")
  is_whole "$release" || {
    made=yes
    act "make $release and try it: PyTorch $(pinned_torch) and all other pins, about 1.5 GB" make_release "$root" "$release" ||
      fail "this release cannot be installed here: see above"
  }
  id "$SERVICE_USER" >/dev/null 2>&1 || act "make the system user $SERVICE_USER" make_user
  have_configuration
  cmp -s "$root/configs/full.yaml" "$ETC/full.yaml.example" ||
    act "put $ETC/full.yaml.example there" install -D -m 644 "$root/configs/full.yaml" "$ETC/full.yaml.example"
  { [ -z "$made" ] && in_place "$release"; } ||
    act "make ${release##*/} the current release, with its units" switch "$release"
  [ "$(readlink /usr/local/bin/edge-daemon || true)" = "$OPT/current/bin/edge-daemon" ] ||
    act "put the command edge-daemon into /usr/local/bin" ln -sfn "$OPT/current/bin/edge-daemon" /usr/local/bin/edge-daemon
  if [ -n "$dry_run" ]; then
    act "render the unit's drop-in, fetch the model if it is not here${start:+, start the service, run doctor}" true
    return 0
  fi
  fetch_model
  before=$(cat "$UNITS"/edge-daemon*.d/50-configuration.conf 2>/dev/null || true)
  render "${render_options[@]}" >/dev/null || {
    # whoever asked for a closed network is not served with an open one
    [ ${#render_options[@]} -eq 0 ] ||
      fail "the network is not closed (see above), so nothing was started: mend that, or --allow the network; then run this again"
    say "the unit's drop-in stays as it was: see above"
  }
  if [ -n "$start" ]; then
    if ! systemctl is-enabled --quiet edge-daemon.service || ! systemctl is-active --quiet edge-daemon.service; then
      act "enable and start the service; it is ready when the model is loaded" start_service
    elif [ "$before" != "$(cat "$UNITS"/edge-daemon*.d/50-configuration.conf 2>/dev/null || true)" ]; then
      act "start the service anew, with what the configuration needs now" start_service
    fi
  fi
  [ "$changes" -gt 0 ] || say "nothing had to be changed"
  [ -z "$start" ] || "$OPT/current/bin/edge-daemon" doctor || true
  say "pictures in, words out: mosquitto_sub -v -t 'edge-daemon/#'    state: systemctl status edge-daemon"
}

main
