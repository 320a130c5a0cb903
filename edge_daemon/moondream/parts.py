"""What a model is made of, whoever computes it: torch from tensors, or ONNX Runtime from the graphs of a moonfile.

`Moondream` composes these parts and knows no more of them than this. What a picture, a prompt or an answer is,
they do not know.

Shapes: N crops, P patches a crop, D vision width, S positions in this call, T text width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from edge_daemon.errors import CaptionError
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.tails import Placed


@dataclass(frozen=True)
class Step:
    """The decoder after one run, seen from its last position: hidden state and logits cannot be of two."""

    hidden: Tensor
    """(1, 1, T), before the last norm: what the region head reads."""
    score: Callable[[], Tensor]
    """Gives the V logits of this position, in any shape; whoever needs none does not pay for them."""

    @property
    def logits(self) -> Tensor:
        """(V), float32, on the CPU. Raises CaptionError when they are no numbers, and so would be any token."""
        logits = self.score().flatten().to("cpu", torch.float32)
        if logits.isnan().any():
            raise CaptionError(
                f"the decoder's logits are not numbers (NaN), computed in {self.hidden.dtype}: "
                f"float16 is too narrow for this model, or its weights are damaged"
            )
        return logits


class VisionPart(Protocol):
    """Vision encoder and projection."""

    def encode(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, crop_px, crop_px), scaled to −1…1, → features (N, P, D)."""

    def project(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        """Features (P, D) of the whole picture and of its tiles → embeddings (P, T)."""


class TextPart(Protocol):
    """The decoder; its mask is its own."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (1, S) → embeddings (1, S, T)."""

    def extend(self, cache: KVCache, embeddings: Tensor) -> Step:
        """Put embeddings (1, S, T) behind the cache's sequence."""


@runtime_checkable
class ManyTextsPart(TextPart, Protocol):
    """A decoder that can be told who sees whom. A graph cannot: it takes what it is given for one text."""

    def extend_tails(self, cache: KVCache, embeddings: Tensor, placed: Placed, rows: int) -> list[Step]:
        """Put embeddings (1, S, T) of several texts behind the cache's sequence; steps of the last `rows` positions."""


class RegionPart(Protocol):
    """The region head. Coordinates and sizes are relative, 0…1."""

    def encode_coord(self, coord: Tensor) -> Tensor:
        """Coordinate (1, 1, 1) → embedding (1, 1, T)."""

    def encode_size(self, size: Tensor) -> Tensor:
        """Width and height (1, 1, 2) → embedding (1, 1, T)."""

    def coord_logits(self, hidden: Tensor) -> Tensor:
        """Hidden state (1, 1, T) → (1, 1, coord_bins)."""

    def size_logits(self, hidden: Tensor) -> Tensor:
        """Hidden state (1, 1, T) → (1, 1, 2, size_bins): width, height."""


class Parts(Protocol):
    """One model directory that is open: its parts, each read when it is asked for."""

    @property
    def device(self) -> torch.device:
        """Where crops and token ids are put, and where the KV cache lies."""

    @property
    def dtype(self) -> torch.dtype:
        """Of crops and of the KV cache."""

    @property
    def precision(self) -> str:
        """What the weights are computed in: float32, bfloat16, float16, int8 or int4."""

    def vision(self) -> VisionPart:
        """Raises ModelError that names what does not fit, as the others do."""

    def text(self) -> TextPart:
        """The decoder."""

    def region(self) -> RegionPart:
        """The region head of a model that has one."""

    def bos_kv(self) -> Tensor:
        """Keys and values of BOS alone, (layers, 2, heads, 1, head_dim), where the model has them stored."""
