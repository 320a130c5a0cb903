"""The memory cgroup that this process lives in, version 1 or 2: its limit, its use, its kills. Reads files only.

What a process reads in /proc/self/cgroup is passed in as `membership`, where the hierarchies are mounted as `root`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
FILE_PAGES = ("inactive_file", "active_file")
"""Of memory.stat: pages of files, which the kernel drops before it kills. It counts them as available itself
(MemAvailable, Documentation/filesystems/proc.rst)."""
ADVICE = (
    "the kernel's memory controller is off, so MemoryMax= has no effect: add cgroup_enable=memory to the line in "
    "/boot/firmware/cmdline.txt and restart the board"
)
"""Raspberry Pi OS passes cgroup_disable=memory (github.com/raspberrypi/linux, issue 6980)."""


@dataclass(frozen=True)
class Level:
    """A cgroup with a limit: the one of ours, or above it, that has the least room."""

    limit_bytes: int
    used_bytes: int
    """By all that live in it, without pages of files."""

    @property
    def room_bytes(self) -> int:
        """What can still be taken before the kernel kills, or brings who takes more to a standstill."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class Files:
    """What a version calls its files and the prefix of the sums over a whole subtree in its memory.stat."""

    limits: tuple[str, ...]
    used: str
    events: str
    sums: str


V1 = Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "memory.oom_control", "total_")
V2 = Files(("memory.max", "memory.high"), "memory.current", "memory.events", "")
"""Above memory.high (MemoryHigh=) nobody is killed, but every process of the cgroup is made to wait, for ever where
nothing can be dropped (Documentation/admin-guide/cgroup-v2.rst)."""


def tightest(membership: str, root: Path, most_bytes: int) -> Level | None:
    """The level with the least room, or None without a limit; one of `most_bytes` and more is none.

    Version 1 knows an absurdly large number where there is no limit.
    """
    found = [
        Level(limit_bytes, max(0, _number(place / files.used) - _file_bytes(place, files)))
        for directory, top, files in _groups(membership, root)
        for place in _upwards(directory, top)
        for name in files.limits
        if 0 < (limit_bytes := _number(place / name)) < most_bytes
    ]
    return min(found, key=lambda level: level.room_bytes, default=None)


def kills(membership: str, root: Path) -> int | None:
    """How many processes of our cgroup the kernel has killed for want of memory, or None where it does not count."""
    for directory, _, files in _groups(membership, root):
        found = _fields(directory / files.events).get("oom_kill")
        if found is not None:
            return found
    return None


def pressure_file(membership: str, root: Path) -> Path | None:
    """Where the kernel tells how long processes of our cgroup waited for memory; the root has the whole board's."""
    for directory, top, files in _groups(membership, root):
        if files is V2 and directory != top and (directory / "memory.pressure").is_file():
            return directory / "memory.pressure"
    return None


def controlled(membership: str, root: Path) -> bool:
    """Whether the kernel can hold a cgroup to a limit of memory at all."""
    for line in membership.splitlines():
        if "memory" in line.split(":", 2)[1].split(","):
            return True
    return "memory" in text_of(_unified(root) / "cgroup.controllers").split()


def _groups(membership: str, root: Path) -> Iterator[tuple[Path, Path, Files]]:
    """Our directory in each hierarchy that knows of memory, the hierarchy's top, and what its files are called."""
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield _unified(root) / group.lstrip("/"), _unified(root), V2
        elif "memory" in controllers.split(","):
            yield root / "memory" / group.lstrip("/"), root / "memory", V1


def _unified(root: Path) -> Path:
    """Where version 2 is mounted: at the root, or beside the hierarchies of version 1."""
    return root / "unified" if (root / "unified").is_dir() else root


def _upwards(directory: Path, top: Path) -> Iterator[Path]:
    for place in (directory, *directory.parents):
        yield place
        if place == top:
            return


def _file_bytes(place: Path, files: Files) -> int:
    stat = _fields(place / "memory.stat")
    return sum(stat.get(files.sums + name, 0) for name in FILE_PAGES)


def _number(path: Path) -> int:
    """What a file holds; 0 for `max`, for -1 and where there is no file."""
    text = text_of(path).strip()
    return int(text) if text.isdigit() else 0


def _fields(path: Path) -> dict[str, int]:
    """Lines of a word and a number."""
    pairs = (line.split() for line in text_of(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def text_of(path: Path) -> str:
    """A small file of the kernel; empty when it is not there, or no longer: a cgroup may go between two looks."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
