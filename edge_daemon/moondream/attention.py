"""Attention of many positions at once in two ways that torch does not have, for processors on which they are faster.

`by_head` is as exact as torch's own and multiplies with oneDNN, where torch takes MKL or OpenBLAS, whose products are
slow with so few columns. `in_bfloat16` is for int8 only, whose errors are larger; torch's own kernels gain nothing
from bfloat16. Which one is taken is tried (trials.py). Both are two products with a softmax between them, some
queries at a time (tests/bench/README.md).
Shapes: B batch, S positions in this call, L positions in all, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from edge_daemon.moondream.linear import multiplied

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, H, S, E), keys and values (B, H, L, E) → (B, H, S, E); knows who may see whom."""

Way = Callable[[int, int, int], Attention]
"""Builds the attention (float32 in and out) for `new` positions after `past` ones, of which the first `prefix` all see
each other: position i sees position j when j ≤ i, or when both are in the prefix."""

ROWS, ROWS_OF_HEAD = 256, 384
"""Queries at a time: the scores of 16 heads for 730 keys are 6 MB then, those of one head in float32 1 MB, and those
that nobody may see are not computed. Measured: `in_bfloat16` is fastest between 180 and 256, all at once take half as
long again; `by_head` is fastest with 384 (256: up to 23 % more; all at once 21 % where half is unseen)."""
MANY = 256
"""Positions from which on these ways may be the faster ones: a picture of the 0.5B, and no question."""


class Rows(NamedTuple):
    """Some of the queries."""

    own: slice
    seen: int
    """So many of the first keys are seen by one of them at least."""
    shared: int
    """And so many of them by all."""
    hidden: Tensor
    """(rows, seen - shared), −∞ where a key is not seen and 0 elsewhere."""


def in_bfloat16(new: int, past: int, prefix: int) -> Attention:
    """The `Way` in bfloat16."""
    return partial(_attend, blocks=_blocks(new, past, prefix, ROWS, torch.bfloat16))


def by_head(new: int, past: int, prefix: int) -> Attention:
    """The `Way` in float32."""
    return partial(_attend_by_head, blocks=_blocks(new, past, prefix, ROWS_OF_HEAD, torch.float32))


def _blocks(new: int, past: int, prefix: int, rows: int, dtype: torch.dtype) -> list[Rows]:
    return [_rows(first, min(first + rows, new), past, prefix, dtype) for first in range(0, new, rows)]


def _rows(first: int, end: int, past: int, prefix: int, dtype: torch.dtype) -> Rows:
    last_seen = torch.arange(past + first, past + end).clamp_(min=prefix - 1)
    shared, seen = int(last_seen[0]) + 1, int(last_seen[-1]) + 1
    unseen = torch.arange(shared, seen) > last_seen[:, None]
    hidden = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
    return Rows(slice(first, end), seen, shared, hidden)


def _attend(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Rows]) -> Tensor:
    batch, heads, new, width = q.shape
    q, k, v = (_in_bfloat16(x) for x in (q, k, v))
    attended = torch.empty(batch, new, heads, width)  # in the order in which the heads are joined
    for own, seen, shared, hidden in blocks:
        scores = torch.baddbmm(q.new_zeros(1), q[:, own], k[:, :seen].mT, beta=0, alpha=width**-0.5)
        scores[:, :, shared:] += hidden
        rows = torch.bmm(scores.softmax(dim=-1), v[:, :seen])
        attended[:, own] = rows.view(batch, heads, -1, width).transpose(1, 2)
    return attended.transpose(1, 2)


def _attend_by_head(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Rows]) -> Tensor:
    batch, heads, new, width = q.shape
    attended = torch.empty(batch, new, heads, width)
    for item, head in product(range(batch), range(heads)):
        queries, keys = q[item, head] * width**-0.5, k[item, head].contiguous()
        values = v[item, head].mT.contiguous()
        for own, seen, shared, hidden in blocks:
            scores = multiplied(queries[own], keys[:seen])
            scores[:, shared:] += hidden
            attended[item, own, head] = multiplied(scores.softmax(dim=-1), values[:, :seen].contiguous())
    return attended.transpose(1, 2)


def _in_bfloat16(x: Tensor) -> Tensor:
    """(B, H, S, E) → (B·H, S, E)."""
    return x.to(torch.bfloat16, memory_format=torch.contiguous_format).flatten(0, 1)
