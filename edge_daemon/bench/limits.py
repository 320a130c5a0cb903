"""What this machine does at its best: float32 matrix products, and reading memory. It knows no model.

A busy machine shows less than it can, so the best of many counts; the spread tells how busy it was.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

GEMM_SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (730, 1024, 4096), (730, 4096, 1024))
"""Rows, inner width, columns; the last two are a decoder's MLP."""
READ_BYTES = 256 << 20
"""Many times the caches of any board."""
REPEATS = 5

Rates = dict[str, list[float]]
"""What did it → how fast, each time: GFLOP/s or GB/s."""


@dataclass(frozen=True)
class Limit:
    """The best of all, what did it, and what the same did at other times."""

    best: float
    by: str
    median: float
    least: float


def limit(*measured: Rates) -> Limit:
    """The limit that one or several measurements of the same show."""
    joined: Rates = {}
    for rates in measured:
        for by, values in rates.items():
            joined.setdefault(by, []).extend(values)
    by = max(joined, key=lambda name: max(joined[name]))
    return Limit(max(joined[by]), by, statistics.median(joined[by]), min(joined[by]))


@torch.inference_mode()
def gemm_rates() -> Rates:
    """GFLOP/s of float32 products: torch's own, and oneDNN's with packed weights where torch was built with it."""
    rates: Rates = {}
    for rows, inner, columns in GEMM_SIZES:
        x, w = torch.rand(rows, inner), torch.rand(columns, inner)
        kernels: dict[str, Callable[[], Tensor]] = {"torch.mm": partial(torch.mm, x, w.T)}
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch has no annotation there
            packed = torch.ops.mkldnn._reorder_linear_weight(w, None)
            kernels["oneDNN, packed"] = partial(_packed_product, x, packed)
        for name, kernel in kernels.items():
            by = f"{name}, {rows}×{inner}×{columns}"
            rates[by] = [2e-9 * rows * inner * columns / seconds for seconds in _timed(kernel)]
    return rates


def _packed_product(x: Tensor, w: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    return product


@torch.inference_mode()
def read_rates() -> Rates:
    """GB/s of operations that read much and write next to nothing."""
    x = torch.ones(READ_BYTES // 4).view(-1, 8192)
    v = torch.ones(x.shape[1])
    kernels: dict[str, Callable[[], Tensor]] = {"sum": x.sum, "amax": x.amax, "mv": partial(torch.mv, x, v)}
    return {name: [READ_BYTES * 1e-9 / seconds for seconds in _timed(kernel)] for name, kernel in kernels.items()}


def _timed(kernel: Callable[[], Tensor]) -> list[float]:
    """Seconds of REPEATS calls, after one that does not count."""
    kernel()
    taken_s = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        kernel()
        taken_s.append(time.perf_counter() - start_s)
    return taken_s
