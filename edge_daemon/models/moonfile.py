"""A moonfile becomes a model directory: its graphs' weights, dequantized, in one `model.safetensors` of float32.

One graph is in memory at a time. Weights are found by structure (`recover`), the rest is measured (`measure`); what
is not understood is refused. Whether the result equals the moonfile is for the proof to say, not for this module.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge_daemon.errors import ModelError
from edge_daemon.models.container import BOS_STATE, CONFIG, GRAPHS, TOKENIZER, Digest, Moonfile
from edge_daemon.models.folding import Array
from edge_daemon.models.store import Progress
from edge_daemon.models.survey import Survey, survey
from edge_daemon.models.tensor_file import TensorFile
from edge_daemon.moondream.config import ModelConfig, Templates, Tokens, load_config
from edge_daemon.moondream.weights import FILE_NAME

UNPACKED, SURVEYED = 0.1, 0.4
"""Shares of the whole work that are done by then, for the progress bar."""


@dataclass(frozen=True)
class Contents:
    """An unpacked moonfile."""

    directory: Path
    """Where its graphs lie."""
    kv: Array = field(repr=False)
    """`initial_kv_cache.npy`: (L, 2, 1, H, 1, E), in the graph's layout."""
    client_config: Mapping[str, Any] = field(repr=False)
    digest: Digest
    tokenizer_sha256: str


def import_moonfile(source: Path, staging: Path, name: str, progress: Progress) -> None:
    """Write `config.json`, `tokenizer.json` and `model.safetensors` of a moonfile to the directory `staging`.

    Raises ModelError for a damaged moonfile and for graphs that are not understood; `staging` is then the caller's
    to remove.
    """
    with TemporaryDirectory(prefix=".graphs-", dir=staging) as directory:
        contents = _unpack(source, staging, Path(directory), progress)
        found = survey(contents.directory, contents.kv, _between(progress, UNPACKED, SURVEYED))
        sha256 = _write(found, staging / FILE_NAME, _between(progress, SURVEYED, 1.0))
    config = _config(source, contents, found, name, {TOKENIZER: contents.tokenizer_sha256, FILE_NAME: sha256})
    (staging / CONFIG).write_text(config.to_json(), encoding="utf-8")
    try:
        load_config(staging / CONFIG)  # whatever does not go together is refused here
    except ModelError as error:
        raise ModelError(f"{source}: the model that is in it does not fit its {CONFIG}: {error}") from error


def _between(progress: Progress, begin: float, end: float) -> Progress:
    """The progress of one stage, as a part of the whole."""
    return lambda what, share: progress(what, begin + (end - begin) * share)


def _write(found: Survey, path: Path, progress: Progress) -> str:
    """All tensors, one at a time; the sha256 of the file."""
    total, done = sum(math.prod(shape) for shape in found.shapes.values()), 0
    with TensorFile.create(path, {name: ("F32", shape) for name, shape in found.shapes.items()}) as file:
        for name, source in found.tensors():
            file.write(name, source.read())
            done += math.prod(source.shape)
            progress(name, done / total)
        return file.close()


def _config(source: Path, contents: Contents, found: Survey, name: str, files: dict[str, str]) -> ModelConfig:
    tokens, templates = contents.client_config["special_tokens"], contents.client_config["templates"]
    for key in ("bos", "eos"):
        if key not in tokens:
            raise ModelError(f"{source}: {CONFIG} has no special_tokens.{key}")
    if "caption" not in templates:
        raise ModelError(f"{source}: {CONFIG} has no templates.caption; a model that cannot caption is of no use here")
    provenance = {
        "source": source.name,
        "format": "moonfile",
        "sha256": contents.digest.sha256,
        "unpacked_bytes": contents.digest.size,
        "rotary_layout": str(found.layout),
        "files": files,
    }
    return ModelConfig(
        name=name,
        vision=found.vision,
        text=found.text,
        region=found.region,
        cropping="template",  # the client's only way
        mask=found.mask,
        bos_state="stored",
        tokens=Tokens(**{key: tokens[key] for key in _keys(Tokens) if key in tokens}),
        templates=Templates(**{key: templates[key] for key in _keys(Templates) if key in templates}),
        provenance=provenance,
    )


def _keys(cls: type[Tokens | Templates]) -> list[str]:
    """What we know the meaning of; a client's config may hold more."""
    return [field.name for field in fields(cls)]


def _unpack(source: Path, staging: Path, directory: Path, progress: Progress) -> Contents:
    """Graphs to files, the tokenizer to its place; the small records are kept."""
    small: dict[str, bytes] = {}
    tokenizer_sha256 = ""
    total = source.stat().st_size if source.is_file() else 0
    done = 0
    with Moonfile(source) as moonfile:
        for record in moonfile.records():
            if record.name == TOKENIZER:
                tokenizer_sha256 = record.copy(staging / TOKENIZER)
            elif record.name in (CONFIG, BOS_STATE):
                small[record.name] = record.read()
            elif record.name.removesuffix(".onnx") in GRAPHS:
                record.copy(directory / record.name)
            done += record.size
            progress(record.name, UNPACKED * min(1.0, done / max(total, done)))
        digest = moonfile.digest()
    kv, client_config = _bos_state(source, small[BOS_STATE]), _client_config(source, small[CONFIG])
    return Contents(directory, kv, client_config, digest, tokenizer_sha256)


def _bos_state(source: Path, content: bytes) -> Array:
    """The array of `initial_kv_cache.npy`. Raises ModelError unless it is (L, 2, 1, H, 1, E) of real numbers."""
    try:
        kv: Array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ModelError(f"{source}: {BOS_STATE} is no array of numbers: {error}") from error
    layers_to_width = kv.shape if kv.ndim == 6 else ()
    if layers_to_width[1:3] != (2, 1) or layers_to_width[4:5] != (1,) or kv.dtype.kind != "f":
        raise ModelError(
            f"{source}: {BOS_STATE} is {kv.dtype} {kv.shape}; floats (layers, 2, 1, heads, 1, head_dim) are expected"
        )
    return kv


def _client_config(source: Path, content: bytes) -> dict[str, Any]:
    """The moonfile's `config.json`. Raises ModelError when it has not what the client reads."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{source}: {CONFIG} is not valid JSON: {error}") from error
    for key in ("special_tokens", "templates"):
        if not isinstance(config, dict) or not isinstance(config.get(key), dict):
            raise ModelError(f"{source}: {CONFIG} has no object {key!r}; the client reads it there")
    return dict(config)
