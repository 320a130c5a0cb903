"""From the structure of a moonfile's graphs to our tensors: each layer's place follows from what feeds it.

In a transformer block the product behind a norm that attention takes is qkv, the one behind attention is proj, the
one before GELU is fc1 and the one behind it fc2; blocks follow each other because each norm sees exactly the
residual sums of the blocks before. Shapes must then agree. What a graph does not show that way (how patches are
flattened, heads, rotary layout, mask) is measured (`measure`). It knows no file and writes none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_daemon.models.activations import gelu_factor
from edge_daemon.models.linear_layers import Layer
from edge_daemon.models.matrices import Floats
from edge_daemon.models.structure import Element, Kind, Structure


@dataclass(frozen=True)
class Source:
    """One tensor, float32, computed when it is read."""

    shape: tuple[int, ...]
    read: Callable[[], Floats] = field(repr=False)


Tensors = Mapping[str, Source]
"""By our names."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer, and what stands before and behind them."""

    dim: int
    ff_dim: int
    layers: int
    tensors: Tensors
    """Named without prefix: `blocks.0.attn.qkv.weight`, …"""
    last: Element
    """The norm behind the last block."""


@dataclass(frozen=True)
class _Block:
    """One block's layers and norms."""

    qkv: Element
    proj: Element
    fc1: Element
    fc2: Element
    norm: Element
    """Before attention."""
    mlp_norm: Element
    """Before the MLP; with a parallel residual the same."""


@dataclass(frozen=True)
class VisionEncoder:
    """What the vision encoder holds; the columns of `patch_emb.weight` are the graph's."""

    blocks: Blocks
    patches: int
    patch_emb: Element
    tensors: Tensors


@dataclass(frozen=True)
class TextDecoder:
    """What the decoder holds; q and k are in the graph's rotary layout."""

    blocks: Blocks
    vocab: int
    tensors: Tensors


@dataclass(frozen=True)
class RegionEncoder:
    """Fourier features and the layer behind them."""

    features: Floats = field(repr=False)
    """(n, F/2), as they are in the graph."""
    layer: Element
    """Its inputs are cosines and sines, in the graph's order."""


def vision_encoder(structure: Structure) -> VisionEncoder:
    """Patches through blocks to features. Raises ModelError for anything else."""
    first = _only(structure, [e for e in structure.of_kind("linear") if _kinds(e.origin) == {"input"}], "patch layer")
    blocks = _blocks(structure, first, parallel=False)
    dim = blocks.dim
    positions = [loose for loose in structure.loose if loose.origin == frozenset({first})]
    strange = [loose for loose in structure.loose if loose not in positions]
    if len(positions) != 1 or strange or np.prod(positions[0].shape) % dim:
        found = "; ".join(map(str, structure.loose)) or "none"
        raise structure.graph.refuse(f"one position embedding behind the patch layer is expected, found: {found}")
    constant, patches = positions[0].constant, int(np.prod(positions[0].shape)) // dim

    def pos_emb() -> Floats:
        return structure.graph.constant(constant).astype(np.float32).reshape(1, patches, dim)

    tensors = {
        **linear("vision.patch_emb", first),
        "vision.pos_emb": Source((1, patches, dim), pos_emb),
        **{f"vision.{name}": source for name, source in blocks.tensors.items()},
        **_norm("vision.post_ln", blocks.last),
    }
    return VisionEncoder(blocks, patches, first, tensors)


def text_decoder(structure: Structure) -> TextDecoder:
    """Embeddings through blocks to hidden states, keys and values, and logits. Raises ModelError for anything else."""
    _nothing_loose(structure)
    heads = [e for e in structure.of_kind("linear") if _kinds(e.origin) == {"norm"} and not structure.users[e]]
    head = _only(structure, heads, "layer that makes the logits")
    entrances = [e for e in structure.of_kind("input") if "norm" in _kinds(structure.users[e])]
    blocks = _blocks(structure, _only(structure, entrances, "input before a norm"), parallel=True)
    if head.origin != {blocks.last}:
        raise structure.graph.refuse(f"{head} makes the logits, but is not behind the last norm")
    if "hidden" in structure.graph.outputs and structure.origin("hidden") != blocks.last.origin:
        raise structure.graph.refuse("the output hidden is expected before the last norm")
    layer = _layer(head)
    if layer.columns != blocks.dim:
        raise structure.graph.refuse(f"{head} takes {layer.columns} values, the blocks give {blocks.dim}")
    tensors = {
        **{f"text.{name}": source for name, source in blocks.tensors.items()},
        **_norm("text.post_ln", blocks.last),
        **linear("text.lm_head", head),
    }
    return TextDecoder(blocks, layer.rows, tensors)


def text_encoder(structure: Structure) -> Source:
    """The embedding table (V, T)."""
    table = _only(structure, structure.of_kind("table"), "embedding table").table
    if table is None or len(structure.elements) != 2 or structure.loose:
        raise structure.graph.refuse("a table and nothing else is expected")
    return Source(table.shape, table.read)


def mlp(structure: Structure, prefix: str) -> Tensors:
    """Two layers with GELU between them, as `prefix.fc1` and `prefix.fc2`. Raises ModelError for anything else."""
    _nothing_loose(structure)
    layers = structure.of_kind("linear")
    if len(layers) != 2 or len(structure.of_kind("activation")) != 1 or structure.of_kind("norm"):
        raise structure.graph.refuse(f"two layers with GELU between them are expected, found: {_listed(structure)}")
    first, second = layers
    if _through(second, {"activation"}) != {first}:
        raise structure.graph.refuse(f"{second} is expected behind GELU and {first}")
    if _layer(first).rows != _layer(second).columns:
        raise structure.graph.refuse(f"{first} gives {_layer(first).rows}, {second} takes {_layer(second).columns}")
    return {**linear(f"{prefix}.fc1", first), **_behind_gelu(structure, f"{prefix}.fc2", first, second)}


def region_encoder(structure: Structure, inputs: int) -> RegionEncoder:
    """Fourier features of `inputs` numbers, and a layer. Raises ModelError for anything else."""
    layers = structure.of_kind("linear")
    if len(layers) == 2 and not structure.loose:
        first = _layer(layers[0])
        features, bias = first.weight().T, first.bias
    elif len(layers) == 1 and len(structure.loose) == 1 and inputs == 1:  # a matrix of one row is a factor
        factor = structure.loose[0]
        features, bias = structure.graph.constant(factor.constant).astype(np.float32).reshape(1, -1), None
        if factor.node.op != "Mul":
            raise structure.graph.refuse(f"{factor} is expected to multiply")
    else:
        found = f"{_listed(structure)} and {len(structure.loose)} other constants"
        raise structure.graph.refuse(f"Fourier features and one layer are expected, found: {found}")
    last = layers[-1]
    width = _layer(last).columns
    if bias is not None or features.shape != (inputs, width // 2) or width % 2:
        raise structure.graph.refuse(
            f"Fourier features {features.shape} before {last} of {width} inputs; ({inputs}, {width // 2}) is expected"
        )
    return RegionEncoder(np.ascontiguousarray(features), last)


def linear(prefix: str, element: Element, factor: float = 1.0) -> Tensors:
    """Weight, times a factor that belongs to it, and bias of a layer under our names."""
    layer = _layer(element)

    def bias() -> Floats:  # none in the graph is a bias of zero
        return np.zeros(layer.rows, np.float32) if layer.bias is None else layer.bias

    def matrix() -> Floats:
        return layer.weight() if factor == 1.0 else layer.weight() * np.float32(factor)

    weight = Source((layer.rows, layer.columns), matrix)
    return {f"{prefix}.weight": weight, f"{prefix}.bias": Source((layer.rows,), bias)}


def context(structure: Structure, least: int) -> int | None:
    """Positions that the graph's own tables (rotary, mask) hold; None where it has no table of positions.

    A table is a constant that is cut by values which are computed, and no shorter than `least`, the image prefix.
    """
    graph, lengths = structure.graph, []
    for node in graph.nodes:
        if node.op not in ("Slice", "Gather") or not graph.is_constant(node.inputs[0]):
            continue
        shape = graph.shape(node.inputs[0])
        if node.op == "Gather":
            axes = [int(node.attributes.get("axis", 0))]
        elif node.input(3) and graph.is_constant(node.input(3)):
            axes = [int(axis) for axis in graph.constant(node.input(3)).reshape(-1)]
        else:
            axes = []
        lengths += [shape[axis] for axis in axes if shape[axis] >= least]
    return min(lengths, default=None)


def _blocks(structure: Structure, entrance: Element, parallel: bool) -> Blocks:
    """All blocks, in order, each checked against the residual sums that its norms see."""
    graph, roles = structure.graph, _roles(structure)
    found: list[_Block] = []
    sums = frozenset({entrance})
    for qkv in roles["qkv"]:
        proj = _only(structure, [e for e in roles["proj"] if qkv in _through(e, {"attention"})], f"proj behind {qkv}")
        norm = _norm_before(structure, qkv)
        if parallel:
            inner = [e for e in roles["fc1"] if _same_norm(_norm_before(structure, e), norm)]
        else:
            inner = [e for e in roles["fc1"] if _norm_before(structure, e).origin == sums | {proj}]
        fc1 = _only(structure, inner, f"fc1 in the block of {qkv}")
        fc2 = _only(structure, [e for e in roles["fc2"] if fc1 in _through(e, {"activation"})], f"fc2 behind {fc1}")
        block = _Block(qkv, proj, fc1, fc2, norm, _norm_before(structure, fc1))
        if norm.origin != sums:
            raise graph.refuse(f"{norm} of block {len(found)} does not see the sum of the blocks before it")
        sums = sums | {proj, fc2}
        found.append(block)
    behind = [e for e in structure.of_kind("norm") if e.origin == sums]
    last = _only(structure, behind, f"norm behind the {len(found)} blocks")
    odd = len(structure.of_kind("norm")) - len({n for block in found for n in (block.norm, block.mlp_norm)}) - 1
    if not found or odd or any(len(roles[kind]) != len(found) for kind in ("proj", "fc1", "fc2")):
        raise graph.refuse(
            f"blocks of norm, attention and MLP are expected and a last norm, found: {_listed(structure)}"
        )
    dim, ff_dim = _layer(found[0].qkv).columns, _layer(found[0].fc1).rows
    _check_shapes(structure, found, dim, ff_dim)
    tensors = [_block_tensors(structure, index, block, parallel) for index, block in enumerate(found)]
    return Blocks(dim, ff_dim, len(found), {k: v for part in tensors for k, v in part.items()}, last)


def _roles(structure: Structure) -> dict[str, list[Element]]:
    """The layers by their neighbours."""
    roles: dict[str, list[Element]] = {"qkv": [], "proj": [], "fc1": [], "fc2": [], "other": []}
    for element in structure.of_kind("linear"):
        before, behind = _kinds(element.origin), _kinds(structure.users[element])
        if "activation" in behind:
            role = "fc1"
        elif "activation" in before:
            role = "fc2"
        elif "attention" in behind:
            role = "qkv"
        else:
            role = "proj" if "attention" in before else "other"
        roles[role].append(element)
    return roles


def _block_tensors(structure: Structure, index: int, block: _Block, parallel: bool) -> Tensors:
    prefix = f"blocks.{index}"
    norms = (
        _norm(f"{prefix}.ln", block.norm)
        if parallel
        else {**_norm(f"{prefix}.ln1", block.norm), **_norm(f"{prefix}.ln2", block.mlp_norm)}
    )
    return {
        **norms,
        **linear(f"{prefix}.attn.qkv", block.qkv),
        **linear(f"{prefix}.attn.proj", block.proj),
        **linear(f"{prefix}.mlp.fc1", block.fc1),
        **_behind_gelu(structure, f"{prefix}.mlp.fc2", block.fc1, block.fc2),
    }


def _check_shapes(structure: Structure, blocks: list[_Block], dim: int, ff_dim: int) -> None:
    shapes = {"qkv": (3 * dim, dim), "proj": (dim, dim), "fc1": (ff_dim, dim), "fc2": (dim, ff_dim)}
    for index, block in enumerate(blocks):
        for name, shape in shapes.items():
            element: Element = getattr(block, name)
            found = _layer(element).rows, _layer(element).columns
            if found != shape:
                raise structure.graph.refuse(f"{element}, {name} of block {index}, is {found}; {shape} is expected")
        for norm in (block.norm, block.mlp_norm):
            if norm.norm is not None and norm.norm.weight.shape != (dim,):
                raise structure.graph.refuse(
                    f"{norm} of block {index} is {norm.norm.weight.shape}; ({dim},) is expected"
                )


def _through(element: Element, kinds: set[Kind]) -> frozenset[Element]:
    """The elements that feed this one, looking through those of some kinds."""
    found, waiting = set[Element](), list(element.origin)
    seen = set[Element]()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.kind in kinds:
            waiting += source.origin
        else:
            found.add(source)
    return frozenset(found)


def _norm_before(structure: Structure, element: Element) -> Element:
    return _only(structure, [source for source in element.origin if source.kind == "norm"], f"norm before {element}")


def _same_norm(one: Element, other: Element) -> bool:
    """Whether two norms are one, or one that an exporter wrote twice."""
    if one is other:
        return True
    if one.norm is None or other.norm is None or one.origin != other.origin:
        return False
    return np.array_equal(one.norm.weight, other.norm.weight) and np.array_equal(one.norm.bias, other.norm.bias)


def _kinds(elements: frozenset[Element] | list[Element]) -> set[Kind]:
    return {element.kind for element in elements}


def _only(structure: Structure, found: list[Element], what: str) -> Element:
    if len(found) != 1:
        listed = ", ".join(map(str, found[:4])) or "none"
        raise structure.graph.refuse(f"one {what} is expected, found {len(found)}: {listed}")
    return found[0]


def _nothing_loose(structure: Structure) -> None:
    if structure.loose:
        listed = "; ".join(map(str, structure.loose[:4]))
        raise structure.graph.refuse(f"{len(structure.loose)} constants have no place in this model: {listed}")


def _listed(structure: Structure) -> str:
    kinds: tuple[Kind, ...] = ("linear", "norm", "activation", "attention", "table")
    return ", ".join(f"{len(structure.of_kind(kind))} {kind}" for kind in kinds)


def _layer(element: Element) -> Layer:
    assert element.layer is not None  # its kind is "linear"
    return element.layer


def _behind_gelu(structure: Structure, prefix: str, first: Element, second: Element) -> Tensors:
    return linear(prefix, second, gelu_factor(structure.graph, first, second))


def _norm(prefix: str, element: Element) -> Tensors:
    norm = element.norm
    assert norm is not None  # its kind is "norm"
    return {
        f"{prefix}.weight": Source(norm.weight.shape, lambda: norm.weight),
        f"{prefix}.bias": Source(norm.bias.shape, lambda: norm.bias),
    }
