"""Time on a board without a clock battery: stamps that can be compared although the clock jumps. A leaf.

After a power cut such a board believes that it is the time of its last shutdown, or 1970, until it has reached a
time server. A stamp therefore also holds the time since boot, which never jumps, and which boot that was.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIMESYNC_FLAG = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd touches it at every synchronisation (systemd-time-wait-sync.service(8))."""
UNSYNCED_ERROR_US = 16_000_000
"""The kernel's `maxerror` when nobody keeps its clock: NTP_PHASE_LIMIT of the kernel. The flag STA_UNSYNC says less,
as chrony leaves it set unless it has the hardware clock written too."""
STEP_S = 60.0
"""A clock that has moved by more against the time since boot was set by somebody."""


@dataclass(frozen=True)
class Stamp:
    """One moment."""

    unix_s: float
    boot_s: float
    """CLOCK_BOOTTIME: seconds since boot, sleep included."""
    boot_id: str
    """Another one for every boot; empty where it cannot be known."""
    synced: bool | None
    """Whether the clock was right: False until a time server was reached, None where that cannot be known."""


def same_boot(one: Stamp, other: Stamp) -> bool:
    """Whether the times since boot of two stamps can be compared."""
    return bool(one.boot_id) and one.boot_id == other.boot_id


def age_s(then: Stamp, now: Stamp) -> float | None:
    """Seconds between two stamps; None when nobody can know, because a clock was not right."""
    if same_boot(then, now):
        return now.boot_s - then.boot_s
    if then.synced and now.synced:
        return now.unix_s - then.unix_s
    return None


def corrected(then: Stamp, now: Stamp) -> Stamp:
    """An earlier stamp with the right time, if the clock has been set right in the same boot; else as it is."""
    if then.synced is False and now.synced and same_boot(then, now):
        return replace(then, unix_s=now.unix_s - (now.boot_s - then.boot_s), synced=True)
    return then


def on_the_wall() -> datetime:
    """Local time. The zone is looked up anew each time (6 µs): a board is set up in UTC, and told later where it is."""
    if hasattr(time, "tzset"):  # not on Windows
        time.tzset()
    return datetime.now().astimezone()


def kernel_says() -> bool | None:
    """Whether the kernel's clock is being kept; None where the kernel may not be asked (a unit with ProtectClock=)."""
    state = _Timex()
    if _libc().adjtimex(ctypes.byref(state)) < 0:
        return None
    return bool(state.maxerror < UNSYNCED_ERROR_US)


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` of adjtimex(2), and room for the rest; with `modes` 0 nothing is set."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_byte * 256),
    )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Clock:
    """Makes stamps. Remembers that the clock was right once: the kernel takes it back after nine hours offline."""

    def __init__(
        self,
        kernel: Callable[[], bool | None] = kernel_says,
        flag: Path = TIMESYNC_FLAG,
        unix: Callable[[], float] = time.time,
        boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._kernel, self._flag, self._unix, self._boot = kernel, flag, unix, boot
        self._flag_seen_ns: int | None = None
        self._right_offset_s: float | None = None
        """Unix time less time since boot, when the clock was last known to be right."""
        try:
            self._boot_id = BOOT_ID.read_text().strip()
        except OSError:
            self._boot_id = ""

    def __call__(self) -> Stamp:
        """What time it is, and whether that is so."""
        unix_s, boot_s = self._unix(), self._boot()
        return Stamp(unix_s, boot_s, self._boot_id, self._synced(unix_s - boot_s))

    def _synced(self, offset_s: float) -> bool | None:
        says, touched = self._kernel(), self._touched_ns()
        if says or touched not in (None, self._flag_seen_ns):
            self._right_offset_s, self._flag_seen_ns = offset_s, touched
        if self._right_offset_s is not None:
            return abs(offset_s - self._right_offset_s) <= STEP_S
        return False if says is False or self._flag.parent.is_dir() else None

    def _touched_ns(self) -> int | None:
        try:
            return os.stat(self._flag).st_mtime_ns
        except OSError:
            return None
