"""The region head: hidden states to coordinates and sizes, and back to embeddings.

Coordinates and sizes are relative, 0…1. They enter the decoder through Fourier features
cos/sin(2π x·W) (Tancik et al., arXiv 2006.10739; upstream torch/region.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_daemon.moondream.config import RegionConfig, SizeScale
from edge_daemon.moondream.linear import Linear
from edge_daemon.moondream.vision import Mlp

SIZE_LOG2_SPAN = 10.0
"""Sizes of the 2025 checkpoints run from 2^-10 to 1 (upstream torch/moondream.py)."""


class Region(nn.Module):
    """Encoders and decoders with upstream's names."""

    def __init__(self, config: RegionConfig, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.coord_features = nn.Parameter(torch.empty(1, config.coord_features // 2))
        self.coord_encoder = Linear(config.coord_features, text_dim)
        self.coord_decoder = Mlp(text_dim, config.inner_dim, config.coord_bins)
        self.size_features = nn.Parameter(torch.empty(2, config.size_features // 2))
        self.size_encoder = Linear(config.size_features, text_dim)
        self.size_decoder = Mlp(text_dim, config.inner_dim, 2 * config.size_bins)

    def encode_coord(self, coord: Tensor) -> Tensor:
        """Coordinates (…, 1) → embeddings (…, T)."""
        embedding: Tensor = self.coord_encoder(fourier(coord, self.coord_features))
        return embedding

    def encode_size(self, size: Tensor) -> Tensor:
        """Sizes (…, 2), width then height, → embeddings (…, T)."""
        embedding: Tensor = self.size_encoder(fourier(size, self.size_features))
        return embedding

    def coord_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, T) → (…, coord_bins)."""
        logits: Tensor = self.coord_decoder(hidden)
        return logits

    def size_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, T) → (…, 2, size_bins): width, height."""
        logits: Tensor = self.size_decoder(hidden)
        return logits.view(*hidden.shape[:-1], 2, self.config.size_bins)


def coord_of(logits: Tensor) -> Tensor:
    """(…, coord_bins) → the likeliest relative coordinate (…, 1), float32."""
    return logits.argmax(-1, keepdim=True).to(torch.float32) / logits.shape[-1]


def size_of(logits: Tensor, scale: SizeScale) -> Tensor:
    """(…, 2, size_bins) → the likeliest relative width and height (…, 2), float32, on the checkpoint's scale."""
    bins, count = logits.argmax(-1).to(torch.float32), logits.shape[-1]
    if scale == "linear":
        return bins / count
    return torch.exp2(bins / (count - 1) * SIZE_LOG2_SPAN - SIZE_LOG2_SPAN)


def fourier(x: Tensor, w: Tensor) -> Tensor:
    """(…, n) and (n, F/2) → (…, F), in the dtype of `w`; in float32 up to then, as a coordinate has 1024 bins."""
    f = 2 * math.pi * x.to(torch.float32) @ w.to(torch.float32)
    return torch.cat([f.cos(), f.sin()], dim=-1).to(w.dtype)
