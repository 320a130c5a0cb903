"""A model directory with random weights, in a published shape: for measuring where there is no model. It says nothing.

The weights are scaled so that every layer matters and logits have a standard deviation of about 1: numbers of the size
that a processor sees in a real model, and, for tests, numbers in which a mistake shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from edge_daemon.errors import UnavailableError
from edge_daemon.model_files import CONFIG, TOKENIZER, WEIGHTS
from edge_daemon.models.catalogue import FLOAT32_BYTES, HALF_BILLION, TOKENIZER_BYTES, weights_of
from edge_daemon.models.store import Progress, free_on_disk, silent
from edge_daemon.models.tensor_file import TensorFile
from edge_daemon.moondream.config import ModelConfig, Templates
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision

ATTENTION_GAIN = 2.0
"""So that what is attended to decides what is said, and a wrong mask or position shows."""
SHAPES = {
    "0.5b": replace(
        HALF_BILLION,
        templates=Templates(
            caption={"short": [198, 198, 16438, 8305, 25], "normal": [198, 198, 24334, 1159, 25]},
            query={"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]},
            detect={"prefix": [198, 198, 47504, 25], "suffix": [628]},
        ),
    )
}
"""Published shapes with their prompts, by the word for `--shape`."""


def check_room(place: Path, config: ModelConfig) -> None:
    """Raise UnavailableError when the disk of `place` has no room for a model of this shape."""
    needed_bytes, free_bytes = weights_of(config) * FLOAT32_BYTES + TOKENIZER_BYTES, free_on_disk(place)
    if free_bytes < needed_bytes:
        raise UnavailableError(
            f"random weights in the shape of {config.name} take {needed_bytes / 1e9:.1f} GB, and {place} has "
            f"{free_bytes / 1e9:.1f} GB free: set TMPDIR to a directory with more room, or measure a model with --model"
        )


def write_random(directory: Path, config: ModelConfig, seed: int = 0, progress: Progress = silent) -> None:
    """Fill an empty directory, one tensor at a time. Raises ModelError when the disk does not take it."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters(config)}
    if config.bos_state == "stored":
        shapes[BOS_KV] = bos_shape(config)
    with TensorFile(directory / WEIGHTS, {name: ("F32", shape) for name, shape in shapes.items()}) as file:
        for done, (name, tensor) in enumerate(random_tensors(config, seed), 1):
            file.write(name, tensor)
            progress("random weights", done / len(shapes))
    (directory / CONFIG).write_text(config.to_json(), encoding="utf-8")
    Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(directory / TOKENIZER))


def parameters(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters of all parts of a checkpoint, on the meta device."""
    with torch.device("meta"):
        parts = {"vision": Vision(config.vision, config.text.dim), "text": Text(config.text)}
        if config.region is not None:
            parts["region"] = Region(config.region, config.text.dim)
    for prefix, part in parts.items():
        for name, parameter in part.named_parameters():
            yield f"{prefix}.{name}", parameter.detach()


def bos_shape(config: ModelConfig) -> tuple[int, ...]:
    """Of the stored keys and values of BOS."""
    return (config.text.layers, 2, config.text.heads, 1, config.text.head_dim)


def random_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint, one after the other; a stored BOS, which comes last, is random as well."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters(config):
        yield name, _random(name, parameter.shape, generator)
    if config.bos_state == "stored":
        yield BOS_KV, torch.randn(bos_shape(config), generator=generator)


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers (uniform: three times as fast as normal ones), by the kind of parameter."""
    if len(shape) == 1:
        is_norm_weight = name.endswith(("ln.weight", "ln1.weight", "ln2.weight"))
        centre, std = (1.0, 0.1) if is_norm_weight else (0.0, 0.1)
    elif name.endswith(("wte", "pos_emb", "coord_features", "size_features")):
        centre, std = 0.0, 1.0
    else:
        gain = ATTENTION_GAIN if ".attn." in name else 1.0
        centre, std = 0.0, gain / math.sqrt(shape[1])
    tensor = torch.empty(shape)
    return tensor.uniform_(centre - std * math.sqrt(3), centre + std * math.sqrt(3), generator=generator)
