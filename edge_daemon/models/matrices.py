"""The constant matrices of an ONNX graph's products, (out, in) in float32, computed when they are read.

Quantized ones become `(q - zero point) * scale` (ONNX, DequantizeLinear). Forms of ONNX Runtime: its
docs/ContribOperators.md. It does not know what follows a product, nor what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_daemon.models.folding import Array, Graph, Node, dequantized

Floats = NDArray[np.float32]
MS = "com.microsoft."
UNARY = frozenset({"Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
"""What may stand between a product and what belongs to it: nothing changes its place in the last axis."""
PRODUCTS = frozenset(
    {
        "MatMul",
        "Gemm",
        "Einsum",
        "MatMulInteger",
        f"{MS}FusedMatMul",
        f"{MS}FusedGemm",
        f"{MS}MatMulIntegerToFloat",
        f"{MS}DynamicQuantizeMatMul",
    }
)
"""Matrix products, with or without a constant matrix."""
DEFAULT_NBITS = 4


@dataclass(frozen=True)
class Weight:
    """The constant matrix of a product."""

    rows: int
    """Outputs of the layer."""
    columns: int
    """Inputs of the layer."""
    source: str
    """The value that is multiplied, before any quantization."""
    read: Callable[[Array | None], Floats] = field(repr=False)
    """(out, in); of an integer product it needs the scale."""
    bias: tuple[str, float] | None = None
    """A bias that is part of the product itself: the constant, and its factor."""
    activation_scale: str = ""
    """Of an integer product: the scale of what is multiplied, which the product is still to be multiplied with."""


def _matmul(graph: Graph, node: Node) -> Weight | None:
    """MatMul and FusedMatMul: x · B, or A · x."""
    a, b = node.inputs[:2]
    if node.attributes.get("transBatchA") or node.attributes.get("transBatchB"):
        return None
    alpha = float(node.attributes.get("alpha", 1.0))
    left = graph.is_constant(a)
    matrix, source = (a, b) if left else (b, a)
    shape = graph.shape(matrix) if graph.is_constant(matrix) else ()
    if len(shape) < 2 or math.prod(shape[:-2]) != 1:
        return None
    turned = bool(node.attributes.get("transA" if left else "transB", 0))
    if node.attributes.get("transB" if left else "transA", 0):
        return None  # the activations are turned: no exporter writes a layer so
    upright = left != turned  # whether the matrix is (out, in) as it lies
    return _float_weight(graph, matrix, source, upright, alpha)


def _gemm(graph: Graph, node: Node) -> Weight | None:
    a, b = node.inputs[:2]
    if node.attributes.get("activation"):
        raise graph.refuse(f"{node} has the activation {node.attributes['activation']!r}; only GELU is expected")
    if graph.is_constant(a) or not graph.is_constant(b) or node.attributes.get("transA", 0):
        return None
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    bias = (node.inputs[2], beta) if node.input(2) and graph.is_constant(node.inputs[2]) else None
    return _float_weight(graph, b, a, bool(node.attributes.get("transB", 0)), alpha, bias)


def _float_weight(
    graph: Graph, matrix: str, source: str, upright: bool, alpha: float, bias: tuple[str, float] | None = None
) -> Weight:
    rows, columns = graph.shape(matrix)[-2:] if upright else graph.shape(matrix)[:-3:-1]

    def read(scale: Array | None) -> Floats:
        values = graph.constant(matrix).reshape(graph.shape(matrix)[-2:]).astype(np.float32)
        values = values if upright else values.T
        return _scaled_rows(values * np.float32(alpha) if alpha != 1.0 else values, scale)

    return Weight(rows, columns, source, read, bias)


def _scaled_rows(values: Floats, scale: Array | None) -> Floats:
    """Multiply an upright matrix with the scale of its outputs."""
    return values if scale is None else values * scale.reshape(-1, 1).astype(np.float32)


def _unquantized(graph: Graph, value: str) -> tuple[str, str]:
    """Of a value that was quantized on the way: the float value, and its scale."""
    node = graph.producer.get(value)
    while node is not None and node.op in UNARY:
        node = graph.producer.get(node.inputs[0])
    if node is None or node.op != "DynamicQuantizeLinear":
        raise graph.refuse(f"{value} goes into an integer product; it is expected from DynamicQuantizeLinear")
    return node.inputs[0], node.outputs[1]


def _integer_matmul(graph: Graph, node: Node) -> Weight | None:
    a, b = node.inputs[:2]
    if not graph.is_constant(b):
        return None
    source, activation_scale = _unquantized(graph, a)
    columns, rows = graph.shape(b)[-2:]

    def read(scale: Array | None) -> Floats:
        return _quantized(graph, node, b, scale, node.input(3)).reshape(columns, rows).T

    return Weight(rows, columns, source, read, activation_scale=activation_scale)


def _integer_conv(graph: Graph, node: Node) -> Weight | None:
    x, w = node.inputs[:2]
    if not graph.is_constant(w):
        return None
    source, activation_scale = _unquantized(graph, x)
    rows, columns = _patch_kernel(graph, node, w)

    def read(scale: Array | None) -> Floats:
        flat = None if scale is None else scale.reshape(-1)
        return _quantized(graph, node, w, flat, node.input(3), axis=0).reshape(rows, columns)

    return Weight(rows, columns, source, read, activation_scale=activation_scale)


def _quantized(graph: Graph, node: Node, matrix: str, scale: Array | None, zero: str, axis: int = -1) -> Floats:
    """A quantized constant in float32."""
    values = graph.constant(matrix)
    if scale is None:
        raise graph.refuse(f"{node} has no scale")
    try:
        offset = graph.constant(zero) if zero else None
        flat = None if offset is None else offset.reshape(-1)
        return dequantized(values, scale.reshape(-1), flat, axis % values.ndim)
    except ValueError as error:
        raise graph.refuse(f"{node}: scale or zero point does not fit {values.shape}: {error}") from error


def _dynamic_matmul(graph: Graph, node: Node) -> Weight | None:
    """DynamicQuantizeMatMul: A, B, scale of B, zero point of B, bias."""
    return _scaled_matmul(graph, node, node.inputs[0], scale=2, zero=3, bias=4)


def _matmul_to_float(graph: Graph, node: Node) -> Weight | None:
    """MatMulIntegerToFloat: A, B, scale of A, scale of B, zero point of A, zero point of B, bias."""
    if not graph.is_constant(node.inputs[1]):
        return None
    return _scaled_matmul(graph, node, _unquantized(graph, node.inputs[0])[0], scale=3, zero=5, bias=6)


def _scaled_matmul(graph: Graph, node: Node, source: str, scale: int, zero: int, bias: int) -> Weight | None:
    b = node.inputs[1]
    if not graph.is_constant(b):
        return None
    columns, rows = graph.shape(b)[-2:]

    def read(further: Array | None) -> Floats:
        values = _quantized(graph, node, b, graph.constant(node.inputs[scale]), node.input(zero))
        return _scaled_rows(values.reshape(columns, rows).T, further)

    return Weight(rows, columns, source, read, (node.inputs[bias], 1.0) if node.input(bias) else None)


def _matmul_nbits(graph: Graph, node: Node) -> Weight | None:
    """MatMulNBits: A, B packed in blocks along the inputs, scales, zero points, g_idx, bias."""
    if node.input(4):
        raise graph.refuse(f"{node} reorders its inputs by g_idx; blocks in order are expected")
    rows, columns = int(node.attributes["N"]), int(node.attributes["K"])
    bits, block = int(node.attributes.get("bits", DEFAULT_NBITS)), int(node.attributes["block_size"])

    def read(further: Array | None) -> Floats:
        packed, scales = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
        zeros = graph.constant(node.inputs[3]) if node.input(3) else None
        try:
            return _scaled_rows(unpacked(packed, scales, zeros, (rows, columns), bits, block), further)
        except ValueError as error:
            raise graph.refuse(f"{node}: {packed.shape} packed numbers are not ({rows}, {columns}): {error}") from error

    return Weight(rows, columns, node.inputs[0], read, (node.inputs[5], 1.0) if node.input(5) else None)


def unpacked(
    packed: Array, scales: Array, zeros: Array | None, shape: tuple[int, int], bits: int, block: int
) -> Floats:
    """Blocks of `bits`-bit numbers, the lowest bits first, → (rows, columns) in float32.

    Zero points are packed as the numbers are, each row in whole bytes, or are of the scales' type; without any the
    middle 2^(bits-1) is meant (ContribOperators.md, MatMulNBits). Raises ValueError for sizes that do not fit.
    """
    rows, columns = shape
    blocks = -(-columns // block)

    def apart(numbers: Array, count: int) -> Array:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        spread = (numbers.reshape(rows, -1)[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return spread.reshape(rows, -1)[:, :count]

    levels = apart(packed, blocks * block).reshape(rows, blocks, block).astype(np.float32)
    if zeros is None:
        levels -= np.float32(1 << (bits - 1))
    else:
        middles = apart(zeros, blocks) if zeros.dtype == np.uint8 else zeros
        levels -= middles.reshape(rows, blocks, 1).astype(np.float32)
    levels *= scales.reshape(rows, blocks, 1).astype(np.float32)
    return levels.reshape(rows, blocks * block)[:, :columns]


def _conv(graph: Graph, node: Node) -> Weight | None:
    x, w = node.inputs[:2]
    if not graph.is_constant(w):
        return None
    rows, columns = _patch_kernel(graph, node, w)

    def read(scale: Array | None) -> Floats:
        return _scaled_rows(graph.constant(w).astype(np.float32).reshape(rows, columns), scale)

    return Weight(rows, columns, x, read, (node.inputs[2], 1.0) if node.input(2) else None)


def _patch_kernel(graph: Graph, node: Node, w: str) -> tuple[int, int]:
    """(out, in) of a convolution that takes a picture apart into squares, which is a linear layer."""
    out, channels, height, width = shape = graph.shape(w)
    strides = node.attributes.get("strides")
    plain = not any(node.attributes.get("pads", ())) and node.attributes.get("group", 1) == 1
    if list(strides or ()) != [height, width] or height != width or not plain:
        raise graph.refuse(f"{node}: kernel {shape}, strides {strides}; equal squares side by side are expected")
    return out, channels * height * width


READERS: dict[str, Callable[[Graph, Node], Weight | None]] = {
    "MatMul": _matmul,
    f"{MS}FusedMatMul": _matmul,
    "Gemm": _gemm,
    f"{MS}FusedGemm": _gemm,
    "MatMulInteger": _integer_matmul,
    f"{MS}MatMulIntegerToFloat": _matmul_to_float,
    f"{MS}DynamicQuantizeMatMul": _dynamic_matmul,
    f"{MS}MatMulNBits": _matmul_nbits,
    "Conv": _conv,
    "ConvInteger": _integer_conv,
}
"""How each kind of product holds its matrix."""
