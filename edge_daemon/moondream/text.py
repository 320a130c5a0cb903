"""The text decoder: Phi-style blocks with a parallel residual, partial rotary embedding, one KV cache.

Shapes: B batch, S positions in this call, L positions in all, T width, H heads, E head width, V vocabulary.
It knows neither prompts nor pictures: embeddings go in, hidden states come out.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_daemon.moondream.config import TextConfig
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.parts import Step
from edge_daemon.moondream.vision import LAYER_NORM_EPS, Mlp

ROTARY_THETA = 10000.0
"""Base of the rotary frequencies (RoFormer, arXiv 2104.09864; upstream torch/rope.py)."""


class TextAttention(nn.Module):
    """Self-attention with fused qkv."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """(B, S, T) → (B, S, T); keys and values also go to the cache if there is one."""
        b, s, t = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.config.heads, self.config.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y: Tensor = self.proj(heads.transpose(1, 2).reshape(b, s, t))
        return y


class TextBlock(nn.Module):
    """y = ln(x); x + attention(y) + mlp(y)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = TextAttention(config)
        self.mlp = Mlp(config.dim, config.ff_dim, config.dim)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """(B, S, T) → (B, S, T)."""
        y = self.ln(x)
        z: Tensor = x + self.attn(y, rotary, mask, cache, layer) + self.mlp(y)
        return z


class Text(nn.Module):
    """Embedding table, blocks and head, with upstream's names."""

    def __init__(self, config: TextConfig, prefix: int = 0) -> None:
        """The first `prefix` positions see each other, both ways; all others see what is behind them."""
        super().__init__()
        self.config = config
        self.prefix = prefix
        self.wte = nn.Parameter(torch.empty(config.vocab, config.dim))
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.post_ln = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.lm_head = nn.Linear(config.dim, config.vocab)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, S) → embeddings (B, S, T)."""
        return F.embedding(tokens, self.wte)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None = None) -> Tensor:
        """Embeddings (B, S, T) at `positions` (S or B×S) → hidden states (B, S, T), before the last norm.

        `mask` is boolean, broadcast to (B, H, S, L), True where attention is allowed; None allows all.
        With a cache, B is 1 and the S positions become part of the sequence.
        """
        rotary = rotary_table(positions, self.config.rotary_dim)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, mask, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def extend(self, cache: KVCache, embeddings: Tensor) -> Step:
        """Put embeddings (1, S, T) behind the cache's sequence."""
        new, past = embeddings.shape[1], cache.length
        positions = torch.arange(past, past + new, device=embeddings.device)
        mask = attention_mask(new, past, self.prefix, embeddings.device)
        hidden = self(embeddings, positions, mask, cache)[:, -1:]
        return Step(hidden, partial(self.logits, hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, T) → logits (…, V)."""
        logits: Tensor = self.lm_head(self.post_ln(hidden))
        return logits


def attention_mask(new: int, past: int, prefix: int = 0, device: torch.device | None = None) -> Tensor | None:
    """(new, past + new), True where allowed; None where the new positions may see everything.

    Position q sees position k when k ≤ q, or when both are among the first `prefix`.
    """
    if new == 1 or past + new <= prefix:
        return None
    mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    mask[: max(0, prefix - past), :prefix] = True
    return mask


def rotary_table(positions: Tensor, rotary_dim: int) -> Tensor:
    """Positions (S) or (B, S) → (2, …, S, rotary_dim/2): cosines and sines, with room for the heads."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions.to(torch.float32)[..., None] * ROTARY_THETA**-exponents
    table = torch.stack([angles.cos(), angles.sin()])
    return table[:, :, None] if positions.dim() == 2 else table


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the first dimensions of each head, (B, H, S, E) → the same shape.

    Pairs are (i, i + rotary_dim/2) and stay where they are. Upstream stores the same pairs interleaved;
    the two cancel out in q·k and differ only in a stored KV cache, which the import converts.
    """
    cos, sin = rotary
    half = cos.shape[-1]
    real, imag, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = torch.cat([real * cos - imag * sin, real * sin + imag * cos, rest], dim=-1)
    return rotated.to(x.dtype)  # the table is float32: positions beyond 256 have no name of their own in bfloat16
