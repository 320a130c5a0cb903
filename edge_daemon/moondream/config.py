"""The shape of a checkpoint, as its `config.json` says it. Knows no weights and no torch.

Sources of the numbers: upstream's `config_md05.json`, `config_md2.json` and the moonfile's own records.
Everything that differs between checkpoints (mask, cropping, prompt templates, how sizes are coded) is a
key here, never an assumption in the code.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edge_daemon.errors import ModelError

Cropping = Literal["template", "overlap"]
Mask = Literal["causal", "prefix"]
SizeScale = Literal["linear", "log2"]
BosState = Literal["stored", "computed"]

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
    note: str = ""
    """What a user must be told with every answer (the demo model's honesty)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def prefix_positions(self) -> int:
        """KV positions that BOS and the image take (730 for the published models)."""
        return 1 + self.vision.patches

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of float32 keys and values for one position (196 608 for 0.5B)."""
        return self.text.layers * 2 * self.text.dim * 4

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def load_config(path: Path) -> ModelConfig:
    """Read `config.json`.

    Raises ModelError when the file is missing, is not JSON, or lacks, misspells or mistypes a key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    config = _build(ModelConfig, data, str(path))
    if config.format > FORMAT:
        raise ModelError(f"{path}: format {config.format} is newer than this program knows ({FORMAT})")
    _check(config, path)
    return config


def _build(cls: Any, data: Any, where: str) -> Any:
    """A dataclass from a JSON object, strictly: every problem is named by its key."""
    if not isinstance(data, dict):
        raise ModelError(f"{where}: an object is expected, found {type(data).__name__}")
    hints = get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ModelError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    return cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value, checked against its annotation as far as JSON can be wrong."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ModelError(f"{where}: {value!r} is not one of {list(get_args(hint))}")
        return value
    options = [h for h in get_args(hint) if h is not type(None)] if type(None) in get_args(hint) else [hint]
    if value is None and len(options) != len(get_args(hint) or [hint]):
        return None
    kind = options[0]
    if hasattr(kind, "__dataclass_fields__"):
        return _build(kind, value, where)
    plain = get_origin(kind) or kind
    if not isinstance(value, plain) or isinstance(value, bool):
        raise ModelError(f"{where}: {value!r} is not of type {plain.__name__}")
    return value


def _check(config: ModelConfig, path: Path) -> None:
    """What no single key can tell."""
    vision, text = config.vision, config.text
    problems = {
        f"crop_px {vision.crop_px} is no multiple of patch_px {vision.patch_px}": vision.crop_px % vision.patch_px,
        f"vision dim {vision.dim} is no multiple of heads {vision.heads}": vision.dim % vision.heads,
        f"text dim {text.dim} is no multiple of heads {text.heads}": text.dim % text.heads,
        f"rotary_dim {text.rotary_dim} is odd or wider than a head": text.rotary_dim % 2
        or text.rotary_dim > text.head_dim,
        f"max_context {text.max_context} does not hold the image": text.max_context <= config.prefix_positions,
    }
    for problem, present in problems.items():
        if present:
            raise ModelError(f"{path}: {problem}")
