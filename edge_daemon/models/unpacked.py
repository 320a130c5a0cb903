"""A moonfile's records as files, laid out as a model directory of `engine: onnx` is, and what the small ones say.

Graphs are copied and not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from edge_daemon.choices import Engine
from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG, GRAPHS, INITIAL_KV, TOKENIZER
from edge_daemon.models.container import GRAPH_NAMES, Digest, Moonfile
from edge_daemon.models.folding import Array
from edge_daemon.models.store import Progress, silent
from edge_daemon.moondream.config import Mask, ModelConfig, RegionConfig, Templates, TextConfig, Tokens, VisionConfig

CLIENT_CROP_PX, CLIENT_POSITIONS = 378, 2048
"""Side of a crop and length of the KV cache, for graphs that leave them open: what the only client there is always uses
(moondream 0.0.6, preprocess.py and onnx_vl.py)."""
SMALL = (CONFIG, TOKENIZER, INITIAL_KV)
MOST_SMALL_BYTES = 64 << 20
"""Of each of these, which are read into memory; the 0.5B's tokenizer has 4 MB."""


@dataclass(frozen=True)
class Unpacked:
    """One moonfile."""

    source: Path
    directory: Path
    """With tokenizer.json, initial_kv_cache.npy and the folder of graphs."""
    kv: Array = field(repr=False)
    """`initial_kv_cache.npy`: (L, 2, 1, H, 1, E), in the graph's layout."""
    client_config: Mapping[str, Any] = field(repr=False)
    digest: Digest

    @property
    def graphs(self) -> Path:
        """The folder of graphs."""
        return self.directory / GRAPHS

    def graph(self, name: str) -> Path:
        """One graph."""
        return self.graphs / f"{name}.onnx"

    def config(
        self, name: str, vision: VisionConfig, text: TextConfig, region: RegionConfig, mask: Mask, engine: Engine
    ) -> ModelConfig:
        """A configuration of these shapes, with the prompts of the moonfile and all that its client takes for granted.

        Raises ModelError when the moonfile does not tell where a sequence ends or how to ask for a caption.
        """
        tokens, templates = self.client_config["special_tokens"], self.client_config["templates"]
        for key in ("bos", "eos"):
            if key not in tokens:
                raise ModelError(f"{self.source}: {CONFIG} has no special_tokens.{key}")
        if not templates.get("caption"):
            raise ModelError(f"{self.source}: {CONFIG} has no templates.caption, and a model must be able to caption")
        return ModelConfig(
            name=name,
            vision=vision,
            text=text,
            region=region,
            cropping="template",  # the client's only way
            mask=mask,
            bos_state="stored",
            tokens=Tokens(**{key: tokens[key] for key in _keys(Tokens) if key in tokens}),
            templates=Templates(**{key: templates[key] for key in _keys(Templates) if key in templates}),
            engine=engine,
            provenance={
                "source": self.source.name,
                "path": str(self.source.absolute()),
                "format": "moonfile",
                "sha256": self.digest.sha256,
                "unpacked_bytes": self.digest.size,
            },
        )


def unpack(source: Path, directory: Path, expected_sha256: str | None = None, progress: Progress = silent) -> Unpacked:
    """Write the records of a moonfile into `directory`, one at a time.

    Raises ModelError for a damaged file, and for one whose sha256, unpacked, is not the expected one.
    """
    (directory / GRAPHS).mkdir()
    client_config = b""
    done, total = 0, max(1, source.stat().st_size if source.is_file() else 0)
    with Moonfile(source) as moonfile:
        for record in moonfile.records():
            if record.name in SMALL and record.size > MOST_SMALL_BYTES:
                raise ModelError(f"{source}: {record.name} has {record.size} bytes; {MOST_SMALL_BYTES} are allowed")
            if record.name == CONFIG:
                client_config = record.read()
            elif record.name in (TOKENIZER, INITIAL_KV):
                record.copy(directory / record.name)
            elif record.name.removesuffix(".onnx") in GRAPH_NAMES:
                record.copy(directory / GRAPHS / record.name)
            done += record.size
            progress(f"unpacking {record.name}", min(1.0, done / total))
        digest = moonfile.digest()
    if expected_sha256 not in (None, digest.sha256):
        raise ModelError(f"{source}: unpacked, its sha256 is {digest.sha256}; the right one is {expected_sha256}")
    kv = _bos_state(source, directory / INITIAL_KV)
    return Unpacked(source, directory, kv, _client_config(source, client_config), digest)


def _keys(cls: type[Tokens | Templates]) -> list[str]:
    """What we know the meaning of; a client's config may hold more."""
    return [field.name for field in fields(cls)]


def _bos_state(source: Path, path: Path) -> Array:
    """The array of `initial_kv_cache.npy`. Raises ModelError unless it is (L, 2, 1, H, 1, E) of real numbers."""
    try:
        kv: Array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:  # a header may say any size
        raise ModelError(f"{source}: {INITIAL_KV} is not an array of numbers: {error}") from error
    layers_to_width = kv.shape if kv.ndim == 6 else ()
    if layers_to_width[1:3] != (2, 1) or layers_to_width[4:5] != (1,) or kv.dtype.kind != "f":
        raise ModelError(
            f"{source}: {INITIAL_KV} is {kv.dtype} {kv.shape}; floats (layers, 2, 1, heads, 1, head_dim) are expected"
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
