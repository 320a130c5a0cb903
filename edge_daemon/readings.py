"""What there is of memory now: in the worker, in our cgroup, on the board. Reads, and decides nothing.

Of the worker counts what nobody can drop: its anonymous pages and what of them was swapped out. That is `Pss_Anon` and
`SwapPss` of smaps_rollup, for a process that shares none of them. The kernel counts them in /proc/PID/status as well,
where reading takes 0.2 ms; smaps_rollup walks all pages: 20 to 70 ms in the 0.5B's shape, in which the worker waits. So
the latter is read for people only, and seldom. Pages of mapped files do not count: they are available to everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_daemon import cgroup
from edge_daemon.cgroup import Level, text_of
from edge_daemon.units import KIB


@dataclass(frozen=True)
class Pressure:
    """How much of the last ten seconds processes waited for memory, in percent (Documentation/accounting/psi.rst)."""

    some: float
    """At least one of them."""
    full: float
    """All of them."""


@dataclass(frozen=True)
class Kills:
    """Processes the kernel has killed for lack of memory since boot; None where the kernel keeps no count."""

    in_cgroup: int | None
    on_board: int | None

    def more_than(self, before: Kills) -> bool | None:
        """Whether there were some since; None where nobody counts."""
        pairs = [(self.in_cgroup, before.in_cgroup), (self.on_board, before.on_board)]
        risen = [now > then for now, then in pairs if now is not None and then is not None]
        return any(risen) if risen else None


@dataclass(frozen=True)
class Reading:
    """All of it at one moment."""

    worker_bytes: int | None
    """None while there is no worker."""
    available_bytes: int
    level: Level | None
    """Of our cgroup; None without a limit."""
    pressure: Pressure | None
    """In our cgroup, or on the board; None where the kernel does not tell."""


@dataclass(frozen=True)
class Files:
    """Where to read."""

    proc: Path = Path("/proc")
    cgroups: Path = cgroup.ROOT

    @property
    def membership(self) -> str:
        """Which cgroups we are in."""
        return text_of(self.proc / "self/cgroup")

    def read(self, worker_pid: int | None) -> Reading:
        """Everything, in less than a millisecond."""
        memory, membership = psutil.virtual_memory(), self.membership
        pressure = cgroup.pressure_file(membership, self.cgroups) or self.proc / "pressure/memory"
        return Reading(
            None if worker_pid is None else anonymous_bytes(text_of(self.proc / str(worker_pid) / "status")),
            memory.available,
            cgroup.tightest(membership, self.cgroups, memory.total),
            pressure_of(text_of(pressure)),
        )

    def board_bytes(self) -> int:
        """All the memory of the board."""
        return int(psutil.virtual_memory().total)

    def kills(self) -> Kills:
        """The counters as they stand."""
        on_board = re.search(r"^oom_kill (\d+)$", text_of(self.proc / "vmstat"), re.MULTILINE)
        return Kills(cgroup.kills(self.membership, self.cgroups), int(on_board[1]) if on_board else None)

    def pss_bytes(self, pid: int) -> int | None:
        """Of a process: what it would take if everything shared were divided by those who share it. Slow."""
        return kib(text_of(self.proc / str(pid) / "smaps_rollup"), "Pss")

    def controlled(self) -> bool:
        """Whether a limit of our cgroup would have any effect."""
        return cgroup.controlled(self.membership, self.cgroups)


def anonymous_bytes(status: str) -> int | None:
    """What nobody can drop, from /proc/PID/status; None when the process has gone, a zombie included."""
    resident = kib(status, "RssAnon")
    return None if resident is None else resident + (kib(status, "VmSwap") or 0)


def kib(text: str, name: str) -> int | None:
    """Bytes of a line such as `RssAnon:   12 kB`, or None without one."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * KIB if found else None


def pressure_of(text: str) -> Pressure | None:
    """From the kernel's two lines; None when they are not there."""
    found = dict(re.findall(r"^(some|full) avg10=([\d.]+) ", text, re.MULTILINE))
    return Pressure(float(found["some"]), float(found["full"])) if len(found) == 2 else None


def board_model(proc: Path = Path("/proc")) -> str:
    """What a device tree calls this board, such as Raspberry Pi 5 Model B Rev 1.0; empty on a PC."""
    return text_of(proc / "device-tree/model").strip("\0\n ")


def board(proc: Path = Path("/proc")) -> str:
    """What a device tree calls this board, else the processor's name."""
    cpu = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text_of(proc / "cpuinfo"), re.MULTILINE)
    return board_model(proc) or (cpu[1].strip() if cpu else "an unknown board")
