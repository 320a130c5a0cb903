"""Upstream's names of tensors, in both of its layouts, and what their shapes say about the architecture.

The newer layout has our names (upstream's torch/moondream.py since January 2025); the older one is what
upstream's torch/weights.py still reads (`vision_encoder.encoder.model.visual.…`, `text_model.transformer.h.…`,
`region_model.…`). Both may carry a `model.` in front, as the Hugging Face wrapper writes it, and `_orig_mod.`
inside, as torch.compile does. Every name is accounted for: mapped, known to be no weight, or refused.

Upstream rotates the same pairs (i, i + rotary_dim/2) of a head as we do and only writes the result interleaved
(torch/rope.py), in q and k alike, so their product is the same and no row of qkv has to move.
It knows names and shapes; no files, no numbers, no tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge_daemon.errors import ModelError
from edge_daemon.models.upstream import Conventions
from edge_daemon.moondream.config import RegionConfig, SizeScale, TextConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]

OLDER = (
    (r"vision_encoder\.encoder\.model\.visual\.patch_embed\.linear\.(\w+)", r"vision.patch_emb.\1"),
    (r"vision_encoder\.encoder\.model\.visual\.pos_embed", r"vision.pos_emb"),
    (r"vision_encoder\.encoder\.model\.visual\.blocks\.(\d+)\.norm([12])\.(\w+)", r"vision.blocks.\1.ln\2.\3"),
    (r"vision_encoder\.encoder\.model\.visual\.blocks\.(\d+)\.(attn|mlp)\.(\w+)\.(\w+)", r"vision.blocks.\1.\2.\3.\4"),
    (r"vision_encoder\.encoder\.model\.visual\.norm\.(\w+)", r"vision.post_ln.\1"),
    (r"vision_encoder\.projection\.mlp\.(fc[12])\.(\w+)", r"vision.proj_mlp.\1.\2"),
    (r"text_model\.transformer\.embd\.wte\.weight", r"text.wte"),
    (r"text_model\.transformer\.h\.(\d+)\.ln\.(\w+)", r"text.blocks.\1.ln.\2"),
    (r"text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.(\w+)", r"text.blocks.\1.attn.qkv.\2"),
    (r"text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.(\w+)", r"text.blocks.\1.attn.proj.\2"),
    (r"text_model\.transformer\.h\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"text.blocks.\1.mlp.\2.\3"),
    (r"text_model\.lm_head\.ln\.(\w+)", r"text.post_ln.\1"),
    (r"text_model\.lm_head\.linear\.(\w+)", r"text.lm_head.\1"),
    (r"region_model\.coordinate_(encoder|decoder)\.(.+)", r"region.coord_\1.\2"),
    (r"region_model\.size_(encoder|decoder)\.(.+)", r"region.size_\1.\2"),
    (r"region_model\.coordinate_features\.weight", r"region.coord_features"),
    (r"region_model\.size_features\.weight", r"region.size_features"),
)
"""Names of the older layout, whole, and ours."""
TRANSPOSED = ("region_model.coordinate_features.weight", "region_model.size_features.weight")
"""Stored as Linear weights there, (features, inputs)."""
NO_WEIGHTS = re.compile(
    r"(.+\.)?(attn_mask|freqs_cis|position_ids|rotary_emb\.\w+|(k|v)_cache|kv_cache|attn\.bias|masked_bias)"
)
"""Buffers that upstream's modules carry beside their weights: masks, rotary tables, caches."""
OURS = re.compile(r"(vision|text|region)\..+")

VISION_HEADS = {720: 10, 1152: 16}
TEXT_HEADS = {1024: 16, 2048: 32}
"""Heads by width of the published families (config_md05.json, config_md2.json): shapes do not tell them."""
MAX_CONTEXT = 2048
"""Of every published Moondream 2 (the same files)."""


@dataclass(frozen=True)
class Place:
    """Where one of our tensors is in the source."""

    key: str
    transposed: bool = False


@dataclass(frozen=True)
class Architecture:
    """What shapes say, and a config for what they leave open."""

    vision: VisionConfig
    text: TextConfig
    region: RegionConfig | None


def places(keys: Iterable[str]) -> dict[str, Place]:
    """Our name of every tensor among `keys`. Raises ModelError that lists what is unknown or there twice."""
    found: dict[str, Place] = {}
    problems = []
    for key in sorted(keys):
        plain = key.replace("._orig_mod", "").removeprefix("_orig_mod.").removeprefix("model.")
        name = _our_name(plain)
        if NO_WEIGHTS.fullmatch(plain):
            continue
        if name is None:
            problems.append(f"{key}: no tensor of a Moondream 2 that we know")
        elif name in found:
            problems.append(f"{key}: {name} is also in {found[name].key}")
        else:
            found[name] = Place(key, plain in TRANSPOSED)
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError("tensors that cannot be placed:\n  " + "\n  ".join(problems[:20]) + more)
    return _untied(found)


def is_older(keys: Iterable[str]) -> bool:
    """Whether these are names of the older layout."""
    return any("text_model.transformer." in key for key in keys)


def _our_name(plain: str) -> str | None:
    for pattern, name in OLDER:
        if match := re.fullmatch(pattern, plain):
            return match.expand(name)
    return plain if OURS.fullmatch(plain) else None


def _untied(found: dict[str, Place]) -> dict[str, Place]:
    """A checkpoint with tied embeddings holds one of the two tables."""
    table, head = "text.wte", "text.lm_head.weight"
    if table in found and head not in found:
        return found | {head: found[table]}
    if head in found and table not in found:
        return found | {table: found[head]}
    return found


def architecture(shapes: Shapes, said: Conventions) -> Architecture:
    """The architecture of tensors by our names; heads that no file says come from the known families.

    Raises ModelError for shapes that are not Moondream 2's, and for heads that nobody knows. That every tensor
    fits is for the caller to check: this reads the few that say the sizes.
    """
    dim, patch_values = shape_of(shapes, "vision.patch_emb.weight", 2)
    _, patches, _ = shape_of(shapes, "vision.pos_emb", 3)
    patch_px, grid = _root(patch_values // 3, "vision.patch_emb.weight"), _root(patches, "vision.pos_emb")
    vocab, width = shape_of(shapes, "text.wte", 2)
    text_heads = said.text_heads or _known(TEXT_HEADS, width, "text")
    vision = VisionConfig(
        dim=dim,
        ff_dim=shape_of(shapes, "vision.blocks.0.mlp.fc1.weight", 2)[0],
        layers=_layers(shapes, "vision"),
        heads=said.vision_heads or _known(VISION_HEADS, dim, "vision"),
        patch_px=patch_px,
        crop_px=patch_px * grid,
        projection_dim=shape_of(shapes, "vision.proj_mlp.fc1.weight", 2)[0],
    )
    text = TextConfig(
        dim=width,
        ff_dim=shape_of(shapes, "text.blocks.0.mlp.fc1.weight", 2)[0],
        layers=_layers(shapes, "text"),
        heads=text_heads,
        vocab=vocab,
        max_context=said.max_context or MAX_CONTEXT,
        rotary_dim=width // (2 * text_heads),  # upstream's torch/text.py: half of a head
    )
    return Architecture(vision, text, _region(shapes, said.size_scale))


def _region(shapes: Shapes, size_scale: SizeScale) -> RegionConfig | None:
    if not any(name.startswith("region.") for name in shapes):
        return None
    return RegionConfig(
        coord_features=2 * shape_of(shapes, "region.coord_features", 2)[1],
        coord_bins=shape_of(shapes, "region.coord_decoder.fc2.weight", 2)[0],
        size_features=2 * shape_of(shapes, "region.size_features", 2)[1],
        size_bins=shape_of(shapes, "region.size_decoder.fc2.weight", 2)[0] // 2,
        inner_dim=shape_of(shapes, "region.coord_decoder.fc1.weight", 2)[0],
        size_scale=size_scale,
    )


def shape_of(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of one tensor. Raises ModelError when it is missing or has another number of dimensions."""
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(f"no tensor {name}: this is not a complete Moondream 2")
    if len(shape) != dimensions:
        raise ModelError(f"{name} has shape {shape}; {dimensions} dimensions are expected")
    return shape


def _root(square: int, name: str) -> int:
    root = math.isqrt(square)
    if root * root != square or not root:
        raise ModelError(f"{name}: {square} is not a square number, so there is no square patch or grid")
    return root


def _layers(shapes: Shapes, part: str) -> int:
    found = {int(name.split(".")[2]) for name in shapes if re.match(rf"{part}\.blocks\.\d+\.", name)}
    missing = sorted(set(range(max(found, default=0) + 1)) - found)
    if missing:
        raise ModelError(f"{part}: no tensors of block {', '.join(map(str, missing))}")
    return len(found)


def _known(heads: dict[int, int], dim: int, part: str) -> int:
    if dim not in heads:
        known = ", ".join(f"{width} ({number} heads)" for width, number in heads.items())
        raise ModelError(
            f"{part}: width {dim} is of no published Moondream 2 (known: {known}), and shapes do not tell the number "
            f"of heads: put the checkpoint's own config.json beside the weights"
        )
    return heads[dim]
