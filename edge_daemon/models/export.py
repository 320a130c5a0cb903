"""A model directory out again: as a moonfile, as a folder of ONNX graphs, or as safetensors in upstream's layout.

A moonfile runs in moondream 0.0.6, the only client there is for it, so whatever that client would do otherwise than
we do is refused rather than written: another way of cropping, sizes on a logarithmic scale, a BOS that sees the
picture. Only one tensor is held at a time, and nothing stands under its final name before it is complete.

The token that ends an answer (`tokens.answer`, in 2025 checkpoints) is written beside `eos`; the client ignores it.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_daemon.choices import ExportFormat, ExportPrecision
from edge_daemon.errors import ConfigError, ModelError, UnavailableError
from edge_daemon.model_files import CONFIG, GRAPHS, INITIAL_KV, TOKENIZER, WEIGHTS
from edge_daemon.models.container import CHUNK_BYTES, GRAPH_NAMES, Record, write_records
from edge_daemon.models.graphs import Graphs
from edge_daemon.models.store import Progress, silent
from edge_daemon.models.tensor_file import TensorFile
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import BOS_KV
from edge_daemon.moondream.vision import LAYER_NORM_EPS
from edge_daemon.moondream.weights import Weights

MOST_GRAPH_BYTES = (2 << 30) - 1
"""Protobuf reads no longer message."""
UPSTREAM_PREFIX = "model."
"""Of the keys in upstream's published safetensors; behind it they are ours (moondream/torch/weights.py)."""


def export(
    directory: Path,
    out: Path,
    format: ExportFormat,
    precision: ExportPrecision | None = None,
    progress: Progress = silent,
) -> None:
    """Write the model in `directory` to `out`: a file for `moonfile` (packed if it ends in .gz), else a directory.

    `precision` is what matrices are stored in, float32 unless given; the graphs of an engine-onnx directory go out
    as they are. Raises ConfigError when `out` is there or the precision does not go with the format, ModelError when
    the model cannot be written in that format or is damaged, and UnavailableError when the disk does not take it.
    """
    if out.exists():
        raise ConfigError(f"{out} already exists: remove it or choose another name")
    config = load_config(directory)
    try:
        if format == "safetensors":
            _to_safetensors(directory, config, out, precision or "float32", progress)
        else:
            with _records(directory, config, precision) as records:
                _write(records, out, format, progress)
    except OSError as error:
        raise UnavailableError(f"{out} cannot be written: {error.strerror or error}") from error


def _write(records: list[Record], out: Path, format: ExportFormat, progress: Progress) -> None:
    counted = _counted(records, progress)
    if format == "moonfile":
        write_records(out, counted)
        return
    with _directory(out) as partial:
        for record in counted:
            record.copy(partial / record.name)


@contextmanager
def _records(directory: Path, config: ModelConfig, precision: ExportPrecision | None) -> Iterator[list[Record]]:
    """Everything that a moonfile holds, nothing of it read yet."""
    told = json.dumps(_client_config(config), indent=2).encode()
    tokenizer = directory / TOKENIZER
    records = [Record(CONFIG, len(told), iter([told])), _file_record(TOKENIZER, tokenizer)]
    if config.engine == "onnx":
        if precision is not None:
            raise ConfigError(
                f"{config.name} consists of graphs, which are exported as they are: leave out --precision"
            )
        records.append(_file_record(INITIAL_KV, directory / INITIAL_KV))
        ready = [directory / GRAPHS / f"{name}.onnx" for name in GRAPH_NAMES]
        yield records + [_file_record(path.name, path) for path in ready]
        return
    _refuse_unknown_to_the_client(config)
    with Weights(directory) as weights:
        graphs = _graph_records(config, weights, precision or "float32")
        kv = _bos_state(config, weights)
        yield [*records, Record(INITIAL_KV, len(kv), iter([kv])), *graphs]


def _client_config(config: ModelConfig) -> dict[str, object]:
    """The `config.json` of a moonfile: what the client reads, in its names."""

    def present(values: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in values.items() if value is not None}

    return {"special_tokens": present(asdict(config.tokens)), "templates": present(asdict(config.templates))}


def _refuse_unknown_to_the_client(config: ModelConfig) -> None:
    """Raise ModelError that lists whatever a moonfile cannot say."""
    problems = []
    if config.cropping != "template":
        problems.append("its pictures are cropped with overlap, the client knows the template scheme only")
    if config.bos_state == "computed" and config.mask == "prefix":
        problems.append("its BOS sees the picture (prefix mask), a moonfile stores a BOS computed alone")
    if config.region is None:
        problems.append("it has no region head, the client does not open a file without those four graphs")
    elif config.region.size_scale != "linear":
        problems.append("its object sizes are on a log2 scale, the client reads linear ones only")
    if problems:
        raise ModelError(f"{config.name} cannot be a moonfile: {'; '.join(problems)}. --format safetensors holds it")


def _graph_records(config: ModelConfig, weights: Weights, precision: ExportPrecision) -> list[Record]:
    """The graphs, refused before work begins when one is too large for the format."""
    graphs = Graphs(config, weights, precision).all()
    largest = max(graphs, key=lambda graph: graph.size)
    if largest.size > MOST_GRAPH_BYTES:
        fitting = [p for p in ("float16", "int8") if _largest(config, weights, p) <= MOST_GRAPH_BYTES]
        raise ModelError(
            f"{config.name} in {precision}: {largest.name}.onnx would have {largest.size / 2**30:.1f} GiB, a graph can "
            f"have 2 at most; {'fits: --precision ' + fitting[0] if fitting else 'no precision fits'}"
        )
    return [Record(f"{graph.name}.onnx", graph.size, graph.chunks()) for graph in graphs]


def _largest(config: ModelConfig, weights: Weights, precision: ExportPrecision) -> int:
    return max(graph.size for graph in Graphs(config, weights, precision).all())


def _bos_state(config: ModelConfig, weights: Weights) -> bytes:
    """`initial_kv_cache.npy`: (layers, 2, 1, heads, 1, head_dim) in float16."""
    kv = weights.tensor(BOS_KV) if config.bos_state == "stored" else bos_kv(config, weights)
    file = io.BytesIO()
    np.save(file, kv[:, :, None].numpy().astype(np.float16))
    return file.getvalue()


@torch.inference_mode()
def bos_kv(config: ModelConfig, weights: Weights) -> Tensor:
    """Keys and values of BOS alone, (layers, 2, heads, 1, head_dim), one block at a time.

    Position 0 is not rotated and attends to itself only, so attention gives back its value.
    """
    dim, heads, head_dim = config.text.dim, config.text.heads, config.text.head_dim

    def linear(x: Tensor, layer: str) -> Tensor:
        return F.linear(x, weights.tensor(f"{layer}.weight"), weights.tensor(f"{layer}.bias"))

    x = weights.tensor("text.wte")[config.tokens.bos]
    kv = []
    for layer in range(config.text.layers):
        block = f"text.blocks.{layer}"
        norm = weights.tensor(f"{block}.ln.weight"), weights.tensor(f"{block}.ln.bias")
        y = F.layer_norm(x, (dim,), *norm, LAYER_NORM_EPS)
        _, k, v = linear(y, f"{block}.attn.qkv").chunk(3)
        kv.append(torch.stack([k, v]).view(2, heads, 1, head_dim))
        inner = F.gelu(linear(y, f"{block}.mlp.fc1"), approximate="tanh")
        x = x + linear(v, f"{block}.attn.proj") + linear(inner, f"{block}.mlp.fc2")
    return torch.stack(kv)


def _file_record(name: str, path: Path) -> Record:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    return Record(name, path.stat().st_size, chunks())


def _counted(records: list[Record], progress: Progress) -> Iterator[Record]:
    """The same records; their bytes are counted as they pass."""
    total, done = sum(record.size for record in records), 0

    def chunks(record: Record) -> Iterator[bytes | memoryview]:
        nonlocal done
        for chunk in record.chunks:
            yield chunk
            done += len(chunk)
            progress(record.name, done / total)

    for record in records:
        yield replace(record, chunks=chunks(record))


@contextmanager
def _directory(out: Path) -> Iterator[Path]:
    """A directory that gets its name when it is complete."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_safetensors(
    directory: Path, config: ModelConfig, out: Path, precision: ExportPrecision, progress: Progress
) -> None:
    """Tensors under upstream's names, our config.json and the tokenizer."""
    if config.engine == "onnx":
        raise ModelError(f"{config.name} is made of graphs and has no tensors: --format moonfile or onnx holds it")
    if precision == "int8":
        raise ConfigError("safetensors are written in float32 or float16; int8 goes with --format moonfile or onnx")
    dtype, word = (torch.float32, "F32") if precision == "float32" else (torch.float16, "F16")
    with Weights(directory, dtype=dtype) as weights, _directory(out) as partial:
        names = sorted(weights.names)
        shapes = {name: tuple(weights.tensor(name).shape) for name in names}
        with TensorFile(
            partial / WEIGHTS, {UPSTREAM_PREFIX + name: (word, shape) for name, shape in shapes.items()}
        ) as file:
            for done, name in enumerate(names, 1):
                tensor = weights.tensor(name)
                if not tensor.isfinite().all():
                    raise ModelError(f"{weights.path}: {name} has values that {precision} cannot hold")
                file.write(UPSTREAM_PREFIX + name, tensor)
                progress(WEIGHTS, done / len(names))
        for name in (CONFIG, TOKENIZER):
            shutil.copyfile(directory / name, partial / name)
