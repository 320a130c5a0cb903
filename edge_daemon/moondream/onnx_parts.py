"""The parts computed by ONNX Runtime, from the graphs of a moonfile as they were published.

The interfaces are those that the moondream client 0.0.6 relies on; what the graphs hold (which weights, in which
precision, under which mask) is their own business, and nothing here looks into them. A graph is opened when its part
is first needed, and one whose declared interface does not fit `config.json` is refused then.

Shapes: n crops, P patches a crop, D vision width, T text width, V vocabulary, s positions in this call, p positions
before it, L layers, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_daemon.errors import ModelError, UnavailableError
from edge_daemon.model_files import GRAPHS, INITIAL_KV
from edge_daemon.moondream import onnx_session
from edge_daemon.moondream.config import ModelConfig, RegionConfig
from edge_daemon.moondream.footprint import precision_of
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.parts import Step

Dims = tuple[int | str, ...]
"""A shape; a word stands for a length that is free, and the same one wherever the word is."""
TYPES = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32, "tensor(int64)": torch.int64}
"""Element types that an interface may have."""


class Graph:
    """One graph, open."""

    def __init__(
        self, path: Path, inputs: Mapping[str, Dims], outputs: Mapping[str, Dims], optimized: bool = True
    ) -> None:
        """Open `path`, whose inputs and outputs must be those given; an output without a name is the only one.

        `optimized` by ONNX Runtime as far as it can; else nodes are run as they stand, and nothing is computed ahead.

        Raises ModelError for a file that is missing, damaged or foreign, UnavailableError without ONNX Runtime.
        """
        self.path = path
        self._inputs, self._outputs = inputs, outputs
        self._session = _session(path, optimized)
        self.types = {given.name: TYPES.get(given.type) for given in self._session.get_inputs()}
        produced = {given.name: given for given in self._session.get_outputs()}
        if "" in outputs and len(produced) == 1:
            produced = {"": next(iter(produced.values()))}
        problems = _problems("input", inputs, {given.name: given for given in self._session.get_inputs()})
        problems += _problems("output", outputs, produced)
        if problems:
            raise ModelError(f"{path} does not fit its config.json:\n  " + "\n  ".join(problems))

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Outputs in the order in which they were named at the start; inputs likewise, in any float type."""
        feeds = dict(zip(self._inputs, inputs, strict=True))
        lengths = _lengths(self._inputs, feeds)
        arrays = {name: feed.to(self.types[name]).contiguous().numpy() for name, feed in feeds.items()}
        wanted = [name for name in self._outputs if name] or None
        try:
            results = [torch.from_numpy(array) for array in self._session.run(wanted, arrays)]
        except onnx_session.errors() as error:
            raise ModelError(f"{self.path}: ONNX Runtime cannot run it: {error}") from error
        for (name, dims), result in zip(self._outputs.items(), results, strict=True):
            shape = tuple(lengths.get(d, d) if isinstance(d, str) else d for d in dims)
            if tuple(result.shape) != shape:
                label = f"output {name}" if name else "its output"
                raise ModelError(f"{self.path}: {label} has shape {tuple(result.shape)}, expected {shape}")
        return results


Open = Callable[[str, Mapping[str, Dims], Mapping[str, Dims]], Graph]
"""Opens the graph of a name."""


class OnnxVision:
    """Vision encoder and projection."""

    def __init__(self, opened: Open, config: ModelConfig) -> None:
        vision, width = config.vision, config.text.dim
        crops, features = ("n", 3, vision.crop_px, vision.crop_px), ("n", vision.patches, vision.dim)
        self._encoder = opened("vision_encoder", {"input": crops}, {"": features})
        both, embeddings = (1, vision.patches, 2 * vision.dim), (1, vision.patches, width)
        self._projection = opened("vision_projection", {"input": both}, {"": embeddings})

    def encode(self, crops: Tensor) -> Tensor:
        """Crops (n, 3, crop_px, crop_px) → features (n, P, D)."""
        return self._encoder.run(crops)[0]

    def project(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        """Features (P, D) of the whole picture and of its tiles → embeddings (P, T)."""
        return self._projection.run(torch.cat([global_features, local_features], dim=-1)[None])[0][0]


class OnnxText:
    """The decoder. Its cache has the element type of the graph's `kv_cache`."""

    def __init__(self, opened: Open, config: ModelConfig, dtype: torch.dtype) -> None:
        text = config.text
        embeddings = (1, "s", text.dim)
        self._encoder = opened("text_encoder", {"input_ids": (1, "s")}, {"": embeddings})
        past, new = ((text.layers, 2, 1, text.heads, length, text.head_dim) for length in ("p", "s"))
        self._decoder = opened(
            "text_decoder",
            {"input_embeds": embeddings, "kv_cache": past},
            {"hidden": embeddings, "new_kv_cache": new, "logits": (1, text.vocab)},
        )
        if self._decoder.types["kv_cache"] != dtype:
            wanted = self._decoder.types["kv_cache"]
            raise ModelError(f"{self._decoder.path}: kv_cache is of {wanted}, {INITIAL_KV} beside it of {dtype}")

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (1, s) → embeddings (1, s, T)."""
        return self._encoder.run(tokens)[0]

    def extend(self, cache: KVCache, embeddings: Tensor) -> Step:
        """One run of the graph: hidden states, keys and values of the new positions, logits of the last."""
        hidden, new, logits = self._decoder.run(embeddings, cache.packed()[:, :, None])
        cache.append(new[:, :, 0])
        return Step(hidden[:, -1:], lambda: logits)


class OnnxRegion:
    """The region head."""

    def __init__(self, opened: Open, config: RegionConfig, width: int) -> None:
        one, two, hidden = (1,), (2,), (width,)
        self._coord_encoder = opened("coord_encoder", {"input": one}, {"": hidden})
        self._coord_decoder = opened("coord_decoder", {"input": hidden}, {"": (config.coord_bins,)})
        self._size_encoder = opened("size_encoder", {"input": two}, {"": hidden})
        self._size_decoder = opened("size_decoder", {"input": hidden}, {"": (2, config.size_bins)})

    def encode_coord(self, coord: Tensor) -> Tensor:
        """Coordinate (1, 1, 1) → embedding (1, 1, T)."""
        return self._coord_encoder.run(coord.flatten())[0][None, None]

    def encode_size(self, size: Tensor) -> Tensor:
        """Width and height (1, 1, 2) → embedding (1, 1, T)."""
        return self._size_encoder.run(size.flatten())[0][None, None]

    def coord_logits(self, hidden: Tensor) -> Tensor:
        """Hidden state (1, 1, T) → (1, 1, coord_bins)."""
        return self._coord_decoder.run(hidden.flatten())[0][None, None]

    def size_logits(self, hidden: Tensor) -> Tensor:
        """Hidden state (1, 1, T) → (1, 1, 2, size_bins): width, height."""
        return self._size_decoder.run(hidden.flatten())[0][None, None]


class OnnxParts:
    """A `Parts` (see parts.py) of one directory, on the CPU."""

    def __init__(self, directory: Path, config: ModelConfig, optimized: bool = True) -> None:
        """Read the BOS state, which tells the element type of all keys and values. Raises ModelError."""
        self.config = config
        self.device = torch.device("cpu")
        self.precision = precision_of(directory, config)
        self._graphs, self._optimized = directory / GRAPHS, optimized
        self._bos_kv = _bos_kv(directory / INITIAL_KV, config)
        self.dtype = self._bos_kv.dtype

    def _open(self, name: str, inputs: Mapping[str, Dims], outputs: Mapping[str, Dims]) -> Graph:
        return Graph(self._graphs / f"{name}.onnx", inputs, outputs, self._optimized)

    def vision(self) -> OnnxVision:
        """Vision encoder and projection."""
        return OnnxVision(self._open, self.config)

    def text(self) -> OnnxText:
        """The decoder."""
        return OnnxText(self._open, self.config, self.dtype)

    def region(self) -> OnnxRegion:
        """The region head. Raises ModelError when the model has none."""
        if self.config.region is None:
            raise ModelError(f"{self._graphs}: the model has no region head")
        return OnnxRegion(self._open, self.config.region, self.config.text.dim)

    def bos_kv(self) -> Tensor:
        """Keys and values of BOS, (L, 2, H, 1, E)."""
        return self._bos_kv


def _session(path: Path, optimized: bool) -> Any:
    """An ONNX Runtime session on the CPU, in as little memory as it takes."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it comes without types
    except ImportError as error:
        raise UnavailableError(
            f"{path.name} is run by ONNX Runtime, which is not here: pip install 'edge-daemon[models]' ({error})"
        ) from error
    options = onnx_session.options()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except onnx_session.errors() as error:
        raise ModelError(f"{path}: not a graph that ONNX Runtime can run: {error}") from error


def _problems(kind: str, wanted: Mapping[str, Dims], found: Mapping[str, Any]) -> list[str]:
    """What of a declared interface does not fit; a dimension that the graph leaves open may be anything."""
    there = ", ".join(found) or "none"
    problems = [
        f"missing {kind} {name} {dims}" if name else f"one {kind} {dims} is expected, found {there}"
        for name, dims in wanted.items()
        if name not in found
    ]
    if kind == "input":  # nobody would feed it; an output more is nobody's harm
        problems += [f"unexpected {kind} {name}" for name in sorted(found.keys() - wanted.keys())]
    for name, dims in ((name, dims) for name, dims in wanted.items() if name in found):
        shape: Sequence[Any] = found[name].shape or dims  # a graph need not say the shape of an output
        fits = len(shape) == len(dims) and all(d == w for d, w in zip(shape, dims, strict=True) if isinstance(d, int))
        if not fits:
            problems.append(f"{kind} {name} has shape {tuple(shape)}, expected {dims}")
        if found[name].type not in TYPES:
            problems.append(f"{kind} {name} is a {found[name].type}, which is not one of {', '.join(TYPES)}")
    return problems


def _lengths(inputs: Mapping[str, Dims], feeds: Mapping[str, Tensor]) -> dict[str, int]:
    """What the free lengths are in this run."""
    pairs = [pair for name, dims in inputs.items() for pair in zip(dims, feeds[name].shape, strict=True)]
    return {dim: length for dim, length in pairs if isinstance(dim, str)}


def _bos_kv(path: Path, config: ModelConfig) -> Tensor:
    """`initial_kv_cache.npy`, (L, 2, 1, H, 1, E) → (L, 2, H, 1, E)."""
    text = config.text
    wanted = (text.layers, 2, 1, text.heads, 1, text.head_dim)
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{path}: not a readable NumPy file: {error}") from error
    if array.shape != wanted or array.dtype not in (np.float16, np.float32):
        raise ModelError(f"{path} has shape {array.shape} of {array.dtype}, expected {wanted} of float16")
    return torch.from_numpy(array)[:, :, 0]
