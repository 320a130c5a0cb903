"""What libraries read from the environment when they are loaded, or before a process begins."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""GOMP_SPINCOUNT. Threads that wait for each other look so many times, some microseconds, then sleep. OpenMP's default
is to look for milliseconds, which takes the core from the thread that is waited for as soon as anything else runs on
the board; to sleep at once costs a wake of 60 µs for each operation. A token in int8 on two cores, alone and beside one
busy process: 17 and 39 to 206 ms by default, 25 and 25 asleep at once, 18 and 35 so."""
WORKER = {"MALLOC_ARENA_MAX": "2", "GOMP_SPINCOUNT": SPIN_COUNT}
"""Of a worker, where its owner has not set it. glibc reads it before a process begins, so the daemon must say it: each
arena keeps freed memory of its own, and there would be up to eight for each core."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """For a command and all that it starts, before it imports torch or ONNX Runtime."""
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime notes what it is used for, to tell its makers
    environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
