#!/bin/bash
# make_root.sh DIR: a Debian trixie in DIR, with libcamera from Debian and picamera2 from PyPI; root, mmdebstrap, a minute.
set -eu
here=$(dirname "$(readlink -f "$0")")
mkdir -p "$1"; root=$(readlink -f "$1")
mmdebstrap --variant=apt --include=python3,python3-venv,python3-dev,gcc,libc6-dev,libcap-dev,ca-certificates \
  --include=python3-libcamera,libcamera-ipa,python3-prctl,python3-numpy,python3-pil,python3-jsonschema,python3-piexif \
  trixie "$root" http://deb.debian.org/debian
mkdir -p "$root/opt/sources" "$root/usr/share/libcamera/pipeline/virtual"
cp "$here/virtual.yaml" "$root/usr/share/libcamera/pipeline/virtual/"
cp "$here/dma_heap.c" "$root/opt/"
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/opt/ca.crt"
"$here/in_root.sh" "$root" bash -c '
  set -e
  gcc -shared -fPIC -O2 -o /opt/dma_heap.so /opt/dma_heap.c -ldl
  python3 -m venv --system-site-packages /opt/venv
  PIP_CERT=/opt/ca.crt /opt/venv/bin/pip install -q picamera2==0.3.38'
cp "$here"/pykms.py "$here"/virtual_camera.py "$root"/opt/venv/lib/python3*/site-packages/
