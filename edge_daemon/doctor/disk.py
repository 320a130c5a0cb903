"""The disk that the state directory lies on: room, what it is, and how it is mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_daemon.cgroup import text_of
from edge_daemon.config import OutboxConfig
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject
from edge_daemon.models.store import free_on_disk
from edge_daemon.units import MIB

LEAST_MIB = 64
"""Less is a problem: the outbox could not take its share, and the rest of the system suffers, too."""
ROOM_MIB = 192
"""For the rest of the system, beside the outbox."""


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    point: Path
    kind: str
    source: str
    options: tuple[str, ...]
    """Of the mount and of the file system."""


def look(subject: Subject) -> Iterator[Finding]:
    """All of it."""
    place = existing(subject.state_dir)
    outbox_mib = subject.config.outbox.max_mib if subject.config else OutboxConfig().max_mib
    yield room(place, free_on_disk(place), outbox_mib)
    mount = mount_of(place.resolve(), text_of(subject.places.proc / "self/mountinfo"))
    if mount is None:
        yield skipped("card", "the kernel does not say what kind of disk it is")
        return
    yield mounted(mount)
    yield card(mount, subject.places.sys)


def existing(place: Path) -> Path:
    """The nearest directory that is there."""
    return next(path for path in (place, *place.absolute().parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the directory of a dynamic user, which root alone may enter
        return False


def room(place: Path, free_bytes: int, outbox_mib: int) -> Finding:
    """What can still be written."""
    what = f"{free_bytes / MIB:.0f} MiB are free on the disk of {place}"
    mends = f"sudo du -xh --max-depth=2 {place} | sort -h | tail; sudo apt clean"
    if free_bytes < LEAST_MIB * MIB:
        meaning = "Results cannot be kept on disk: they wait in memory, and a power cut loses them."
        return problem("disk", what, meaning, mends)
    if free_bytes < (outbox_mib + ROOM_MIB) * MIB:
        meaning = f"If the broker is away for long, up to {outbox_mib} MiB of results are kept (outbox.max_mib)."
        return warning("disk", what, meaning, mends)
    return ok("disk", what)


def mount_of(place: Path, mountinfo: str) -> Mount | None:
    """The mount that a place lies on."""
    found: Mount | None = None
    for line in mountinfo.splitlines():
        first, dash, last = line.partition(" - ")
        left, right = first.split(), last.split()
        if not dash or len(left) < 6 or len(right) < 3:
            continue
        point = Path(unescaped(left[4]))
        if place.is_relative_to(point) and (found is None or point.is_relative_to(found.point)):
            found = Mount(point, right[0], right[1], (*left[5].split(","), *right[2].split(",")))
    return found


def unescaped(name: str) -> str:
    """A path as the kernel lists it: spaces and their like are three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name)


def mounted(mount: Mount) -> Finding:
    """Whether it can be written."""
    what = f"{mount.kind} on {mount.source}, mounted at {mount.point}"
    if "ro" in mount.options:
        return problem(
            "mount",
            f"{what}, read-only",
            "Nothing can be kept. Linux makes a failing disk read-only; replace a card that does this.",
            f"sudo dmesg | grep -i -e mmc -e 'I/O error' | tail; sudo mount -o remount,rw {mount.point}",
        )
    if mount.kind in ("tmpfs", "ramfs"):
        return warning(
            "mount",
            f"{what}: this is memory",
            "Results and models stored there are gone after the board restarts.",
            "set state_dir to a place on a disk",
        )
    return ok("mount", what)


def card(mount: Mount, system: Path) -> Finding:
    """Of an SD card: which one, and whether it is spared."""
    device = re.sub(r"p\d+$", "", os.path.basename(mount.source))
    if not re.fullmatch(r"mmcblk\d+", device):
        return ok("card", f"{mount.source} is not an SD card")
    told = {name: text_of(system / "block" / device / "device" / name).strip() for name in ("name", "date", "type")}
    name = " ".join(filter(None, (told["type"] or "SD", told["name"], told["date"] and f"of {told['date']}")))
    commit = next((option for option in mount.options if option.startswith("commit=")), "commit=5, the default")
    if "noatime" in mount.options:
        return ok("card", f"{name}; noatime, {commit}")
    return warning(
        "card",
        f"{name}; mounted without noatime, {commit}",
        "Even reading a file may write to the card, which wears it out. With commit=60 the kernel collects what other "
        "programs write for a minute; what edge-daemon keeps is still safe at once.",
        f"add noatime,commit=60 to {mount.point} in /etc/fstab, then: sudo mount -o remount {mount.point}",
    )
