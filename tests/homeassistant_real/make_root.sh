#!/bin/bash
# make_root.sh DIR: a Debian trixie in DIR, with Home Assistant from PyPI in /opt/ha; root, mmdebstrap, 2 to 6 minutes.
# 2026.2 is the last of Home Assistant that runs on trixie's Python 3.13.
set -eu
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$1"; root=$(readlink -f "$1")
mmdebstrap --variant=apt --include=python3,python3-venv,python3-dev,gcc,g++,libc6-dev,ca-certificates \
  --include=libpcap0.8,libturbojpeg0,libffi-dev,libssl-dev trixie "$root" http://deb.debian.org/debian
mkdir -p "$root/opt/config"
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/opt/ca.crt"
# what its manifests ask of a Home Assistant that only talks MQTT and answers requests; it does not start without the frontend
"$here/in_root.sh" "$root" "$root/opt/config" bash -c '
  set -e
  export PIP_CERT=/opt/ca.crt
  python3 -m venv /opt/ha
  /opt/ha/bin/pip install -q "homeassistant==2026.2.*"
  /opt/ha/bin/pip install -q -c /opt/ha/lib/python3*/site-packages/homeassistant/package_constraints.txt \
    paho-mqtt SQLAlchemy home-assistant-frontend==20260128.6 Pillow PyTurboJPEG fnv-hash-fast psutil-home-assistant \
    ifaddr cronsim securetar'
