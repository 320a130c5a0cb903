"""A graph that quantizes its activations as it runs, rewritten so that it does not: for the proof alone.

What is left is what the graph's weights say: `DynamicQuantizeLinear` hands its input on with a scale of 1, and every
integer product becomes one of floats, with `(q − zero_point) · scale` for its matrix. Everything else stays as it is.
The matrices stay as small as they are in the file, unless whoever opens the graph computes them beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import helper

FLOAT = onnx.TensorProto.FLOAT
FLOAT_ACCURACY = 1
"""`accuracy_level` of a MatMulNBits up to which it computes in float32 (0 leaves it open and means the same)."""
Nodes = Iterator[onnx.NodeProto]


def unround(graph: Path, out: Path) -> bool:
    """Write the graph without rounding to `out`; whether there was any to leave out (if not, nothing is written)."""
    model = onnx.load(graph, load_external_data=False)
    if not any(map(_rounds, model.graph.node)):
        return False
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        rewrite = REWRITES.get(node.op_type)
        nodes += rewrite(node) if rewrite else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # they tell types that are no longer true
    onnx.save(model, out)
    return True


def _rounds(node: onnx.NodeProto) -> bool:
    if node.op_type == "MatMulNBits":
        return any(a.name == "accuracy_level" and a.i > FLOAT_ACCURACY for a in node.attribute)
    return node.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")


def _quantize(node: onnx.NodeProto) -> Nodes:
    """X → x, 1, 0."""
    rounded, scale, zero = node.output
    yield helper.make_node("Cast", [node.input[0]], [rounded], to=FLOAT)
    yield _number(scale, 1.0)
    yield _number(zero, 0.0)


def _integer_product(node: onnx.NodeProto) -> Nodes:
    """MatMulInteger(a, b, a_zero, b_zero) and ConvInteger, with floats for integers."""
    inputs = [*node.input, "", ""][:4]
    result = node.output[0]
    yield from _without_zero(inputs[1], inputs[3], f"{result}_matrix")
    if node.op_type == "MatMulInteger":
        yield helper.make_node("MatMul", [inputs[0], f"{result}_matrix"], [result])
        return
    product = helper.make_node("Conv", [inputs[0], f"{result}_matrix"], [result])
    product.attribute.extend(node.attribute)
    yield product


def _product_to_float(node: onnx.NodeProto) -> Nodes:
    """MatMulIntegerToFloat(a, b, a_scale, b_scale, a_zero, b_zero, bias); a_scale is 1 by now."""
    a, b, _, scale, _, zero, bias = [*node.input, "", "", ""][:7]
    yield from _scaled_product(node.output[0], a, b, scale, zero, bias)


def _quantizing_product(node: onnx.NodeProto) -> Nodes:
    """DynamicQuantizeMatMul(a, b, b_scale, b_zero, bias)."""
    a, b, scale, zero, bias = [*node.input, "", ""][:5]
    yield from _scaled_product(node.output[0], a, b, scale, zero, bias)


def _scaled_product(result: str, a: str, b: str, scale: str, zero: str, bias: str) -> Nodes:
    yield from _without_zero(b, zero, f"{result}_levels")
    yield helper.make_node("Mul", [f"{result}_levels", scale], [f"{result}_matrix"])
    product = f"{result}_product" if bias else result
    yield helper.make_node("MatMul", [a, f"{result}_matrix"], [product])
    if bias:
        yield helper.make_node("Add", [product, bias], [result])


def _without_zero(matrix: str, zero: str, result: str) -> Nodes:
    """(q − zero_point) in float32, by columns where there is a zero point for each."""
    levels = f"{result}_floats" if zero else result
    yield helper.make_node("Cast", [matrix], [levels], to=FLOAT)
    if zero:
        yield helper.make_node("Cast", [zero], [f"{result}_zero"], to=FLOAT)
        yield helper.make_node("Sub", [levels, f"{result}_zero"], [result])


def _blocks(node: onnx.NodeProto) -> Nodes:
    """MatMulNBits, computed in floats."""
    exact = onnx.NodeProto()
    exact.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
    del exact.attribute[:]
    exact.attribute.extend(kept)
    yield exact


def _number(name: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, FLOAT, [], [value]))


REWRITES: dict[str, Callable[[onnx.NodeProto], Nodes]] = {
    "DynamicQuantizeLinear": _quantize,
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_product,
    "MatMulIntegerToFloat": _product_to_float,
    "DynamicQuantizeMatMul": _quantizing_product,
    "MatMulNBits": _blocks,
}
