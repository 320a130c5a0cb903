"""What a model directory takes in memory, read from its files' sizes and headers. No torch, no NumPy: the daemon asks.

The numbers are those of the worker's resident memory, without the program itself.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edge_daemon.errors import ModelError
from edge_daemon.moondream.config import MOST_CROPS, ModelConfig

WEIGHTS = "model.safetensors"
GRAPHS = "graphs"
"""Folder of an `engine: onnx` directory with the graphs of its moonfile, as they were published."""
INITIAL_KV = "initial_kv_cache.npy"
"""Keys and values of BOS, beside the folder."""
MOST_HEADER_BYTES = 100 << 20
"""What the safetensors library itself accepts."""

PRECISIONS = {"int4": 0.75, "int8": 1.4, "float16": 2.8, "float32": float("inf")}
"""Up to how many bytes a weight is taken to be of this precision."""
LOADED = {"int4": 1.5, "int8": 1.3, "float16": 2.9, "float32": 1.2}
"""Resident bytes of open graphs for each byte of their files, at its peak, which is while the last one is opened.

Measured with ONNX Runtime 1.32.0 and graphs of the 0.5B shape: 1.27, 2.88 and 1.18. It computes float16 in float32
on a CPU and keeps both. int4 is a guess: there was no such file to measure.
"""


@dataclass(frozen=True)
class Footprint:
    """What does not depend on the length of the KV cache, and what one position of it takes."""

    weights_bytes: int
    activation_bytes: int
    bytes_per_position: int


def footprint(directory: Path, config: ModelConfig, float_bytes: int = 4) -> Footprint:
    """Of a directory whose `config.json` is `config`; torch computes in floats of `float_bytes`.

    Raises ModelError for a file that is missing or has no readable header.
    """
    if config.engine == "torch":
        weights_bytes = values_in(directory / WEIGHTS) * float_bytes
        return Footprint(weights_bytes, config.activation_bytes, config.kv_values_per_position * float_bytes)
    precision = precision_of(directory, config)
    graphs_bytes = sum(_size(path) for path in (directory / GRAPHS).glob("*.onnx"))
    kv_bytes = config.kv_values_per_position * _item_bytes(directory / INITIAL_KV)
    return Footprint(
        weights_bytes=int(graphs_bytes * LOADED[precision]),
        activation_bytes=graph_activation_bytes(config),
        bytes_per_position=2 * kv_bytes,  # the cache, and its copy without gaps that a graph is given
    )


def graph_activation_bytes(config: ModelConfig) -> int:
    """Upper estimate of what one run of a graph takes beside the weights, as `ModelConfig.activation_bytes` for torch.

    Vision: of every crop the input, qkv and a few of the inner layer's values, and the attention matrix twice, in
    float32. Prefill: the new keys and values, which a graph holds in pieces, in one piece and in its output's type;
    the attention matrix twice; one layer's values. The factors cover what ONNX Runtime takes beside: measured with
    int8 graphs of the 0.5B shape, 565 MiB with four crops, where this says 628.
    """
    vision, text, prefix = config.vision, config.text, config.prefix_positions
    crop_values = vision.patches * (4 * vision.dim + 4 * vision.ff_dim + 2 * vision.heads * vision.patches)
    prefill_values = prefix * (6 * text.dim + 2 * text.ff_dim + 2 * text.heads * prefix)
    prefill_bytes = 4 * prefill_values + 10 * prefix * config.kv_values_per_position
    return max(2 * 4 * MOST_CROPS[config.cropping] * crop_values, prefill_bytes * 5 // 4)


def precision_of(directory: Path, config: ModelConfig) -> str:
    """What the decoder's graph holds its matrices in: float32, float16, int8 or int4.

    As the import saw it; else by its size: bytes of the file for each weight of a linear layer. The graph around them
    is small, and no two of these precisions are nearer than a factor of 1.7 (4-bit blocks with their scales take about
    0.6 bytes a weight).
    """
    seen = config.provenance.get("precision")
    if seen in PRECISIONS:
        return str(seen)
    text = config.text
    weights = text.layers * (4 * text.dim**2 + 2 * text.dim * text.ff_dim) + text.vocab * text.dim
    bytes_each = _size(directory / GRAPHS / "text_decoder.onnx") / weights
    return next(name for name, most in PRECISIONS.items() if bytes_each <= most)


def values_in(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header.

    The format: u64 little-endian length of the header, then the header, JSON (github.com/huggingface/safetensors).
    """
    _size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= MOST_HEADER_BYTES else None
        return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a usable safetensors file: its header cannot be read ({error})") from error


def _item_bytes(path: Path) -> int:
    """Bytes of one number of a NumPy file, by its header (numpy.lib.format)."""
    _size(path)
    with path.open("rb") as file:
        found = re.search(rb"'descr': '<f([24])'", file.read(128))
    if found is None:
        raise ModelError(f"{path}: not a NumPy file of float16 or float32")
    return int(found[1])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
