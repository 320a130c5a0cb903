"""How many threads torch shall compute with, where nobody has said it."""

from __future__ import annotations

import os

SPARE_FROM = 4
"""Cores from which on one is left to the rest of the system: the grabbers, the broker, the network, you. With fewer
the loss is a third or more."""


def cores_here() -> int:
    """Physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def automatic(cores: int) -> tuple[int, str]:
    """Threads and why these."""
    if cores < SPARE_FROM:
        return cores, f"all {cores} cores"
    return cores - 1, f"{cores} cores, of which one is left to the rest of the system"
