"""What the benchmark runs on, and the most memory that this process has had. Linux answers from /proc."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from edge_daemon import __version__

SELF = Path("/proc/self")
RESET_PEAK = "5"
"""For clear_refs: the peak of the resident memory begins anew (man 5 proc_pid_clear_refs)."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name(cpuinfo: str) -> str:
    """By the text of /proc/cpuinfo: `Model`, the board, on a Raspberry Pi; `model name` elsewhere."""
    found = re.search(r"^Model\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    found = found or re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def describe() -> dict[str, Any]:
    """For the document: machine and versions."""
    return {
        "edge_daemon": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": {
            "cpu": cpu_name(Path("/proc/cpuinfo").read_text(errors="replace")),
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
