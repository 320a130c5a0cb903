"""The shape of a checkpoint, as its `config.json` says it. Knows no weights and no torch.

Sources of the numbers: upstream's `config_md05.json`, `config_md2.json` and the moonfile's own records.
Everything that differs between checkpoints (mask, cropping, prompt templates, how sizes are coded) is a
key here, never an assumption in the code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edge_daemon.choices import Engine
from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG

Cropping = Literal["template", "overlap"]
Mask = Literal["causal", "prefix"]
SizeScale = Literal["linear", "log2"]
BosState = Literal["stored", "computed"]

MOST_CROPS = {"template": 4, "overlap": 13}
"""Crops of the largest pictures, the whole picture included."""

FINE = {
    "vision": ("patch_emb", "blocks.0.", "blocks.1.", *(f"blocks.{layer}.attn" for layer in range(2, 9)), "proj_mlp"),
    "text": ("blocks.0.attn", "blocks.1.attn"),
}
"""Beginnings of the names of layers whose activations take 16 bits in int8: errors count most there (quantize.py)."""
OVERLAP_MARGIN = 4
"""Patches of margin on each side of a tile of the overlap scheme."""
LARGEST_SIZE = 1 << 22
"""Of any dimension. The largest that is known has 51 200; a file of a stranger may say anything."""
FORMAT = 1
"""Version of `config.json`; a higher one is refused."""


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder and the projection behind it."""

    dim: int
    ff_dim: int
    layers: int
    heads: int
    patch_px: int
    """Side of one square patch."""
    crop_px: int
    """Side of one square crop; a multiple of `patch_px`."""
    projection_dim: int
    """Inner width of the two-layer projection."""

    @property
    def grid(self) -> int:
        """Patches along one side of a crop (27 for the published models)."""
        return self.crop_px // self.patch_px

    @property
    def patches(self) -> int:
        """Patches in one crop, which is also the number of image embeddings."""
        return self.grid * self.grid


@dataclass(frozen=True)
class TextConfig:
    """The decoder. There is no grouped-query attention: as many key heads as heads."""

    dim: int
    ff_dim: int
    layers: int
    heads: int
    vocab: int
    max_context: int
    rotary_dim: int
    """Head dimensions that rotate; the others pass (32 of 64 in the published models)."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads


@dataclass(frozen=True)
class RegionConfig:
    """The head that reads and writes coordinates."""

    coord_features: int
    coord_bins: int
    size_features: int
    size_bins: int
    """Bins of one side; the decoder gives twice as many."""
    inner_dim: int
    size_scale: SizeScale


@dataclass(frozen=True)
class Tokens:
    """Special token ids. `answer` ends an answer in the 2025 checkpoints only."""

    bos: int
    eos: int
    answer: int | None = None


@dataclass(frozen=True)
class Templates:
    """Prompt token ids. `None` or a missing length: the checkpoint was not trained for that task."""

    caption: dict[str, list[int]]
    query: dict[str, list[int]] | None = None
    detect: dict[str, list[int]] | None = None
    point: dict[str, list[int]] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """One checkpoint."""

    name: str
    vision: VisionConfig
    text: TextConfig
    region: RegionConfig | None
    cropping: Cropping
    mask: Mask
    bos_state: BosState
    """`stored`: the file carries the keys and values of BOS, computed alone (`text.bos_kv`);
    `computed`: BOS goes through the decoder together with the image."""
    tokens: Tokens
    templates: Templates
    engine: Engine = "torch"
    """What the directory holds: `torch` tensors (`model.safetensors`), or `onnx` graphs as published (`graphs/`)."""
    note: str = ""
    """What a user must be told with every answer (the demo model's honesty)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def prefix_positions(self) -> int:
        """KV positions that BOS and the image take (730 for the published models)."""
        return 1 + self.vision.patches

    @property
    def kv_values_per_position(self) -> int:
        """Keys and values of one position (49 152 for 0.5B)."""
        return self.text.layers * 2 * self.text.dim

    @property
    def vision_activation_bytes(self) -> int:
        """Upper estimate of the work space of a picture in the vision encoder, in float32.

        Every crop at once, with input, qkv and the inner layer alive. The factor 2 covers what torch's kernels take
        beside (measured: tests/model).
        """
        vision = self.vision
        crops = MOST_CROPS[self.cropping]
        patch_values = max(3 * vision.patch_px**2 + vision.dim, 4 * vision.dim + 2 * vision.ff_dim)
        projection_values = 2 * vision.dim + 2 * vision.projection_dim
        return 2 * 4 * vision.patches * max(crops * patch_values, projection_values)

    @property
    def text_activation_bytes(self) -> int:
        """The same of the picture in the decoder; int8 kernels have their sums beside (measured: 57 and 85 MiB)."""
        values = 8 * self.text.dim + 2 * self.text.ff_dim + self.prefix_positions
        return 2 * 4 * self.prefix_positions * values

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def load_config(directory: Path) -> ModelConfig:
    """Read the `config.json` of a model directory.

    Raises ModelError when the file is missing, is not JSON, or lacks, misspells or mistypes a key.
    """
    path = directory / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    newest = data.get("format") if isinstance(data, dict) else None
    if isinstance(newest, int) and newest > FORMAT:  # first: the keys of a newer format may well be unknown
        raise ModelError(f"{path}: format {newest} is newer than this program knows ({FORMAT})")
    config: ModelConfig = _build(ModelConfig, data, str(path))
    problems = [*_shape_problems(config), *_token_problems(config)]
    if problems:
        raise ModelError(f"{path}: " + "; ".join(problems))
    return config


def _build(cls: Any, data: Any, where: str) -> Any:
    """A dataclass from a JSON object, strictly: every problem is named by its key."""
    if not isinstance(data, dict):
        raise ModelError(f"{where}: an object is expected, found {data!r}")
    hints = get_type_hints(cls)
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    problems = [f"unknown key {key!r}" for key in sorted(set(data) - set(hints))]
    problems += [f"missing key {key!r}" for key in sorted(required - set(data))]
    if problems:
        raise ModelError(f"{where}: " + ", ".join(problems))
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value, checked against its annotation, however deep."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise ModelError(f"{where}: {value!r} is not one of {list(arguments)}")
        return value
    if origin is UnionType:  # X | None is the only kind here
        return None if value is None else _value(arguments[0], value, where)
    if is_dataclass(hint):
        return _build(hint, value, where)
    plain = origin or hint
    if not isinstance(value, plain) or isinstance(value, bool):
        raise ModelError(f"{where}: {value!r} is not of type {plain.__name__}")
    if plain is list:
        return [_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if plain is dict:
        return {key: _value(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    return value


def _shape_problems(config: ModelConfig) -> Iterator[str]:
    """What is wrong with sizes that are each of the right type."""
    vision, text, region = config.vision, config.text, config.region
    parts = {"vision": asdict(vision), "text": asdict(text), "region": asdict(region) if region else {}}
    sizes = {f"{name}: {key}": value for name, part in parts.items() for key, value in part.items()}
    wrong = [
        f"{key} {value} is not from 1 to {LARGEST_SIZE}"
        for key, value in sizes.items()
        if isinstance(value, int) and not 1 <= value <= LARGEST_SIZE
    ]
    if wrong:  # nothing can be divided by these, or made of them
        yield from wrong
        return
    if vision.crop_px % vision.patch_px:
        yield f"vision: crop_px {vision.crop_px} is not a multiple of patch_px {vision.patch_px}"
    if vision.dim % vision.heads:
        yield f"vision: dim {vision.dim} is not a multiple of heads {vision.heads}"
    if text.dim % text.heads:
        yield f"text: dim {text.dim} is not a multiple of heads {text.heads}"
    if text.rotary_dim % 2 or text.rotary_dim > text.head_dim:
        yield f"text: rotary_dim {text.rotary_dim} is odd or wider than a head ({text.head_dim})"
    if text.max_context <= config.prefix_positions:
        yield f"text: max_context {text.max_context} does not hold the picture ({config.prefix_positions} positions)"
    if config.cropping == "overlap" and vision.grid <= 2 * OVERLAP_MARGIN:
        yield f"vision: {vision.grid} patches a side leave nothing between two margins of {OVERLAP_MARGIN}"
    for key in ("coord_features", "size_features"):
        if region and getattr(region, key) % 2:
            yield f"region: {key} {getattr(region, key)} is odd (cosines and sines are half each)"


def _token_problems(config: ModelConfig) -> Iterator[str]:
    """What is wrong with token ids and prompts."""
    templates, prompts = config.templates, dict[str, list[int]]()
    for length, prompt in templates.caption.items():
        prompts[f"templates: caption: {length}"] = prompt
    for task in ("query", "detect", "point"):
        template = getattr(templates, task)
        if template is None:
            continue
        if template.keys() != {"prefix", "suffix"}:
            yield f"templates: {task} needs prefix and suffix and nothing else, found {sorted(template)}"
            continue
        prompts[f"templates: {task}"] = template["prefix"] + template["suffix"]
    yield from (f"{where} is empty" for where, prompt in prompts.items() if not prompt)
    special = {f"tokens: {key}": [] if value is None else [value] for key, value in asdict(config.tokens).items()}
    for where, tokens in (special | prompts).items():
        beyond = [token for token in tokens if not 0 <= token < config.text.vocab]
        if beyond:
            yield f"{where} has {beyond}, outside the vocab of {config.text.vocab}"
