"""Linear layers in int8: weights in 8 bits, activations quantized on the fly, products in integers.

One way for each architecture, chosen on evidence (tests/bench/README.md): torch's FBGEMM on x86-64, ONNX Runtime's
kernels on aarch64 (mlas.py). Both take weights with zero points and hold them once. Shapes: … any leading ones, R rows,
K inputs, N outputs.

What is lost, and where:

* Weights that were published in int8 (a moonfile's, imported to floats) are recognised and taken back as they were:
  nothing is lost. Others are rounded, each output channel with its own scale: at most half of 1/255 of its range.
* Activations are rounded to 256 levels between the smallest and the largest of the call.
* That counts most in the first layers and in the projection of a picture. In those, `config.FINE`, what the rounding
  left is rounded and multiplied as well: as good as 16 bits, for twice the products. Faster than float32, and it takes
  no more memory than 8 bits. Where activations have 128 levels only (`seven_bits`), it is done around all attention and
  in all of the vision encoder.
* On x86-64 the GELU is computed with the error function and not with tanh: never more than 0.0005 off, a small part of
  a level of the activation that is quantized next, and three times as fast.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_daemon.errors import UnavailableError
from edge_daemon.moondream.config import FINE
from edge_daemon.moondream.cpu import cpuinfo_here, flags
from edge_daemon.moondream.linear import Linear, gelu

LOSSLESS = 1e-3
"""Of a level: what the float32 of a published int8 weight is off."""
SAMPLE_ROWS, BLOCK_ROWS = 8, 256
FINER = 255
"""Levels in one level."""
Product = Callable[[Tensor], Tensor]
"""(…, K) → (…, N), float32 in and out."""


@dataclass(frozen=True)
class Levels:
    """A weight matrix in 8 bits: (levels − zeros) · scales."""

    levels: Tensor
    """(N, K), int8."""
    scales: Tensor
    """(N), or (1) where all channels have the same; float64."""
    zeros: Tensor
    """Of the same shape, int64, −128…127."""
    off: float
    """How far the worst number was from its level, in levels."""


def levels_of(weight: Tensor) -> Levels:
    """The 8-bit form of a float32 matrix (N, K): the one it was made from, or the nearest with a scale per channel.

    Raises ValueError for one that is not all numbers.
    """
    low, high = weight.aminmax(dim=1)
    if not (low.isfinite() & high.isfinite()).all():
        raise ValueError("has values that are not numbers")
    for grid in (_asymmetric(low.min()[None], high.max()[None]), _asymmetric(low, high), _symmetric(low, high)):
        if _rounded(weight[:SAMPLE_ROWS], grid).off <= LOSSLESS and (found := _rounded(weight, grid)).off <= LOSSLESS:
            return found
    return _rounded(weight, _asymmetric(low, high))


def _asymmetric(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (float64) and zeros (n) of the grids of 256 levels over `low`…`high` and 0.

    As ONNX Runtime's quantize_dynamic lays them.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    scales = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / 255
    return scales, torch.round(-low / scales) - 128


def _symmetric(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same with 255 levels around 0."""
    scales = torch.maximum(-low, high).double().clamp_min(torch.finfo(torch.float32).tiny) / 127
    return scales, torch.zeros_like(scales)


def _rounded(weight: Tensor, grid: tuple[Tensor, Tensor]) -> Levels:
    """Block by block, so that what lies between is small and in the processor's caches."""
    scales, zeros = grid
    levels, off = torch.empty_like(weight, dtype=torch.int8), 0.0
    for first in range(0, len(weight), BLOCK_ROWS):
        block = slice(first, min(first + BLOCK_ROWS, len(weight)))
        own = block if len(scales) > 1 else slice(None)
        exact = (weight[block] / scales[own, None].float()).add_(zeros[own, None].float())
        nearest = exact.round().clamp_(-128, 127)
        off = max(off, float(exact.sub_(nearest).abs_().max()))
        levels[block] = nearest
    return Levels(levels, scales, zeros.long(), off)


class Kernel(NamedTuple):
    """How an architecture multiplies in 8 bits."""

    product: Callable[[Levels, Tensor], Product]
    """By weights and with a bias (N)."""
    rounded: Callable[[Tensor], Tensor]
    """Activations as such a product takes them, of the same shape."""


def by_fbgemm(found: Levels, bias: Tensor) -> Product:
    """The product by torch."""
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():  # torch says that quantized tensors will go one day; our torch is pinned
        warnings.simplefilter("ignore", UserWarning)
        if len(found.scales) == 1:
            scale, zero = float(found.scales), int(found.zeros)
            weight = torch._make_per_tensor_quantized_tensor(found.levels, scale, zero)
        else:
            weight = torch._make_per_channel_quantized_tensor(found.levels, found.scales, found.zeros, 0)
        packed = torch.ops.quantized.linear_prepack(weight, bias)
    seven = seven_bits()
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, seven)


def as_fbgemm_rounds(x: Tensor) -> Tensor:
    """The activations of a call, on its 256 levels."""
    levels: Tensor = torch.quantize_per_tensor_dynamic(x, torch.quint8, seven_bits())
    return levels.dequantize()


def by_mlas(found: Levels, bias: Tensor) -> Product:
    """The product by ONNX Runtime."""
    from edge_daemon.moondream import mlas  # late: a PC has no need of its libraries

    signed = mlas.signed(found.levels, platform.machine(), cpuinfo_here())
    return mlas.product(found.levels, found.scales, found.zeros, bias, signed)


def as_mlas_rounds(x: Tensor) -> Tensor:
    """The same, with levels as ONNX's DynamicQuantizeLinear lays them: from the smallest to the largest, and over 0."""
    scales, zeros = _asymmetric(*(end[None] for end in x.aminmax()))
    return torch.fake_quantize_per_tensor_affine(x, float(scales), int(zeros), -128, 127)


KERNELS = {"x86_64": Kernel(by_fbgemm, as_fbgemm_rounds), "aarch64": Kernel(by_mlas, as_mlas_rounds)}
"""By platform.machine()."""


class Int8Linear(nn.Module):
    """(…, K) → (…, N), float32 in and out."""

    bias_share = 1.0
    """Of the bias that a single product adds."""

    def __init__(self, linear: Linear) -> None:
        """Raises ValueError for weights that are no numbers."""
        super().__init__()
        found = levels_of(linear.weight)
        self.lossless = found.off <= LOSSLESS
        self._product = KERNELS[platform.machine()].product(found, linear.bias * self.bias_share)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        return self._product(x)

    def gelu(self, x: Tensor) -> Tensor:
        """The layer, and a GELU behind it."""
        return F.gelu(self(x)) if platform.machine() == "x86_64" else gelu(self(x))


class FineLinear(Int8Linear):
    """The same with activations in 16 bits: what the rounding of a first product left goes through a second one."""

    bias_share = FINER / (FINER + 1)
    """The other product adds the rest of it."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        rest = (x - KERNELS[platform.machine()].rounded(x)).mul_(FINER)  # as large as x: kernels have a smallest scale
        return self._product(x).add_(self._product(rest), alpha=1 / FINER)


def in_int8(linear: Linear, part: Literal["vision", "text"], name: str) -> Int8Linear:
    """A layer by its place in the model. Raises ValueError for weights that are no numbers."""
    fine = name.startswith(FINE[part]) or (seven_bits() and (part == "vision" or ".attn." in name))
    return FineLinear(linear) if fine else Int8Linear(linear)


def full_range(cpuinfo: str) -> bool:
    """Whether FBGEMM may take all 8 bits of activations, by the text of /proc/cpuinfo.

    Without AVX512-VNNI it adds pairs of products in 16 bits, which overflow unless one factor has 7 bits (torch calls
    it reduce_range).
    """
    return "avx512_vnni" in flags(cpuinfo)


@cache
def seven_bits() -> bool:
    """Whether activations take 7 bits here, which is a matter of FBGEMM's; asked by every layer."""
    return platform.machine() == "x86_64" and not full_range(cpuinfo_here())


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere torch emulates it.

    Of aarch64 nothing was measured, and no Raspberry Pi has it.
    """
    return "avx512_bf16" in flags(cpuinfo)


def multiplies_bfloat16() -> bool:
    """The same of this processor."""
    return has_bfloat16(cpuinfo_here())


def missing() -> str:
    """Why there are no int8 products here, or nothing when there are."""
    machine = platform.machine()
    if machine not in KERNELS:
        return f"there are no kernels for {machine}"
    if KERNELS[machine].product is by_fbgemm and "fbgemm" not in torch.backends.quantized.supported_engines:
        return "this torch has no kernels for it"
    if KERNELS[machine].product is by_mlas and not (find_spec("onnx") and find_spec("onnxruntime")):
        return "its kernels here are ONNX Runtime's, which is not installed (pip install 'edge-daemon[models]')"
    return ""


def require_kernels() -> None:
    """Raise UnavailableError where there are no int8 products."""
    if why := missing():
        raise UnavailableError(f"precision int8: {why}; use float32")
