"""What a model directory takes in memory, read from its files' sizes and headers. No torch, no NumPy: the daemon asks.

The numbers are those of the worker's resident memory, without the program itself. What torch computes with:

* Linear layers of vision and text are packed copies, in float32 or in int8, and the file's pages are given back.
* Norms, biases and position embeddings are used as they are mapped; they are small.
* Of the word embeddings, mapped as well, a page is touched for every token. Where the file holds another float type
  than is computed in, all of them are converted, and are there.
* The region head is mapped when somebody first looks for an object, and then all of it is read.
"""

from __future__ import annotations

import json
import mmap
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edge_daemon.errors import ModelError
from edge_daemon.model_files import GRAPHS, INITIAL_KV, WEIGHTS
from edge_daemon.moondream.config import MOST_CROPS, ModelConfig

MOST_HEADER_BYTES = 100 << 20
"""What the safetensors library itself accepts."""

PRECISIONS = {"int4": 0.75, "int8": 1.4, "float16": 2.8, "float32": float("inf")}
"""Up to how many bytes a weight is taken to be of this precision."""
LOADED = {"int4": 1.5, "int8": 1.3, "float16": 2.9, "float32": 1.2}
"""Resident bytes of open graphs for each byte of their files, at its peak, which is while the last one is opened.

Measured with ONNX Runtime 1.32.0 and graphs of the 0.5B shape: 1.27, 2.88 and 1.18. It computes float16 in float32
on a CPU and keeps both. int4 is a guess: there was no such file to measure.
"""


FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 4}
"""Of what lies between the linear layers, by the precision that these are computed in."""
STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "F32"}
"""The type in the file with which nothing has to be converted."""
EMBEDDINGS = "text.wte"
BOS_KV = "text.bos_kv"
"""Tensor (layers, 2, heads, 1, head_dim) of a checkpoint with `bos_state: stored`."""
CHANNEL_BYTES = 12
"""An int8 layer's scale, zero and sum of weights, for each of its outputs."""
PADDED = {"float32": (1.005, 1.06), "int8": (1.02, 1.1)}
"""What packing makes of a matrix: where both sides are multiples of SIDE, and elsewhere.

Measured with torch 2.13 on x86-64: in the decoder's shapes 1.003 and 1.018; over a block of the 0.5B's vision encoder,
with its sides of 720 and 2690, 1.056 in float32 and 1.097 in int8."""
SIDE = 64
SESSION_BYTES = {"aarch64": 480 << 10}
"""What ONNX Runtime holds for each int8 layer beside its weights, by platform.machine(): measured with 3 threads."""
KERNELS_BYTES = {"aarch64": 32 << 20}
"""Its library and that which makes its graphs, once they are imported."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Footprint:
    """What does not depend on the length of the KV cache, and what one position of it takes."""

    vision_bytes: int
    """Weights of the encoder and the projection; these can be given back between two pictures."""
    text_bytes: int
    """Weights of the decoder."""
    region_bytes: int
    """Weights of the region head, which a worker that only captions and answers never reads."""
    vision_activation_bytes: int
    """The work space of one picture in the encoder."""
    text_activation_bytes: int
    """The work space of a picture and its prompt in the decoder."""
    bytes_per_position: int


def footprint(
    directory: Path, config: ModelConfig, precision: str = "float32", kv_precision: str = "auto"
) -> Footprint:
    """Of a directory whose `config.json` is `config`, when torch computes in `precision` and caches in `kv_precision`.

    Graphs have their own of both. Raises ModelError for a file that is missing or has no readable header.
    """
    if config.engine == "torch":
        return footprint_of(tensors_in(directory / WEIGHTS), config, precision, kv_precision)
    loaded = LOADED[precision_of(directory, config)]
    graphs = {path.stem: int(_size(path) * loaded) for path in (directory / GRAPHS).glob("*.onnx")}
    vision_bytes = sum(size for name, size in graphs.items() if name.startswith("vision_"))
    region_bytes = sum(size for name, size in graphs.items() if name.startswith(("coord_", "size_")))
    vision_activation_bytes, text_activation_bytes = graph_activation_bytes(config)
    kv_bytes = config.kv_values_per_position * _item_bytes(directory / INITIAL_KV)
    return Footprint(
        vision_bytes=vision_bytes,
        text_bytes=sum(graphs.values()) - vision_bytes - region_bytes,
        region_bytes=region_bytes,
        vision_activation_bytes=vision_activation_bytes,
        text_activation_bytes=text_activation_bytes,
        bytes_per_position=2 * kv_bytes,  # the cache, and its copy without gaps that a graph is given
    )


def footprint_of(
    tensors: Mapping[str, Stored], config: ModelConfig, precision: str = "float32", kv_precision: str = "auto"
) -> Footprint:
    """The same of named tensors, for torch."""
    weights = {"vision": 0, "text": 0, "region": 0}
    for name, tensor in tensors.items():
        part = name.partition(".")[0]
        weights[part if part in weights else "text"] += _resident_bytes(name, tensor, config, precision)
    if precision == "int8":
        weights["text"] += KERNELS_BYTES.get(platform.machine(), 0)
    float_bytes = FLOAT_BYTES[precision]
    return Footprint(
        vision_bytes=weights["vision"],
        text_bytes=weights["text"],
        region_bytes=weights["region"],
        vision_activation_bytes=config.vision_activation_bytes * float_bytes // 4,
        text_activation_bytes=config.text_activation_bytes * float_bytes // 4,
        bytes_per_position=_kv_bytes(config, precision, kv_precision),
    )


def _kv_bytes(config: ModelConfig, precision: str, kv_precision: str) -> int:
    """Of one position: all layers as they are kept, and where they are widened to be read, one layer of that."""
    float_bytes, values = FLOAT_BYTES[precision], config.kv_values_per_position
    if kv_precision == "float32" or (kv_precision == "auto" and precision != "int8") or float_bytes == 2:
        return values * float_bytes
    return values * 2 + values // config.text.layers * float_bytes


def _resident_bytes(name: str, tensor: Stored, config: ModelConfig, precision: str) -> int:
    float_bytes = tensor.values * FLOAT_BYTES[precision]
    if name == EMBEDDINGS and tensor.dtype == STORED_AS[precision]:
        return min(float_bytes, config.text.max_context * mmap.PAGESIZE)
    part, _, layer = name.partition(".")
    linear = len(tensor.shape) == 2 and layer.endswith(".weight") and part != "region"
    if not linear or precision not in PADDED:
        return float_bytes
    factor = PADDED[precision][any(side % SIDE for side in tensor.shape)]
    if precision == "int8":
        session_bytes = SESSION_BYTES.get(platform.machine(), 0)
        return int(tensor.values * factor) + CHANNEL_BYTES * tensor.shape[0] + session_bytes
    return int(float_bytes * factor)


def tensors_of(config: ModelConfig, dtype: str = "F32") -> dict[str, Stored]:
    """The tensors of a checkpoint of this shape, for one that is not here. Names are those of `model.safetensors`."""
    vision, text, region = config.vision, config.text, config.region
    shapes = _linear("vision.patch_emb", 3 * vision.patch_px**2, vision.dim)
    shapes |= {"vision.pos_emb": (1, vision.patches, vision.dim)} | _norm("vision.post_ln", vision.dim)
    shapes |= _mlp("vision.proj_mlp", 2 * vision.dim, vision.projection_dim, text.dim)
    shapes |= {EMBEDDINGS: (text.vocab, text.dim)} | _norm("text.post_ln", text.dim)
    shapes |= _linear("text.lm_head", text.dim, text.vocab)
    parts: tuple[tuple[str, int, int, int, tuple[str, ...]], ...] = (
        ("vision", vision.layers, vision.dim, vision.ff_dim, ("ln1", "ln2")),
        ("text", text.layers, text.dim, text.ff_dim, ("ln",)),
    )
    for part, layers, dim, ff_dim, norms in parts:
        for block in (f"{part}.blocks.{index}" for index in range(layers)):
            shapes |= _linear(f"{block}.attn.qkv", dim, 3 * dim) | _linear(f"{block}.attn.proj", dim, dim)
            shapes |= _mlp(f"{block}.mlp", dim, ff_dim, dim)
            for norm in norms:
                shapes |= _norm(f"{block}.{norm}", dim)
    if config.bos_state == "stored":
        shapes[BOS_KV] = (text.layers, 2, text.heads, 1, text.head_dim)
    if region is not None:
        shapes["region.coord_features"] = (1, region.coord_features // 2)
        shapes["region.size_features"] = (2, region.size_features // 2)
        shapes |= _linear("region.coord_encoder", region.coord_features, text.dim)
        shapes |= _linear("region.size_encoder", region.size_features, text.dim)
        shapes |= _mlp("region.coord_decoder", text.dim, region.inner_dim, region.coord_bins)
        shapes |= _mlp("region.size_decoder", text.dim, region.inner_dim, 2 * region.size_bins)
    return {name: Stored(dtype, shape) for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _mlp(name: str, inputs: int, inner: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return _linear(f"{name}.fc1", inputs, inner) | _linear(f"{name}.fc2", inner, outputs)


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def graph_activation_bytes(config: ModelConfig) -> tuple[int, int]:
    """Upper estimates of what one run of a graph takes beside the weights: the vision encoder, the decoder.

    Vision: of every crop the input, qkv and a few of the inner layer's values, and the attention matrix twice, in
    float32. Prefill: the new keys and values, which a graph holds in pieces, in one piece and in its output's type;
    the attention matrix twice; one layer's values. The factors cover what ONNX Runtime takes beside: measured with
    int8 graphs of the 0.5B shape, 565 MiB with four crops, where this says 628.
    """
    vision, text, prefix = config.vision, config.text, config.prefix_positions
    crop_values = vision.patches * (4 * vision.dim + 4 * vision.ff_dim + 2 * vision.heads * vision.patches)
    prefill_values = prefix * (6 * text.dim + 2 * text.ff_dim + 2 * text.heads * prefix)
    prefill_bytes = 4 * prefill_values + 10 * prefix * config.kv_values_per_position
    return 2 * 4 * MOST_CROPS[config.cropping] * crop_values, prefill_bytes * 5 // 4


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


def tensors_in(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by its header.

    The format: u64 little-endian length of the header, then the header, JSON (github.com/huggingface/safetensors).
    """
    _size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if length <= MOST_HEADER_BYTES else None
        return {
            name: Stored(str(tensor["dtype"]), tuple(int(side) for side in tensor["shape"]))
            for name, tensor in header.items()
            if name != "__metadata__"
        }
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
