"""What libraries read from the environment when they are loaded, or before a process begins."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""GOMP_SPINCOUNT: how often a thread that waits for another looks, for some microseconds, before it sleeps. By default
OpenMP looks for milliseconds, which takes the core from the thread that is waited for as soon as anything else runs on
the board; to sleep at once costs a wake of 60 µs for each operation. A token in int8 on two cores, alone and beside one
busy process: 17 and 39 to 206 ms by default, 25 and 25 asleep at once, 18 and 35 with this number."""
WORKER = {"MALLOC_ARENA_MAX": "2", "GOMP_SPINCOUNT": SPIN_COUNT}
"""Given to a worker, where our own environment does not say otherwise. MALLOC_ARENA_MAX: each arena keeps freed memory
of its own, and there would be up to eight for each core; glibc reads it before a process begins, so the daemon must set
it. GOMP_SPINCOUNT: every command has it already (`prepare`); this is for programs that start a worker without one, such
as tests."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """For a command and all that it starts, before it imports torch or ONNX Runtime."""
    environment["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime notes what it is used for, to tell its makers
    environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
