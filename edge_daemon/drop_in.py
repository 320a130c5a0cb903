"""The unit's drop-in for one configuration: the devices, paths, groups and addresses that it needs. Pure.

The unit itself (systemd/edge-daemon.service) reads folders outside of homes, and may talk to anybody. What a
configuration needs beyond that (a camera, a home) is opened here; with `reaches` the network is closed but for these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edge_daemon.config import Config
from edge_daemon.source_config import (
    CommandConfig,
    FolderConfig,
    PicameraConfig,
    SourceConfig,
    StreamConfig,
    V4l2Config,
)

STATE = Path("/var/lib/edge-daemon")
"""The unit's own state directory."""
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
HIDDEN = (*HOMES, *TEMPORARY)
"""What the unit's ProtectHome and PrivateTmp hide."""
CAMERA_PROGRAMS = ("rpicam-", "libcamera-")
"""Programs that open the camera at the board's connector begin so."""
V4L2 = "char-video4linux"
LIBCAMERA = (V4L2, "char-media", "char-dma_heap")
"""Classes of devices, so that a camera that is plugged in later is there as well."""


@dataclass(frozen=True)
class Reach:
    """The addresses of one thing that the service talks to."""

    what: str
    """Where it is said: a key of the configuration with its host, or what it is."""
    addresses: tuple[str, ...]
    """As IPAddressAllow= takes them."""


@dataclass(frozen=True)
class Found:
    """What the configuration means on this machine."""

    credentials: tuple[str, ...] = ()
    """Names behind `!credential`."""
    credentials_dir: Path = Path("/etc/edge-daemon/credentials")
    groups: Mapping[Path, str] | None = None
    """For paths that not everybody may read: the group that may."""
    reaches: Sequence[Reach] | None = None
    """None: the network stays open."""


def hosts(settings: Config) -> Iterator[tuple[str, str]]:
    """Key and host of everything that the service connects to."""
    yield "mqtt.host", settings.mqtt.host
    for name, source in settings.sources.items():
        if isinstance(source, StreamConfig):
            host = urlsplit(source.url.get_secret_value()).hostname
            if host:
                yield f"sources.{name}.url", host


def paths(settings: Config) -> Iterator[tuple[str, Path]]:
    """Key and path of everything that the service reads besides its configuration and its state."""
    for name, source in settings.sources.items():
        if isinstance(source, FolderConfig):
            yield f"sources.{name}.path", source.path
        elif isinstance(source, StreamConfig) and source.film is not None:
            yield f"sources.{name}.url", source.film
        elif isinstance(source, PicameraConfig) and source.tuning_file is not None:
            yield f"sources.{name}.tuning_file", source.tuning_file
        elif isinstance(source, CommandConfig) and source.command[0].startswith("/"):
            yield f"sources.{name}.command", Path(source.command[0])
    if settings.model.name.startswith("/"):
        yield "model.name", Path(settings.model.name)
    tls = settings.mqtt.tls
    for key, file in (("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if file is not None:
            yield f"mqtt.tls.{key}", file


def text_of(settings: Config, found: Found, made_by: str) -> str:
    """The text of the drop-in. `made_by` is the command that makes it again."""
    lines = [
        f"# Made by: {made_by}",
        "# Run it again when the broker, the model's directory or a source in the configuration changes.",
        *_disks(settings),
        "[Service]",
        *_devices(settings),
        *_homes(settings),
        *_groups(found.groups or {}),
        *_state(settings),
        *(f"LoadCredential={name}:{found.credentials_dir / name}" for name in found.credentials),
        *_network(found.reaches),
    ]
    return "\n".join(lines) + "\n"


def _disks(settings: Config) -> Iterator[str]:
    """What the start waits for: disks that the board starts without (`nofail`) may come a second too late.

    Not RequiresMountsFor=: that stops the service for good when a disk goes, and the daemon can do without. A source
    that is not there yet is tried again anyway.
    """
    named = {"model.name": Path(settings.model.name), "state_dir": settings.state_dir}
    places = {key: path for key, path in named.items() if path.is_absolute() and not below(path, (STATE,))}
    if not places:
        return
    units = dict.fromkeys(mount_unit(one) for path in places.values() for one in (*reversed(path.parents[:-1]), path))
    yield "[Unit]"
    yield f"# {', '.join(places)}: wait for the disks they are on; most of these units do not exist, which is normal"
    yield from (f"{setting}={' '.join(units)}" for setting in ("Wants", "After"))


def mount_unit(point: Path) -> str:
    """As `systemd-escape --path --suffix=mount` names it (systemd.unit(5), "String escaping")."""
    name = str(point).strip("/").encode()
    escaped = re.sub(rb"[^A-Za-z0-9:_./]|^\.", lambda found: b"\\x%02x" % found[0][0], name)
    return escaped.replace(b"/", b"-").decode() + ".mount"


def _devices(settings: Config) -> Iterator[str]:
    """The devices of cameras; hot-plugging needs the machine's own /dev, of which nothing else can be opened."""
    wanted = {name: device_classes for name, source in settings.sources.items() if (device_classes := _of(source))}
    if not wanted:
        return
    yield f"# cameras: {', '.join(f'sources.{name}' for name in wanted)}"
    yield "PrivateDevices=no"
    yield "DevicePolicy=closed"
    yield from (f"DeviceAllow={one} rw" for one in LIBCAMERA if any(one in classes for classes in wanted.values()))
    yield "SupplementaryGroups=video"
    if any(classes == LIBCAMERA for classes in wanted.values()):
        yield "# libcamera asks the kernel by netlink which cameras there are"
        yield "RestrictAddressFamilies=AF_NETLINK"


def _of(source: SourceConfig) -> tuple[str, ...]:
    """The classes of devices that a source opens."""
    if isinstance(source, V4l2Config):
        return (V4L2,)
    if isinstance(source, PicameraConfig):
        return LIBCAMERA
    if isinstance(source, CommandConfig) and Path(source.command[0]).name.startswith(CAMERA_PROGRAMS):
        return LIBCAMERA
    return ()


def _homes(settings: Config) -> Iterator[str]:
    """Of homes and of /tmp exactly what the configuration names."""
    shown = [(key, path) for key, path in paths(settings) if below(path, HIDDEN)]
    if any(below(path, HOMES) for _, path in shown):
        yield "ProtectHome=tmpfs"
    for key, path in shown:
        yield f"# {key}"
        yield f"BindReadOnlyPaths=-{_quoted(path)}"


def _groups(groups: Mapping[Path, str]) -> Iterator[str]:
    for path, group in groups.items():
        yield f"# {path} can be read by the group {group}"
        yield f"SupplementaryGroups={group}"


def _state(settings: Config) -> Iterator[str]:
    if not below(settings.state_dir, (STATE,)):
        yield "# state_dir"
        yield f"ReadWritePaths=-{_quoted(settings.state_dir)}"


def _network(reaches: Sequence[Reach] | None) -> Iterator[str]:
    if reaches is None:
        return
    yield "# only these can be reached; names are not looked up again: make this file again when an address changes"
    yield "IPAddressDeny=any"
    for reach in reaches:
        yield f"# {reach.what}"
        yield f"IPAddressAllow={' '.join(reach.addresses)}"


def below(path: Path, places: Sequence[Path]) -> bool:
    """Whether a path is one of these places, or in one."""
    return any(path.is_relative_to(place) for place in places)


def _quoted(path: Path) -> str:
    """A path as systemd reads it: `%` begins a specifier, `:` ends a bind's source, spaces end words."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace(":", "\\:")
    return f'"{escaped}"' if set(escaped) & set(' \t"\\') else escaped
