"""Opens a model as it was decided: on a device, in a precision, with a cache of a length. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_daemon.choices import KvPrecision
from edge_daemon.moondream.config import ModelConfig
from edge_daemon.moondream.device import Choice, dtype_of
from edge_daemon.moondream.model import Moondream


def open_chosen(
    directory: Path,
    config: ModelConfig,
    choice: Choice,
    positions: int | None = None,
    kv_precision: KvPrecision = "auto",
) -> Moondream:
    """A model with all that a caption needs in memory.

    The KV cache is never wider than what is computed in; `auto` is float16 beside int8. Graphs have their own.
    Raises ModelError or UnavailableError.
    """
    dtype = dtype_of(choice, config)
    int8 = choice.precision == "int8" and config.engine == "torch"
    chosen = dtype == torch.float32 and kv_precision != "auto"
    kv_dtype = getattr(torch, kv_precision) if chosen else None
    model = Moondream(directory, positions, choice.device, dtype, int8, kv_dtype)
    model.load()
    return model
