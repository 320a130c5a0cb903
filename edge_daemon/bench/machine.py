"""What the benchmark runs on, and the most memory that this process has had. Linux answers from /proc."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from edge_daemon import __version__, readings

SELF = Path("/proc/self")
RESET_PEAK = "5"
"""For clear_refs: the peak of the resident memory begins anew (man 5 proc_pid_clear_refs)."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """For the document: machine and versions."""
    return {
        "edge_daemon": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": {
            "cpu": readings.board(),
            "architecture": platform.machine(),
            "cores": cores(),
            "memory_bytes": psutil.virtual_memory().total,
        },
    }


def forget_peak() -> bool:
    """Let `peak_rss_bytes` count from now on. False where the kernel does not know how (CONFIG_PROC_PAGE_MONITOR)."""
    try:
        (SELF / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """The most memory that was resident, mapped files included."""
    status = (SELF / "status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) << 10
