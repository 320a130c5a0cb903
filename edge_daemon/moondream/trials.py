"""Which way to attend is the fastest one here: tried, as the names of a processor and its instructions do not tell.

Of two that say avx512_bf16, one multiplies bfloat16 at twice the rate of float32 (Zen 4), the other at half of it
(Sapphire Rapids without AMX). The results live as long as the process, so that all of its captions are made alike.
Shapes: B batch, H heads, S queries, L positions, E head width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from edge_daemon.moondream.allocator import give_back
from edge_daemon.moondream.attention import Way, by_head, in_bfloat16

QUERIES = (1, 4, 729, 64)
"""B, H, S and E of a picture's attention to itself; 1 to 5 ms each time."""
KEPT = (2, 1, 16, 768, 64)
"""Keys and values, B, H, L and E of a layer's KV cache; 0.2 to 0.5 ms each time."""
ROUNDS = 10
"""Trials of each way, in turn; the best of each counts. The first calls also prepare things: with 4 rounds, two of ten
starts on a Zen 5 chose the way that is half as fast. All trials take 65 ms, or 130 where bfloat16 is tried as well."""
FREED_BYTES = 24 << 20
"""After a block of this size was freed, glibc keeps smaller ones instead of taking every page anew from the kernel: so
it is when captions are made, and in a new process it is not. What takes more memory took twice the time in a trial."""
MUST_TAKE = 0.85
"""Of the other's time, so that noise does not decide for the less exact way."""


@cache
@torch.inference_mode()
def by_head_pays() -> bool:
    """Whether many queries are answered faster head by head than by torch's own, with the threads that torch has."""
    return _pays(_answering(by_head), _answering(None))


@cache
@torch.inference_mode()
def bfloat16_pays() -> bool:
    """Whether they are answered faster in bfloat16 than by the better way in float32."""
    return _pays(_answering(in_bfloat16), _answering(by_head if by_head_pays() else None))


def _answering(way: Way | None) -> Callable[[], object]:
    x, queries = torch.ones(QUERIES), QUERIES[2]
    attend = F.scaled_dot_product_attention if way is None else way(queries, 0, queries)
    return lambda: attend(x, x, x)


@cache
@torch.inference_mode()
def float16_pays() -> bool:
    """Whether one query is answered faster from keys and values in float16 as they are, than widened to float32."""
    kept, wide = torch.ones(KEPT, dtype=torch.float16), torch.empty(KEPT)
    query = torch.ones(*KEPT[1:3], 1, KEPT[4])
    return _pays(
        lambda: F.scaled_dot_product_attention(query.half(), *kept).float(),
        lambda: F.scaled_dot_product_attention(query, *wide.copy_(kept)),
    )


def _pays(way: Callable[[], object], other: Callable[[], object]) -> bool:
    torch.empty(FREED_BYTES, dtype=torch.uint8)  # gone at once
    seconds = [(_taken_s(way), _taken_s(other)) for _ in range(ROUNDS)]
    give_back()
    return min(one for one, _ in seconds) < MUST_TAKE * min(both[1] for both in seconds)


def _taken_s(way: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    way()
    return time.perf_counter() - start_s
