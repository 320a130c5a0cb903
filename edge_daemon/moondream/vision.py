"""Vision encoder and projection: crops in, image embeddings out. Knows nothing of files or prompts.

Shapes: N crops, P patches a crop, D vision width, T text width. The keys of the state dict are upstream's
(`patch_emb`, `pos_emb`, `blocks.0.attn.qkv`, …, `post_ln`, `proj_mlp.fc1`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_daemon.moondream.attention import Way
from edge_daemon.moondream.config import FINE, VisionConfig
from edge_daemon.moondream.linear import Linear

LAYER_NORM_EPS = 1e-5
"""Upstream's `layer_norm` default (torch/layers.py)."""


MLP_ROWS = 256
"""Rows that go through an MLP at a time: the values between its layers stay in the processor's caches, and take 4 MiB
where all 730 positions of the 0.5B would take 12."""


class Mlp(nn.Module):
    """Two linear layers with a tanh-GELU between them."""

    def __init__(self, dim: int, inner_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner_dim)
        self.fc2 = Linear(inner_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, out_dim)."""
        if x.dim() < 2 or x.shape[-2] <= MLP_ROWS:
            y: Tensor = self.fc2(self.fc1.gelu(x))
            return y
        return torch.cat([self.fc2(self.fc1.gelu(rows)) for rows in torch.split(x, MLP_ROWS, dim=-2)], dim=-2)


class VisionAttention(nn.Module):
    """Full self-attention over the patches of one crop."""

    def __init__(self, dim: int, heads: int, way: Way | None) -> None:
        """`way` of attention; None is torch's own."""
        super().__init__()
        self.heads, self.way = heads, way
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, D) → (N, P, D)."""
        n, p, d = x.shape
        q, k, v = self.qkv(x).view(n, p, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention if self.way is None else self.way(p, 0, p)
        y: Tensor = self.proj(attention(q, k, v).transpose(1, 2).reshape(n, p, d))
        return y


class VisionBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig, way: Way | None) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = VisionAttention(config.dim, config.heads, way)
        self.ln2 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config.dim, config.ff_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, D) → (N, P, D)."""
        x = x + self.attn(self.ln1(x))
        y: Tensor = x + self.mlp(self.ln2(x))
        return y


class Vision(nn.Module):
    """Encoder plus projection, with upstream's names."""

    def __init__(
        self, config: VisionConfig, text_dim: int, way: Way | None = None, fine_way: Way | None = None
    ) -> None:
        """Ways of attention; `fine_way` where the layers are FINE in int8. None is torch's own."""
        super().__init__()
        self.config = config
        self.patch_emb = Linear(3 * config.patch_px**2, config.dim)
        self.pos_emb = nn.Parameter(torch.empty(1, config.patches, config.dim))
        self.blocks = nn.ModuleList(
            VisionBlock(config, fine_way if f"blocks.{layer}.attn".startswith(FINE["vision"]) else way)
            for layer in range(config.layers)
        )
        self.post_ln = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.proj_mlp = Mlp(2 * config.dim, config.projection_dim, text_dim)

    def encode(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, crop_px, crop_px), scaled to −1…1, → features (N, P, D)."""
        x = self.patch_emb(patches_of(crops, self.config.patch_px)) + self.pos_emb
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.post_ln(x)
        return features

    def project(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        """Features (P, D) of the whole picture and of its tiles, reassembled and pooled, → (P, T)."""
        embeddings: Tensor = self.proj_mlp(torch.cat([global_features, local_features], dim=-1))
        return embeddings


def patches_of(crops: Tensor, patch_px: int) -> Tensor:
    """(N, 3, S, S) → (N, P, 3·patch_px²), each patch flattened as (channel, row, column)."""
    n, c, s, _ = crops.shape
    g = s // patch_px
    x = crops.reshape(n, c, g, patch_px, g, patch_px).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, g * g, c * patch_px * patch_px)
