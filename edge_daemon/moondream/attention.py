"""Attention in bfloat16, where the processor multiplies such numbers faster than float32 (trials.py).

It is used beside int8 only, whose errors are larger. Torch's own kernels gain nothing from bfloat16, so it is
written as two products with a softmax between them (tests/bench/README.md).
Shapes: B batch, S positions in this call, L positions in all, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, H, S, E), keys and values (B, H, L, E) → (B, H, S, E); knows who may see whom."""

ROWS = 256
"""Queries at a time: the scores of 16 heads for 730 keys are 6 MB then, and those that nobody may see are not
computed. Measured: between 180 and 256 it is fastest, all at once take half as long again."""


class Rows(NamedTuple):
    """Some of the queries."""

    own: slice
    seen: int
    """So many of the first keys are seen by one of them at least."""
    hidden: Tensor | None
    """(rows, seen), −∞ where a key is not seen and 0 elsewhere; None where all are seen by all."""


def narrow(new: int, past: int, prefix: int) -> Attention:
    """Attention of `new` positions to `past` earlier ones and themselves, float32 in and out.

    Position i sees position j when j ≤ i, or when both are among the first `prefix`.
    """
    starts = range(0, new, ROWS)
    return partial(_attend, blocks=[_rows(first, min(first + ROWS, new), past, prefix) for first in starts])


def _rows(first: int, end: int, past: int, prefix: int) -> Rows:
    last_seen = torch.arange(past + first, past + end).clamp_(min=prefix - 1)
    seen = int(last_seen[-1]) + 1
    if int(last_seen[0]) + 1 == seen:
        return Rows(slice(first, end), seen, None)
    unseen = torch.arange(seen) > last_seen[:, None]
    hidden = torch.zeros(unseen.shape, dtype=torch.bfloat16).masked_fill_(unseen, float("-inf"))
    return Rows(slice(first, end), seen, hidden)


def _attend(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Rows]) -> Tensor:
    batch, heads, new, width = q.shape
    q, k, v = (_narrowed(x) for x in (q, k, v))
    attended = torch.empty(batch, new, heads, width)  # in the order in which the heads are joined
    for own, seen, hidden in blocks:
        mask, weight = (q.new_zeros(1), 0) if hidden is None else (hidden, 1)
        scores = torch.baddbmm(mask, q[:, own], k[:, :seen].mT, beta=weight, alpha=width**-0.5)
        rows = torch.bmm(scores.softmax(dim=-1), v[:, :seen])
        attended[:, own] = rows.view(batch, heads, -1, width).transpose(1, 2)
    return attended.transpose(1, 2)


def _narrowed(x: Tensor) -> Tensor:
    """(B, H, S, E) → (B·H, S, E)."""
    return x.to(torch.bfloat16, memory_format=torch.contiguous_format).flatten(0, 1)
