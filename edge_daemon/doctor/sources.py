"""The configured sources: whether their pictures can be got at. Opens no camera, which may be in use."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from edge_daemon import attached, drop_in, grabber_settings, shown_address
from edge_daemon.cgroup import text_of
from edge_daemon.config import Config
from edge_daemon.doctor.finding import Finding, ok, problem, skipped
from edge_daemon.doctor.subject import Account, Subject, Unit
from edge_daemon.doctor.unit import HIDES, concealed, hiding
from edge_daemon.source_config import (
    CommandConfig,
    FolderConfig,
    PicameraConfig,
    SourceConfig,
    StreamConfig,
    V4l2Config,
)

MANY = 1000
DEVICES = Path("/dev")
CONNECT_S = 5.0
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935}


def look(subject: Subject) -> Iterator[Finding]:
    """What is attached; then one finding a source."""
    yield cameras(DEVICES)
    if subject.config is None:
        yield skipped("source", "needs a usable configuration")
        return
    for name, source in subject.config.sources.items():
        id = f"source.{name}"
        if not source.enabled:
            yield skipped(id, "enabled is false")
            continue
        try:
            yield hidden(name, subject.config, subject.unit) or one(id, source, subject)
        except PermissionError as error:
            yield skipped(id, f"{error.filename}: {error.strerror}; run the doctor with sudo")


def cameras(devices: Path) -> Finding:
    """What the kernel has of cameras; those at the connector are libcamera's."""
    found, untold = attached.video_devices(devices)
    names = ", ".join(f"{camera.name} ({camera.device})" for camera in found) or "none by USB"
    return ok("cameras", f"{names}; not asked: {', '.join(untold)}" if untold else names)


def one(id: str, source: SourceConfig, subject: Subject) -> Finding:
    """By its kind."""
    match source:
        case FolderConfig():
            return folder(id, source.path, subject)
        case V4l2Config():
            return device(id, source.device, subject)
        case PicameraConfig():
            return picamera(id, source)
        case StreamConfig():
            return stream(id, source)
        case CommandConfig():
            return program(id, source.command[0])


def hidden(name: str, config: Config, unit: Unit) -> Finding | None:
    """What the unit's hardening keeps from the service, although it is there."""
    id, source = f"source.{name}", config.sources[name]
    own = (path for key, path in drop_in.paths(config) if key.startswith(f"sources.{name}."))
    found = next((concealed(id, str(path), setting, unit) for path in own if (setting := hiding(unit, path))), None)
    if found is None and isinstance(source, V4l2Config | PicameraConfig) and unit.values.get("PrivateDevices") in HIDES:
        return concealed(id, source.place, "PrivateDevices", unit)
    return found


def folder(id: str, path: Path, subject: Subject) -> Finding:
    """Whether the service can list it."""
    meaning = "Nothing from this source is captioned until this is fixed; the service then goes on by itself."
    if not path.is_dir():
        what = f"{path} {'is not a folder' if path.exists() else 'does not exist'}"
        return problem(id, what, meaning, f"sudo install -d {path}, or set sources.{id.partition('.')[2]}.path")
    closed = closed_to(path, subject.account)
    if closed is not None:
        where, mends = f"{subject.account.name} may not read {closed}", f"sudo chmod o+rx {closed}"
        return problem(id, where, meaning, f"{mends}, or SupplementaryGroups= in a drop-in of the unit")
    try:
        count = sum(1 for _ in islice(path.iterdir(), MANY))
    except OSError as error:
        return problem(id, f"{path}: {error.strerror}", meaning, f"ls -ld {path}")
    return ok(id, f"folder {path}, {count if count < MANY else f'more than {MANY}'} entries")


def closed_to(path: Path, account: Account) -> Path | None:
    """The directory on the way to a folder that keeps the service out, or the folder itself."""
    for place in (*reversed(path.parents), path):
        if not account.may(place.stat(), os.R_OK | os.X_OK if place == path else os.X_OK):
            return place
    return None


def device(id: str, path: Path, subject: Subject) -> Finding:
    """A USB camera."""
    meaning = "No picture comes from this camera; the service tries again by itself."
    if not path.exists():
        return problem(id, f"{path} does not exist: no such camera is plugged in", meaning, "ls /dev/video*; lsusb")
    status = path.stat()
    if not stat.S_ISCHR(status.st_mode):
        return problem(id, f"{path} is not a camera", meaning, "ls -l /dev/video*; v4l2-ctl --list-devices")
    if not subject.account.may(status, os.R_OK | os.W_OK):
        what = f"{subject.account.name} may not use {path}"
        return problem(id, what, meaning, "SupplementaryGroups=video in a drop-in of the unit")
    others = [pid for pid in users_of(path, subject.places.proc) if pid != os.getpid()]
    if others and subject.service_pid is None:
        names = ", ".join(f"{text_of(subject.places.proc / str(pid) / 'comm').strip()} ({pid})" for pid in others)
        meaning = "Only one program at a time can use a camera."
        return problem(id, f"{path} is in use by {names}", meaning, f"kill {others[0]}")
    return ok(id, f"camera {path}, group {_group(status.st_gid)}")


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def users_of(path: Path, proc: Path) -> list[int]:
    """Processes that have a file open, as far as we may see."""
    wanted, found = str(path.resolve()), []
    for directory in proc.glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) == wanted for entry in directory.iterdir()):
                found.append(int(directory.parent.name))
        except OSError:  # of somebody else, or gone meanwhile
            continue
    return sorted(found)


def picamera(id: str, source: PicameraConfig) -> Finding:
    """Whether libcamera, asked on the system's Python, has this camera."""
    cameras, trouble = attached.connector_cameras([*grabber_settings.argv(source), "--list"])
    if trouble:
        meaning = "Cameras on the board's connector are opened by picamera2, on the system's own Python."
        return problem(id, trouble, meaning, "sudo apt install -y python3-picamera2 --no-install-recommends")
    names = ", ".join(f"{camera.number}: {camera.name}" for camera in cameras) or "none"
    if source.camera in [camera.number for camera in cameras]:
        return ok(id, f"{source.place} of those on the connector: {names}")
    meaning = "Its ribbon cable is loose or the wrong way round, or its overlay is missing in config.txt."
    what = f"there is no {source.place} on the connector; there are: {names}"
    return problem(id, what, meaning, "rpicam-hello --list-cameras")


def stream(id: str, source: StreamConfig) -> Finding:
    """Whether something listens where the camera should be; whether it takes the login shows when it is opened."""
    parts = urlsplit(source.url.get_secret_value())
    meaning = "No picture comes from this camera; the service tries again by itself."
    if source.film is not None:
        if os.access(source.film, os.R_OK):
            return ok(id, f"file {source.film}")
        return problem(id, f"{source.film} cannot be read", meaning, f"ls -l {quote(str(source.film))}")
    host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    if host is None or port is None or shown_address.host(parts) == shown_address.HIDDEN:
        return skipped(id, f"{source.place}: it has no host and port that the doctor could try")
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        words = error.strerror or str(error)
        return problem(id, f"{source.place}: {host}:{port} does not answer: {words}", meaning, f"ping {host}")
    return ok(id, f"{source.place}: {host}:{port} answers (only the service tries the login)")


def program(id: str, name: str) -> Finding:
    """Whether it can be started."""
    found = shutil.which(name)
    if found is not None:
        return ok(id, f"program {found}")
    return problem(
        id,
        f"the program {name} is not installed",
        "No picture comes from this source; the service tries again by itself.",
        f"command -v {name}; apt-cache search {Path(name).name}",
    )
