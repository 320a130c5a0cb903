"""Imports a safetensors checkpoint: upstream's weights, or an export of ours, as a model directory.

One tensor at a time is in memory. The numbers keep the dtype of the source; the worker's precision is chosen when it
loads them. Nothing proves such an import, for there is no graph to compare with: so every tensor must have its place
and shape, every number must be finite, and what the files do not say is refused (see `upstream`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG, WEIGHTS
from edge_daemon.models.checkpoint_files import Header, files_of, headers_of, refuse_pickle
from edge_daemon.models.layouts import Place, architecture, is_older, places, shape_of
from edge_daemon.models.store import Progress, sha256_of, silent
from edge_daemon.models.tensor_file import ITEM_BYTES, TensorFile
from edge_daemon.models.tokenizer_file import write_tokenizer
from edge_daemon.models.upstream import conventions, read_json
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.vision import Vision

HEAD, HEAD_BIAS, TABLE = "text.lm_head.weight", "text.lm_head.bias", "text.wte"
ZERO_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def import_checkpoint(source: Path, staging: Path, name: str, progress: Progress = silent) -> None:
    """Write config.json, tokenizer.json and model.safetensors into `staging`.

    `source` is a .safetensors file, or a directory with one, or with shards and their index; config and tokenizer
    are looked for beside. The numbers keep the source's dtype. Raises ModelError for anything that is not a whole
    Moondream 2 of which everything is known.
    """
    refuse_pickle(source)
    files = files_of(source)
    headers = headers_of(files)
    found = places(headers)
    vocabulary = write_tokenizer(files[0].parent, staging)
    config = replace(_config(files[0].parent, vocabulary, found, headers), name=name, engine="torch", provenance={})
    _refuse_misfits(_wanted(config), found, headers)
    (staging / CONFIG).write_text(config.to_json(), encoding="utf-8")
    load_config(staging)  # the strict reader's checks, before the long work
    if len(vocabulary) > config.text.vocab:
        raise ModelError(f"{source}: the tokenizer has {len(vocabulary)} tokens, the weights {config.text.vocab} only")
    _write_weights(staging / WEIGHTS, _wanted(config), found, headers, progress)
    provenance = {
        "source": source.name,
        "format": "safetensors",
        "sha256": {file.name: sha256_of(file, f"hashing {file.name}", progress) for file in files},
    }
    (staging / CONFIG).write_text(replace(config, provenance=provenance).to_json(), encoding="utf-8")


def _config(
    beside: Path, vocabulary: dict[str, int], found: Mapping[str, Place], headers: Mapping[str, Header]
) -> ModelConfig:
    """The architecture and the conventions: of our own config.json if there is one, else of upstream's files."""
    if "templates" in read_json(beside / CONFIG):
        return load_config(beside)
    shapes = {name: _shape(place, headers) for name, place in found.items()}
    (_, width), (_, patches, _) = shape_of(shapes, TABLE, 2), shape_of(shapes, "vision.pos_emb", 3)
    said = conventions(beside, vocabulary, width, is_older(headers), patches)
    built = architecture(shapes, said)
    return ModelConfig(
        name="",
        vision=built.vision,
        text=built.text,
        region=built.region,
        cropping="overlap",
        mask=said.mask,
        bos_state="computed",
        tokens=said.tokens,
        templates=said.templates,
    )


def _wanted(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint of this configuration."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "vision": Vision(config.vision, config.text.dim),
            "text": Text(config.text),
        }
        if config.region is not None:
            parts["region"] = Region(config.region, config.text.dim)
    names = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    if config.bos_state == "stored":
        names[BOS_KV] = (config.text.layers, 2, config.text.heads, 1, config.text.head_dim)
    return names


def _refuse_misfits(
    wanted: Mapping[str, tuple[int, ...]], found: dict[str, Place], headers: Mapping[str, Header]
) -> None:
    """Raise ModelError that lists every missing, unexpected, misshapen and mistyped tensor.

    A tied head without a bias gets a zero one, which is the same.
    """
    may_lack = {HEAD_BIAS} if HEAD in found and found[HEAD] == found.get(TABLE) else set()
    problems = [f"missing: {name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys() - may_lack)]
    problems += [f"unexpected: {found[name].key}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        shape, dtype = _shape(found[name], headers), headers[found[name].key].dtype
        if shape != wanted[name]:
            problems.append(f"{found[name].key} has shape {shape}, {wanted[name]} is expected")
        if dtype not in ITEM_BYTES:
            problems.append(f"{found[name].key} has dtype {dtype}, which is not one of {', '.join(ITEM_BYTES)}")
    if problems:
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError("these tensors are not a Moondream 2 of that shape:\n  " + "\n  ".join(problems[:20]) + more)


def _shape(place: Place, headers: Mapping[str, Header]) -> tuple[int, ...]:
    shape = headers[place.key].shape
    return shape[::-1] if place.transposed else shape


def _write_weights(
    path: Path,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Place],
    headers: Mapping[str, Header],
    progress: Progress,
) -> None:
    """All tensors under our names. Raises ModelError for a number that is not finite."""
    dtypes = {name: headers[found.get(name, found[TABLE]).key].dtype for name in wanted}
    specs = {name: (dtypes[name], shape) for name, shape in wanted.items()}
    total, done = sum(math.prod(shape) for shape in wanted.values()), 0
    with TensorFile(path, specs) as out:
        for name, (_, shape) in out.specs.items():
            if name not in found:  # the bias of a tied head
                out.write(name, torch.zeros(shape, dtype=ZERO_DTYPES[dtypes[name]]))
                continue
            tensor = _read(found[name], headers)
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{headers[found[name].key].file}: {found[name].key} has numbers that are not finite")
            out.write(name, tensor)
            done += math.prod(shape)
            progress(path.name, done / total)


def _read(place: Place, headers: Mapping[str, Header]) -> Tensor:
    """One tensor. The file is mapped for it alone, so that pages which were read do not stay."""
    with cast("Any", safe_open(headers[place.key].file, framework="pt", device="cpu")) as file:
        tensor: Tensor = file.get_tensor(place.key)
    return tensor.T if place.transposed else tensor
