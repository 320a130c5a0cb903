"""Random weights that never say their end token, whatever kernels of which processor compute them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from edge_daemon.moondream.config import load_config

NEVER = -1e4
"""A logit of that size is no probability at all in float32."""


def never_end(directory: Path) -> None:
    """Of a model directory that was written before."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["text.lm_head.bias"][load_config(directory).tokens.eos] = NEVER
    save_file(tensors, file)
