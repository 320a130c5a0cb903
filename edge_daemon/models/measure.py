"""What a moonfile's graphs do not show by their structure, measured: pieces of them run on probes in ONNX Runtime.

How patches are flattened, how many heads the vision encoder has, how cosines and sines are ordered, how positions
rotate and who may attend to whom: exporters write each of these in many ways, but all ways give the same numbers.
So a hypothesis is taken only when its numbers are the graph's, and no other hypothesis comes near; otherwise the
graph is refused, with the error of each. Whether the whole model is right is not settled here but by the proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_daemon.models.folding import Array, refusal
from edge_daemon.models.matrices import Floats
from edge_daemon.models.probing import relative, run, session
from edge_daemon.models.recover import RegionEncoder, Tensors, VisionEncoder
from edge_daemon.models.structure import Structure
from edge_daemon.models.unpacked import CLIENT_CROP_PX
from edge_daemon.moondream.config import Mask, TextConfig
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.text import Text, attend, rotary_table, rotate

MOST_ERROR = 0.25
"""Relative error of a hypothesis that is taken. Activations quantized to 8 bits cost a few hundredths; a wrong
layout or mask about 1."""
MOST_WAVE_ERROR = 0.02
"""The same for Fourier features, whose probes are exact but for float16, or for 8 bits of a width and a height."""
LEAST_DISTANCE = 2.0
"""How many times larger the error of every other hypothesis must be."""
PROBE_STD = 0.5
"""Of probe embeddings: small, so that attention weighs in the residual sum; far above the norms' epsilon."""
FIRST_ROWS = 32
"""Positions in which the mask is looked for: the earliest, where causal attention sees the least."""
TYPES: dict[str, type[np.floating[Any]]] = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
"""What a decoder may take, in ONNX Runtime's words."""
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Patches:
    """How a picture is taken apart."""

    patch_px: int
    crop_px: int
    columns: Indices = field(repr=False)
    """Column j of our patch layer is column `columns[j]` of the graph's."""


@dataclass(frozen=True)
class Layout:
    """How the decoder rotates."""

    rotary_dim: int
    pairs_in: bool
    """Whether dimensions 2i and 2i+1 of q and k turn together; else i and i + rotary_dim/2."""
    pairs_out: bool
    """Whether the turned pairs lie side by side in the keys, and so in a stored KV cache."""

    def __str__(self) -> str:
        before, behind = (("pairs" if pairs else "halves") for pairs in (self.pairs_in, self.pairs_out))
        return f"{before} of {self.rotary_dim} to {behind}"

    def rows(self, heads: int, head_dim: int) -> Indices:
        """Row j of our qkv is row `rows[j]` of the graph's."""
        order = halves(self.rotary_dim, head_dim) if self.pairs_in else np.arange(head_dim)
        head = (np.arange(heads)[:, None] * head_dim + order).reshape(-1)
        dim = heads * head_dim
        return np.concatenate([head, dim + head, 2 * dim + np.arange(dim)])

    def keys(self, head_dim: int) -> Indices:
        """Dimension j of our keys is dimension `keys[j]` of the graph's."""
        return halves(self.rotary_dim, head_dim) if self.pairs_out else np.arange(head_dim)


def halves(rotary_dim: int, head_dim: int) -> Indices:
    """Indices that put the first of all pairs before the second of all pairs: 0 2 4 … 1 3 5 …, then the rest."""
    pairs = np.arange(rotary_dim).reshape(-1, 2)
    return np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(rotary_dim, head_dim)])


def patches(structure: Structure, encoder: VisionEncoder) -> Patches:
    """Where each input of the patch layer comes from: pictures of channel, row and column numbers are fed.

    Raises ModelError when the pixels do not arrive as they are, patch by patch and row by row.
    """
    graph, layer = structure.graph, encoder.patch_emb.layer
    assert layer is not None  # a linear element
    picture = next(value for value in graph.model.graph.input if value.name == graph.inputs[0])
    crop_px = picture.type.tensor_type.shape.dim[-1].dim_value or CLIENT_CROP_PX
    patch_px = math.isqrt(layer.columns // 3)
    grid = crop_px // patch_px if patch_px else 0
    if 3 * patch_px**2 != layer.columns or grid**2 != encoder.patches or grid * patch_px != crop_px:
        raise graph.refuse(
            f"{encoder.patch_emb} takes {layer.columns} values for each of {encoder.patches} patches; "
            f"3 x {patch_px} x {patch_px} px of a crop of {crop_px} px are expected"
        )
    places = np.indices((3, crop_px, crop_px))
    arrived = [run(graph, [layer.source], {graph.inputs[0]: place[None]})[0] for place in places]
    if arrived[0].shape[1:] == places.shape[1:]:  # a convolution takes the picture itself, and orders as we do
        arrived = [_apart(place[0], patch_px) for place in arrived]
    channel, row, column = (place.reshape(encoder.patches, layer.columns).astype(np.float64) for place in arrived)
    which = row // patch_px * grid + column // patch_px
    inside = channel * patch_px**2 + row % patch_px * patch_px + column % patch_px
    ordered = np.array_equal(which, np.broadcast_to(np.arange(encoder.patches)[:, None], which.shape))
    if not ordered or not np.array_equal(np.sort(inside[0]), np.arange(layer.columns)) or np.ptp(inside, axis=0).any():
        raise graph.refuse(f"{encoder.patch_emb} is expected to take the pixels of one patch after the other")
    return Patches(patch_px, crop_px, np.argsort(inside[0]))


def _apart(picture: Array, patch_px: int) -> Array:
    """(3, S, S) → (P, 3·patch_px²), as (channel, row, column)."""
    grid = picture.shape[-1] // patch_px
    squares = picture.reshape(3, grid, patch_px, grid, patch_px).transpose(1, 3, 0, 2, 4)
    return squares.reshape(grid * grid, -1)


def vision_heads(structure: Structure, patch_count: int, dim: int, crop_px: int) -> int:
    """Heads of the vision encoder, from the shape of the first block's attention scores."""
    graph = structure.graph
    attention = structure.of_kind("attention")[0]
    node = attention.node
    assert node is not None  # only inputs have none
    told = node.attributes.get("num_heads") or node.attributes.get("q_num_heads")
    if told:
        return int(told)
    (scores,) = run(graph, [attention.output], {graph.inputs[0]: np.zeros((1, 3, crop_px, crop_px))})
    heads = scores.shape[1] if node.op == "Attention" else scores.size // patch_count**2
    if not heads or dim % heads:
        raise graph.refuse(f"{node} has scores {scores.shape}; (1, heads, {patch_count}, {patch_count}) is expected")
    return int(heads)


def waves(structure: Structure, encoder: RegionEncoder) -> tuple[Floats, Indices]:
    """Our Fourier features (n, F/2), to be multiplied with 2π, and the order of the layer's columns.

    Column j of our layer is column `order[j]` of the graph's. Raises ModelError when nothing fits.
    """
    graph, features, layer = structure.graph, encoder.features, encoder.layer.layer
    assert layer is not None  # a linear element
    half = features.shape[1]
    both = np.arange(2 * half)
    orders = {
        "cos, sin": both,
        "sin, cos": np.roll(both, half),
        "cos and sin in turn": both.reshape(half, 2).T.reshape(-1),
        "sin and cos in turn": both.reshape(half, 2).T[::-1].reshape(-1),
    }
    size = 0.5 / float(np.abs(features).max() or 1.0)  # angles up to 3: exact enough in float16
    x = np.linspace(size / 2, size, len(features)).astype(np.float16)
    (found,) = run(graph, [layer.source], {graph.inputs[0]: x})
    errors: dict[str, float] = {}
    for factor_name, factor in {"2π": 2 * math.pi, "1": 1.0}.items():
        angles = factor * x.astype(np.float64) @ features
        ours = np.concatenate([np.cos(angles), np.sin(angles)])
        errors |= {
            f"{name}, factor {factor_name}": relative(found.reshape(-1)[order], ours) for name, order in orders.items()
        }
    name = _settled(graph.name, "Fourier features", errors, MOST_WAVE_ERROR)
    order = orders[name.rpartition(", factor")[0]]
    return (features if name.endswith("2π") else (features / (2 * math.pi)).astype(np.float32)), order


def _settled(graph: str, what: str, errors: Mapping[str, float], most: float = MOST_ERROR) -> str:
    """The one hypothesis that fits."""
    first, *others = sorted(errors, key=lambda name: errors[name])
    near = [name for name in others if errors[name] <= LEAST_DISTANCE * errors[first]]
    if errors[first] > most or near:
        listed = ", ".join(f"{name}: {errors[name]:.2g}" for name in [first, *others][:8])
        raise refusal(graph, f"{what} cannot be settled by comparison; relative error of each possibility: {listed}")
    return first


class _Recorder:
    """A KV cache of a few layers that remembers what goes in, behind ready-made positions (layers, 2, heads, p, E)."""

    def __init__(self, past: Tensor) -> None:
        self.past = past
        self.new: list[Tensor] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.new.append(torch.stack([k[0], v[0]]))
        before = self.past[layer][:, None]
        return torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)

    def advance(self, n: int) -> None:
        """The positions need no counting here."""


@dataclass(frozen=True)
class Decoder:
    """A decoder's graph, run once over a whole image prefix of probe embeddings."""

    name: str
    """Of the graph."""
    embeddings: Floats = field(repr=False)
    """(1, s, T)."""
    kv: Floats = field(repr=False)
    """(L, 2, H, 1, E): BOS, as stored."""
    new: Floats = field(repr=False)
    """(L, 2, H, s, E): what the graph makes."""
    hidden: Floats = field(repr=False)
    """(1, s, T)."""


def decoder_run(path: Path, kv: Array, positions: int) -> Decoder:
    """Run a decoder's graph behind `kv` (L, 2, 1, H, 1, E). Raises ModelError when it is none."""
    layers, _, _, heads, _, head_dim = kv.shape
    random = np.random.default_rng(0)
    try:
        decoder = session(path)
        types = {value.name: TYPES[value.type] for value in decoder.get_inputs()}
        x = random.normal(0, PROBE_STD, (1, positions, heads * head_dim)).astype(types["input_embeds"])
        feeds = {"input_embeds": x, "kv_cache": kv.astype(types["kv_cache"])}
        hidden, new = decoder.run(["hidden", "new_kv_cache"], feeds)
    except Exception as error:  # and KeyError, ValueError: of other types, of other names
        raise refusal(path.name, f"it does not run as a moonfile's decoder: {type(error).__name__}: {error}") from error
    if new.shape != (layers, 2, 1, heads, positions, head_dim) or hidden.shape != x.shape:
        what = f"hidden {hidden.shape} and new_kv_cache {new.shape} do not fit {x.shape} behind kv_cache {kv.shape}"
        raise refusal(path.name, what)
    x, kv, new, hidden = (array.astype(np.float32) for array in (x, kv, new, hidden))
    return Decoder(path.name, x, kv[:, :, 0], new[:, :, 0], hidden)


@torch.inference_mode()
def layout(probe: Decoder, tensors: Tensors) -> Layout:
    """How keys are rotated, from those of the first block. Raises ModelError when nothing fits."""
    heads, positions, head_dim = probe.new.shape[2:]
    raw = _first_keys_and_values(probe, tensors).view(positions, 2, heads, head_dim).permute(1, 2, 0, 3)
    wrong = relative(raw[1].numpy(), probe.new[0, 1])
    if wrong > MOST_ERROR:
        raise refusal(probe.name, f"the values of block 0 are not the last third of qkv (relative error {wrong:.2g})")
    past = probe.kv.shape[3]
    where = torch.arange(past, past + positions)
    errors: dict[str, float] = {}
    possible: dict[str, Layout] = {}
    for rotary_dim in range(2, head_dim + 1, 2):
        table = rotary_table(where, rotary_dim)
        for pairs_in, pairs_out in ((False, False), (False, True), (True, False), (True, True)):
            candidate = Layout(rotary_dim, pairs_in, pairs_out)
            if rotary_dim == 2 and (pairs_in or pairs_out):  # one pair lies the same either way
                continue
            ours = rotate(raw[0][..., torch.from_numpy(candidate.rows(1, head_dim)[:head_dim])], table).numpy()
            possible[str(candidate)] = candidate
            errors[str(candidate)] = relative(probe.new[0, 0][..., candidate.keys(head_dim)], ours)
    return possible[_settled(probe.name, "the rotary layout", errors)]


def _first_keys_and_values(probe: Decoder, tensors: Tensors) -> Tensor:
    """(s, 2T): keys and values of block 0, not rotated."""

    def read(name: str) -> Tensor:
        return torch.from_numpy(tensors[f"text.blocks.0.{name}"].read().copy())

    x = torch.from_numpy(probe.embeddings[0])
    y = torch.nn.functional.layer_norm(x, x.shape[1:], read("ln.weight"), read("ln.bias"))
    both: Tensor = y @ read("attn.qkv.weight")[x.shape[1] :].T + read("attn.qkv.bias")[x.shape[1] :]
    return both


@torch.inference_mode()
def mask(probe: Decoder, tensors: Tensors, config: TextConfig, bos_kv: Floats, prefix: int) -> Mask:
    """Who attends to whom in the image prefix, from our first two blocks. Raises ModelError when neither fits.

    `tensors`, `config` and `bos_kv` (L, 2, H, 1, E) are in our rotary layout already. Compared are the values of the
    second block, which have no layout and depend on what the first block attended to.
    """
    layers = min(2, config.layers)
    with torch.device("meta"):
        text = Text(replace(config, layers=layers))
    for index, block in enumerate(text.blocks):
        names = block.state_dict()
        state = {name: torch.from_numpy(tensors[f"text.blocks.{index}.{name}"].read().copy()) for name in names}
        block.load_state_dict(state, assign=True)
    x, past = torch.from_numpy(probe.embeddings), bos_kv.shape[3]
    positions = torch.arange(past, past + x.shape[1])
    errors: dict[str, float] = {}
    kinds: Sequence[tuple[Mask, int]] = (("causal", 0), ("prefix", prefix))
    for kind, seen in kinds:
        recorder = _Recorder(torch.from_numpy(np.ascontiguousarray(bos_kv[:layers])))
        hidden = text(x, positions, partial(attend, past=past, prefix=seen), cast("KVCache", recorder))
        ours, theirs = (recorder.new[1][1].numpy(), probe.new[1, 1]) if layers == 2 else (hidden.numpy(), probe.hidden)
        errors[kind] = relative(ours[:, :FIRST_ROWS], theirs[:, :FIRST_ROWS])
    return cast("Mask", _settled(probe.name, "the attention mask", errors))
