"""The board, its operating system, Python and its clock: against what was tested."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_daemon import readings
from edge_daemon.cgroup import text_of
from edge_daemon.clock import Clock
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject

TESTED_PYTHON = ((3, 11), (3, 13))
POSSIBLE_PYTHON = ((3, 11), (3, 12), (3, 13))
"""Those that all our pinned libraries have wheels for."""
TESTED_SYSTEMS = {("debian", "12"), ("debian", "13")}
"""64-bit Raspberry Pi OS calls itself Debian."""
MACHINES = ("aarch64", "arm64", "x86_64", "AMD64")
WIDE = 2**32


def look(subject: Subject) -> Iterator[Finding]:
    """All of it."""
    yield ok("board", readings.board(subject.places.proc))
    yield system(subject.places.etc)
    yield bits(platform.machine(), sys.maxsize)
    yield python(sys.version_info[:2])
    yield clock(Clock())


def system(etc: Path) -> Finding:
    """By os-release(5)."""
    pairs = (line.partition("=") for line in text_of(etc / "os-release").splitlines())
    told = {key: "".join(shlex.split(value)[:1]) for key, _, value in pairs if value.count('"') % 2 == 0}
    name = told.get("PRETTY_NAME") or f"{platform.system()} {platform.release()}"
    if (told.get("ID"), told.get("VERSION_ID")) in TESTED_SYSTEMS:
        return ok("system", name)
    return warning(
        "system",
        f"{name}: not one of the systems that this was tested on",
        "Debian 12 and 13 and the 64-bit Raspberry Pi OS based on them were tested. Others may well work.",
    )


def bits(machine: str, largest: int) -> Finding:
    """`machine` is platform.machine(), `largest` sys.maxsize."""
    if largest > WIDE and machine in MACHINES:
        return ok("bits", f"64-bit {machine}")
    narrow = "a 32-bit Python" if largest < WIDE else "another processor"
    return problem(
        "bits",
        f"{machine}, {narrow}: there is no PyTorch for it",
        "The model needs a 64-bit system on ARM or x86. A Raspberry Pi 3, 4, 5 or Zero 2 runs one, but the 32-bit "
        "Raspberry Pi OS was installed: write the 64-bit image to the card.",
        "uname -m; getconf LONG_BIT",
    )


def python(version: tuple[int, ...]) -> Finding:
    """`version` is major and minor."""
    name = ".".join(map(str, version))
    if version in TESTED_PYTHON:
        return ok("python", f"Python {name} ({sys.executable})")
    if version in POSSIBLE_PYTHON:
        return warning(
            "python",
            f"Python {name}: all libraries are available for it, but it was not tested",
            "3.11 (Debian 12) and 3.13 (Debian 13) were tested.",
        )
    return problem(
        "python",
        f"Python {name}: the required libraries are not available for it",
        "Python 3.11 (Debian 12) or 3.13 (Debian 13) is required; 3.12 may work.",
        "python3 --version; ls /usr/bin/python3.*",
    )


def clock(clock: Clock) -> Finding:
    """Whether somebody keeps it right."""
    stamp = clock()
    if stamp.synced:
        return ok("clock", "is set by a time server")
    if stamp.synced is None:
        return skipped("clock", "the kernel does not say whether a time server sets it")
    return warning(
        "clock",
        "no time server has set it since the start",
        "Captions carry the time of their pictures, and certificates are refused if the clock is far off. Results "
        "made now are marked with clock_synced: false.",
        "sudo timedatectl set-ntp true; timedatectl timesync-status",
    )
