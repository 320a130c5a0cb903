"""How ONNX Runtime's sessions are opened here, and what it raises."""

from __future__ import annotations

from typing import Any

import torch

ERRORS = 3
"""ONNX Runtime's severity from which on it writes to stderr."""


def options() -> Any:
    """Of a session on the CPU with as many threads as torch has: an `onnxruntime.SessionOptions`.

    Without the arena: what a large picture needed once is given back. Without spinning: a thread that waits for the
    next run burns the core that torch, the grabber or the daemon may need, and on a small board its heat. Raises
    ImportError without ONNX Runtime.
    """
    import onnxruntime  # type: ignore[import-untyped]  # it comes without types

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads, chosen.inter_op_num_threads = torch.get_num_threads(), 1
    chosen.enable_cpu_mem_arena = False
    chosen.log_severity_level = ERRORS
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return chosen


def errors() -> tuple[type[Exception], ...]:
    """All that ONNX Runtime raises: its classes have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as raised  # type: ignore[import-untyped]  # as above

    return (
        *(raised.Fail, raised.InvalidArgument, raised.InvalidGraph, raised.InvalidProtobuf, raised.NoModel),
        *(raised.NoSuchFile, raised.NotFound, raised.NotImplemented, raised.RuntimeException),
    )
