"""Memory: of the board, swapped out, and what cgroups allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edge_daemon import cgroup, readings
from edge_daemon.cgroup import text_of
from edge_daemon.doctor.disk import mount_of, unescaped
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject
from edge_daemon.units import MIB

LEAST_BOARD_MIB = 900
"""A board of 1 GB; the smallest that int8 of the 0.5B could fit on, with hardly anything beside it."""
CARD = re.compile(r"/mmcblk\d")
PI_OS_SWAP = "/var/swap"
"""Of Raspberry Pi OS until Debian 12; its service makes it again at every start of the board."""


def look(subject: Subject) -> Iterator[Finding]:
    """All of it."""
    places = subject.places
    meminfo = text_of(places.proc / "meminfo")
    total, available = readings.kib(meminfo, "MemTotal"), readings.kib(meminfo, "MemAvailable")
    yield memory(total, available)
    yield swap(text_of(places.proc / "swaps"), places.sys, text_of(places.proc / "self/mountinfo"))
    membership = text_of(places.proc / str(subject.unit.pid or "self") / "cgroup")
    yield controller(membership, places.memory.cgroups)
    yield limit(membership, places.memory.cgroups, total or 0)


def memory(total_bytes: int | None, available_bytes: int | None) -> Finding:
    """Of the board."""
    if total_bytes is None or available_bytes is None:
        return skipped("memory", "/proc/meminfo does not say")
    what = f"{total_bytes / MIB:.0f} MiB, {available_bytes / MIB:.0f} of them available"
    if total_bytes >= LEAST_BOARD_MIB * MIB:
        return ok("memory", what)
    return problem(
        "memory",
        what,
        "A Moondream needs 1.1 GB in int8 and 2.6 GB in float32. On this board only the built-in demo model can run.",
        "edge-daemon model list",
    )


def swap(swaps: str, system: Path, mountinfo: str) -> Finding:
    """By the text of /proc/swaps and the zram devices of /sys; a file is where its mount is."""
    names = [unescaped(line.split()[0]) for line in swaps.splitlines()[1:] if line.strip()]
    zram_bytes = sum(int(text) for path in system.glob("block/zram*/disksize") if (text := text_of(path).strip()))
    words = [f"zram of {zram_bytes / MIB:.0f} MiB"] if zram_bytes else []
    words += [name for name in names if "zram" not in name]
    mounts = {name: mount_of(Path(name), mountinfo) for name in names if not name.startswith("/dev/")}
    on_card = [name for name in names if CARD.search(mount.source if (mount := mounts.get(name)) else name)]
    if on_card:
        off = "systemctl disable --now dphys-swapfile" if on_card[0] == PI_OS_SWAP else f"swapoff {on_card[0]}"
        return warning(
            "swap",
            f"swap on the SD card: {', '.join(on_card)}",
            "A model that is swapped out to a card makes the board freeze and wears the card out. edge-daemon "
            "does not count swap as memory; zram is better for the rest of the system.",
            f"sudo {off}; sudo apt install systemd-zram-generator",
        )
    return ok("swap", f"{', '.join(words) or 'none'}; it is not counted as memory for the model")


def controller(membership: str, root: Path) -> Finding:
    """Whether the kernel can hold a service to a limit."""
    if cgroup.controlled(membership, root):
        return ok("cgroup", "the kernel can limit the memory of a service")
    return warning(
        "cgroup",
        "the kernel's memory controller is off",
        f"{cgroup.ADVICE[0].upper()}{cgroup.ADVICE[1:]}. Without it the memory watchdog of edge-daemon still guards "
        "what the board has free.",
        "sudo sed -i '1s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot",
    )


def limit(membership: str, root: Path, board_bytes: int) -> Finding:
    """The tightest limit that holds for the service, or for us while it does not run."""
    level = cgroup.tightest(membership, root, board_bytes)
    if level is None:
        return ok("limit", "there is no memory limit")
    words = f"a limit of {level.limit_bytes / MIB:.0f} MiB holds, {level.room_bytes / MIB:.0f} of it are left"
    return ok("limit", words)
