"""The text decoder: Phi-style blocks with a parallel residual, partial rotary embedding, one KV cache.

Shapes: B batch, S positions in this call, L positions in all, T width, H heads, E head width, V vocabulary.
It knows neither prompts nor pictures: embeddings go in, hidden states come out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_daemon.moondream import attention as ways
from edge_daemon.moondream.attention import Attention, Way
from edge_daemon.moondream.config import TextConfig
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.linear import Linear
from edge_daemon.moondream.parts import Step
from edge_daemon.moondream.tails import Placed
from edge_daemon.moondream.vision import LAYER_NORM_EPS, Mlp

ROTARY_THETA = 10000.0
"""Base of the rotary frequencies (RoFormer, arXiv 2104.09864; upstream torch/rope.py)."""

Turn = Callable[[Tensor], Tensor]
"""Gives queries or keys (…, H, S, E) their positions; may do so in place."""


class TextAttention(nn.Module):
    """Self-attention with fused qkv."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.proj = Linear(config.dim, config.dim)

    def forward(
        self, y: Tensor, turn: Turn, attention: Attention, cache: KVCache | None, layer: int, rows: int = 0
    ) -> Tensor:
        """(B, S, T) → (B, S, T), or of so many last positions. Queries, keys and values are gone when it returns."""
        q, k, v = self.heads(y, turn, cache, layer)
        q = q[:, :, -rows:]
        return self.join(attention(q.to(k.dtype), k, v).to(q.dtype))  # a cache may hand out what it keeps

    def heads(self, y: Tensor, turn: Turn, cache: KVCache | None, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, T) → queries (B, H, S, E), keys and values (B, H, L, E); these also go to a cache if there is one."""
        b, s, _ = y.shape
        qkv = self.qkv(y).view(b, s, 3, self.config.heads, self.config.head_dim).permute(2, 0, 3, 1, 4)
        q, k = turn(qkv[:2])
        return (q, k, qkv[2]) if cache is None else (q, *cache.update(layer, k, qkv[2]))

    def join(self, heads: Tensor) -> Tensor:
        """What was attended to, (B, H, S, E) → (B, S, T)."""
        y: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return y


class TextBlock(nn.Module):
    """y = ln(x); x + attention(y) + mlp(y)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = TextAttention(config)
        self.mlp = Mlp(config.dim, config.ff_dim, config.dim)

    def forward(
        self, x: Tensor, turn: Turn, attention: Attention, cache: KVCache | None, layer: int, rows: int = 0
    ) -> Tensor:
        """(B, S, T) → (B, S, T), or, unless `rows` is 0, of so many last positions; all give their keys and values."""
        y = self.ln(x)
        attended = self.attn(y, turn, attention, cache, layer, rows)
        z: Tensor = x[:, -rows:] + attended + self.mlp(y[:, -rows:])
        return z


class Text(nn.Module):
    """Embedding table, blocks and head, with upstream's names."""

    def __init__(self, config: TextConfig, prefix: int = 0, way: Way | None = None) -> None:
        """The first `prefix` positions see each other, both ways; all others see what is behind them.

        `way` of attention of MANY positions and more; None is torch's own.
        """
        super().__init__()
        self.config = config
        self.prefix, self.way = prefix, way
        self.wte = nn.Parameter(torch.empty(config.vocab, config.dim))
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.layers))
        self.post_ln = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.lm_head = Linear(config.dim, config.vocab)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, S) → embeddings (B, S, T)."""
        return F.embedding(tokens, self.wte)

    def forward(self, x: Tensor, positions: Tensor, attention: Attention, cache: KVCache | None = None) -> Tensor:
        """Embeddings (B, S, T) at `positions` (S or B×S) → hidden states (B, S, T), before the last norm.

        With a cache, B is 1 and the S positions become part of the sequence.
        """
        table = rotary_table(positions, self.config.rotary_dim)
        for layer, block in enumerate(self.blocks):
            x = block(x, lambda heads: rotate(heads, table), attention, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def extend(self, cache: KVCache, embeddings: Tensor) -> Step:
        """Put embeddings (1, S, T) behind the cache's sequence.

        Of the last block only what is asked for is computed: keys and values of all, the rest of the last position.
        """
        new, past = embeddings.shape[1], cache.length
        positions = torch.arange(past, past + new, device=embeddings.device)
        hidden = self._run(cache, embeddings, positions, self._attention(new, past), F.scaled_dot_product_attention)
        return Step(hidden, partial(self.logits, hidden))

    def extend_tails(self, cache: KVCache, embeddings: Tensor, placed: Placed, rows: int) -> list[Step]:
        """Put embeddings (1, S, T) of several texts behind the cache's sequence; steps of the last `rows` positions.

        The weights are read once for all of them.
        """
        past, texts = cache.length, len(placed.seen)
        hidden_from = torch.zeros(placed.seen.shape, dtype=embeddings.dtype).masked_fill_(~placed.seen, float("-inf"))
        mask = hidden_from.to(embeddings.device)
        own = masked(mask)
        if placed.picture:
            own = partial(_attend_both, picture=self._attention(placed.picture, past), mask=mask)
        positions = placed.positions.to(embeddings.device)
        hidden = self._run(cache, embeddings, positions, own, masked(mask[texts - rows :]), rows)
        scores = self.logits(hidden)[0]
        return [Step(hidden[:, row : row + 1], partial(scores.__getitem__, row)) for row in range(rows)]

    def _run(
        self, cache: KVCache, x: Tensor, positions: Tensor, attention: Attention, last: Attention, rows: int = 1
    ) -> Tensor:
        """Embeddings (1, S, T) → hidden states (1, rows, T); `last` is the attention of these in the last block."""
        new = x.shape[1]
        turn = turning(positions, self.config, x.dtype)
        for layer, block in enumerate(self.blocks[:-1]):
            x = block(x, turn, attention, cache, layer)
        hidden: Tensor = self.blocks[-1](x, turn, last, cache, len(self.blocks) - 1, rows)
        cache.advance(new)
        return hidden

    def _attention(self, new: int, past: int) -> Attention:
        if self.way is not None and new >= ways.MANY:
            return self.way(new, past, self.prefix)
        return partial(attend, past=past, prefix=self.prefix)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, T) → logits (…, V)."""
        logits: Tensor = self.lm_head(self.post_ln(hidden))
        return logits


def masked(mask: Tensor | None) -> Attention:
    """Attention by a mask, broadcast to (B, H, S, L): True where it is allowed, or 0 there and −∞ elsewhere."""
    return partial(F.scaled_dot_product_attention, attn_mask=mask)


def attend(q: Tensor, k: Tensor, v: Tensor, past: int, prefix: int = 0) -> Tensor:
    """Attention of S new positions (B, H, S, E) to `past` earlier ones and themselves, (B, H, past + S, E).

    Position i sees position j when j ≤ i, or when both are among the first `prefix`. A mask is made only for a short
    text behind a long one; everything else is asked of the kernels in a way that skips what is not seen.
    """
    new, mutual = q.shape[2], prefix - past
    if new == 1 or mutual >= new:
        return F.scaled_dot_product_attention(q, k, v)
    if mutual > 0:
        first = F.scaled_dot_product_attention(q[:, :, :mutual], k[:, :, :prefix], v[:, :, :prefix])
        return torch.cat([first, attend(q[:, :, mutual:], k, v, prefix)], dim=2)
    if past >= new:
        mask = torch.ones(new, past + new, dtype=torch.bool, device=q.device).tril(past)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # torch's causal attention is that of a square: the past asks as well, and nobody reads its answers
    square = F.pad(q, (0, 0, past, 0)) if past else q
    return F.scaled_dot_product_attention(square, k, v, is_causal=True)[:, :, past:]


def _attend_both(q: Tensor, k: Tensor, v: Tensor, picture: Attention, mask: Tensor) -> Tensor:
    """Attention of a picture and of texts behind it, to which the mask (texts, L) belongs."""
    texts, shown = len(mask), k.shape[2] - len(mask)
    first = picture(q[:, :, :-texts], k[:, :, :shown], v[:, :, :shown])
    behind = F.scaled_dot_product_attention(q[:, :, -texts:], k, v, attn_mask=mask)
    return torch.cat([first, behind], dim=2)


def turning(positions: Tensor, config: TextConfig, dtype: torch.dtype) -> Turn:
    """How queries and keys at `positions` (S) are rotated.

    A single position in float32 by a matrix, which takes one product where the table takes a dozen small operations:
    they were a fifth of the time of a token.
    """
    table = rotary_table(positions, config.rotary_dim)
    if len(positions) > 1 or dtype != torch.float32:
        return lambda heads: rotate(heads, table)
    matrix = rotate(torch.eye(config.head_dim, device=positions.device), table)
    return lambda heads: heads @ matrix


def rotary_table(positions: Tensor, rotary_dim: int) -> Tensor:
    """Positions (S) or (B, S) → (2, …, S, rotary_dim/2): cosines and sines, with room for the heads."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions.to(torch.float32)[..., None] * ROTARY_THETA**-exponents
    table = torch.stack([angles.cos(), angles.sin()])
    return table[:, :, None] if positions.dim() == 2 else table


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the first dimensions of each head, (B, H, S, E), in place, and return them.

    Pairs are (i, i + rotary_dim/2) and stay where they are. Upstream stores the same pairs interleaved;
    the two cancel out in q·k and differ only in a stored KV cache, which the import converts.
    """
    cos, sin = rotary  # in float32: positions beyond 256 have no name of their own in bfloat16
    half = cos.shape[-1]
    real, imag = x[..., :half], x[..., half : 2 * half]
    turned = real * cos - imag * sin
    imag.copy_(real * sin + imag * cos)
    real.copy_(turned)
    return x
