"""The C library's memory: how it is told to give back what was freed. glibc keeps it otherwise, for the next time."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Have the C library hand back what was freed.

    Measured in the 0.5B's shape: the import's peak is 2862 MiB without, 2486 with.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries have no such call
        trim(0)
