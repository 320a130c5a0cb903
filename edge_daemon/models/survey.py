"""All eight graphs of a moonfile: what shape of model they are, and its tensors, one graph in memory at a time.

The graphs are looked at twice: first for the shapes of everything and for what must be measured, so that the file
of weights can be laid out; then for the weights. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from edge_daemon.models import measure, recover
from edge_daemon.models.container import GRAPH_NAMES
from edge_daemon.models.folding import Array, Graph, refusal
from edge_daemon.models.matrices import Floats
from edge_daemon.models.measure import Indices, Layout, Patches
from edge_daemon.models.recover import Source, Tensors
from edge_daemon.models.store import Progress
from edge_daemon.models.structure import Structure
from edge_daemon.models.unpacked import CLIENT_POSITIONS
from edge_daemon.moondream.config import Mask, RegionConfig, TextConfig, VisionConfig
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision

REGION_INPUTS = {"coord": 1, "size": 2}
"""What the region encoders take: a coordinate; a width and a height."""


@dataclass(frozen=True)
class Measured:
    """What turns the graphs' tensors into ours."""

    patches: Patches
    layout: Layout
    heads: int
    head_dim: int
    waves: Mapping[str, Indices] = field(repr=False)
    """By `coord` and `size`: the order of the columns behind the Fourier features."""
    features: Mapping[str, Floats] = field(repr=False)
    """By `coord` and `size`: ours."""


@dataclass(frozen=True)
class Survey:
    """A moonfile's graphs, understood."""

    directory: Path
    kv: Array = field(repr=False)
    vision: VisionConfig
    text: TextConfig
    region: RegionConfig
    mask: Mask
    measured: Measured
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Of all tensors, in the order in which they come."""

    @property
    def layout(self) -> Layout:
        """How the graphs rotate."""
        return self.measured.layout

    def tensors(self) -> Iterator[tuple[str, Source]]:
        """All tensors, in the order of `shapes`."""
        for name in GRAPH_NAMES:
            yield from _ours(name, structure_of(self.directory, name), self.measured).items()
        yield BOS_KV, Source(self.shapes[BOS_KV], lambda: bos_kv(self.kv, self.layout))


def structure_of(directory: Path, name: str) -> Structure:
    """One graph, taken apart anew: it is not kept."""
    return Structure(Graph(directory / f"{name}.onnx"))


def survey(directory: Path, kv: Array, progress: Progress) -> Survey:
    """Look at all graphs in `directory`; `kv` is `initial_kv_cache.npy`, (L, 2, 1, H, 1, E).

    Raises ModelError, which names the graph, for whatever is not understood or does not fit the rest.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    progress("vision_encoder.onnx", 0.0)
    vision, patches = _vision(directory, shapes)
    progress("text_decoder.onnx", 0.2)
    text, layout, mask = _text(directory, kv, vision.patches, shapes)
    progress("coord_encoder.onnx", 0.9)
    region, waves, features = _region(directory, shapes)
    shapes[BOS_KV] = bos_kv(kv, layout).shape
    _check_shapes(shapes, vision, text, region)
    measured = Measured(patches, layout, text.heads, text.head_dim, waves, features)
    return Survey(directory, kv, vision, text, region, mask, measured, shapes)


def _vision(directory: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[VisionConfig, Patches]:
    structure = structure_of(directory, "vision_encoder")
    encoder = recover.vision_encoder(structure)
    patches = measure.patches(structure, encoder)
    heads = measure.vision_heads(structure, encoder.patches, encoder.blocks.dim, patches.crop_px)
    projection = recover.mlp(structure_of(directory, "vision_projection"), "vision.proj_mlp")
    _note(shapes, encoder.tensors, projection)
    blocks = encoder.blocks
    inner = projection["vision.proj_mlp.fc1.weight"].shape[0]
    config = VisionConfig(blocks.dim, blocks.ff_dim, blocks.layers, heads, patches.patch_px, patches.crop_px, inner)
    return config, patches


def _text(
    directory: Path, kv: Array, patch_count: int, shapes: dict[str, tuple[int, ...]]
) -> tuple[TextConfig, Layout, Mask]:
    layers, _, _, heads, _, head_dim = kv.shape
    table = recover.text_encoder(structure_of(directory, "text_encoder"))
    probe = measure.decoder_run(directory / "text_decoder.onnx", kv, patch_count)
    structure = structure_of(directory, "text_decoder")
    decoder = recover.text_decoder(structure)
    blocks = decoder.blocks
    if (blocks.layers, blocks.dim) != (layers, heads * head_dim):
        found = f"{blocks.layers} blocks of width {blocks.dim}"
        raise structure.graph.refuse(f"{found}; the stored BOS {kv.shape} says {layers} of {heads * head_dim}")
    layout = measure.layout(probe, decoder.tensors)
    context = recover.context(structure, 1 + patch_count) or CLIENT_POSITIONS
    text = TextConfig(blocks.dim, blocks.ff_dim, layers, heads, decoder.vocab, context, layout.rotary_dim)
    ours = _rotated(decoder.tensors, layout, heads, head_dim)
    mask = measure.mask(probe, ours, text, bos_kv(kv, layout), 1 + patch_count)
    _note(shapes, {"text.wte": table}, decoder.tensors)
    return text, layout, mask


def _region(
    directory: Path, shapes: dict[str, tuple[int, ...]]
) -> tuple[RegionConfig, dict[str, Indices], dict[str, Floats]]:
    waves, features, widths, outputs, inner = {}, {}, {}, {}, {}
    for kind, inputs in REGION_INPUTS.items():
        structure = structure_of(directory, f"{kind}_encoder")
        encoder = recover.region_encoder(structure, inputs)
        features[kind], waves[kind] = measure.waves(structure, encoder)
        decoder = recover.mlp(structure_of(directory, f"{kind}_decoder"), f"region.{kind}_decoder")
        widths[kind] = 2 * features[kind].shape[1]
        inner[kind], outputs[kind] = (decoder[f"region.{kind}_decoder.{fc}.weight"].shape[0] for fc in ("fc1", "fc2"))
        _note(shapes, _encoder_tensors(kind, encoder, features[kind], waves[kind]), decoder)
    bins = outputs["coord"], outputs["size"] // 2
    config = RegionConfig(widths["coord"], bins[0], widths["size"], bins[1], inner["coord"], "linear")
    return config, waves, features


def _note(shapes: dict[str, tuple[int, ...]], *parts: Tensors) -> None:
    shapes.update((name, source.shape) for part in parts for name, source in part.items())


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], vision: VisionConfig, text: TextConfig, region: RegionConfig
) -> None:
    """Raise ModelError for a graph that does not fit the others."""
    with torch.device("meta"):
        modules = {"vision": Vision(vision, text.dim), "text": Text(text), "region": Region(region, text.dim)}
    for part, module in modules.items():
        for key, tensor in module.state_dict().items():
            name, wanted = f"{part}.{key}", tuple(tensor.shape)
            if shapes.get(name) != wanted:
                what = f"{name} is {shapes.get(name)}, by the other graphs of this moonfile it should be {wanted}"
                raise refusal(_graph_of(name), what)


def _graph_of(tensor: str) -> str:
    """The graph that a tensor comes from."""
    part, _, rest = tensor.partition(".")
    if part == "region":
        return f"{rest.partition('_')[0]}_{'decoder' if 'decoder' in rest else 'encoder'}.onnx"
    if part == "vision":
        return "vision_projection.onnx" if rest.startswith("proj_mlp") else "vision_encoder.onnx"
    return "text_encoder.onnx" if rest == "wte" else "text_decoder.onnx"


def _ours(name: str, structure: Structure, measured: Measured) -> Tensors:
    """The tensors of one graph as we use them."""
    kind, _, what = name.partition("_")
    if name == "vision_encoder":
        tensors = dict(recover.vision_encoder(structure).tensors)
        patch_emb = "vision.patch_emb.weight"
        return tensors | {patch_emb: _columns(tensors[patch_emb], measured.patches.columns)}
    if name == "vision_projection":
        return recover.mlp(structure, "vision.proj_mlp")
    if name == "text_encoder":
        return {"text.wte": recover.text_encoder(structure)}
    if name == "text_decoder":
        return _rotated(recover.text_decoder(structure).tensors, measured.layout, measured.heads, measured.head_dim)
    if what == "decoder":
        return recover.mlp(structure, f"region.{kind}_decoder")
    encoder = recover.region_encoder(structure, REGION_INPUTS[kind])
    return _encoder_tensors(kind, encoder, measured.features[kind], measured.waves[kind])


def _encoder_tensors(kind: str, encoder: recover.RegionEncoder, features: Floats, order: Indices) -> Tensors:
    layer = dict(recover.linear(f"region.{kind}_encoder", encoder.layer))
    weight = f"region.{kind}_encoder.weight"
    layer[weight] = _columns(layer[weight], order)
    return {f"region.{kind}_features": Source(features.shape, lambda: features), **layer}


def _rotated(tensors: Tensors, layout: Layout, heads: int, head_dim: int) -> Tensors:
    """The same tensors with q and k in our rotary layout."""
    rows = layout.rows(heads, head_dim)
    if not layout.pairs_in:
        return tensors
    return {name: _rows(source, rows) if ".attn.qkv." in name else source for name, source in tensors.items()}


def _rows(source: Source, rows: Indices) -> Source:
    return Source(source.shape, lambda: np.take(source.read(), rows, axis=0))


def _columns(source: Source, columns: Indices) -> Source:
    return Source(source.shape, lambda: np.take(source.read(), columns, axis=1))


def bos_kv(kv: Array, layout: Layout) -> Floats:
    """The stored state of BOS (L, 2, 1, H, 1, E) as ours: (L, 2, H, 1, E), float32, keys in our rotary layout."""
    ours = kv[:, :, 0].astype(np.float32)
    ours[:, 0] = ours[:, 0][..., layout.keys(kv.shape[-1])]
    return ours
