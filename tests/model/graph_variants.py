"""The same graphs as other exporters and ONNX Runtime would write them. Each function changes one ONNX model in place.

The numbers a graph computes stay what they are, but for quantization. Knows nothing of pytest and of our import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it comes without types
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Model = onnx.ModelProto
Change = Callable[[Model], None]
MS = "com.microsoft"
LAST_WITH_AXES_AS_ATTRIBUTE = 17
"""Opset in which ReduceMean last takes its axes as an attribute."""
FIRST_WITH_NORM = 17
"""Opset of LayerNormalization."""
SMALLEST_HALF = 5.96e-8
"""Smaller numbers are lifted to it by ONNX Runtime's converter to float16."""
GELU_NODES = ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul")
"""How our export writes tanh-GELU: these nodes in a row, the last one its result."""


class Editing:
    """A model that is being rewritten: constants by name, and new nodes beside the old ones."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.count = 0
        self.taken = {name for node in model.graph.node for name in (*node.input, *node.output)}

    def array(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[name])

    def constant(self, array: NDArray[Any]) -> str:
        name = self.value()
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def value(self) -> str:
        """A new name."""
        while (name := f"value_{self.count}") in self.taken:
            self.count += 1
        self.taken.add(name)
        return name

    def replace(self, change: Callable[[onnx.NodeProto], list[onnx.NodeProto]]) -> None:
        """Give every node its successors."""
        nodes = [new for node in self.model.graph.node for new in change(node)]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        self.drop_unused()

    def drop_unused(self) -> None:
        used = {name for node in self.model.graph.node for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def weight_of(self, node: onnx.NodeProto) -> str:
        """The constant matrix of a MatMul, or an empty name."""
        is_layer = node.op_type == "MatMul" and node.input[1] in self.constants
        return node.input[1] if is_layer and self.array(node.input[1]).ndim == 2 else ""

    def bias_behind(self, value: str) -> tuple[onnx.NodeProto, str] | None:
        """The Add that puts a constant bias on a value, and the constant."""
        users = [node for node in self.model.graph.node if value in node.input]
        if len(users) == 1 and users[0].op_type == "Add":
            bias = next((name for name in users[0].input if name in self.constants), None)
            return (users[0], bias) if bias else None
        return None


def domain(model: Model) -> None:
    """Declare ONNX Runtime's own operators."""
    if MS not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(MS, 1))


def renamed(model: Model) -> None:
    """Every constant and every value inside gets a name that says nothing, and nodes come without one."""
    interface = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {"": ""}

    def new(name: str) -> str:
        return name if name in interface else names.setdefault(name, f"onnx::MatMul_{6037 - len(names)}")

    for tensor in model.graph.initializer:
        tensor.name = new(tensor.name)
    for node in model.graph.node:
        node.name = ""
        for names_of in (node.input, node.output):
            for index, name in enumerate(names_of):
                names_of[index] = new(name)


def constants_as_nodes(model: Model) -> None:
    """Constants by `Constant` nodes."""
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def gemm(model: Model) -> None:
    """Products and their biases become Gemm of a flattened value, with the weight upright."""
    edit = Editing(model)
    dropped: set[str] = set()

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.output[0] in dropped:
            return []
        weight, behind = edit.weight_of(node), edit.bias_behind(node.output[0])
        if not weight or behind is None:
            return [node]
        add, bias = behind
        dropped.add(add.output[0])
        matrix = edit.array(weight)
        flat, product, shape, rest, whole = (edit.value() for _ in range(5))
        upright = edit.constant(np.ascontiguousarray(matrix.T))
        minus_one, zero, width = (edit.constant(np.array([n], np.int64)) for n in (-1, 0, matrix.shape[1]))
        two = edit.constant(np.array([-1, matrix.shape[0]], np.int64))
        return [
            helper.make_node("Reshape", [node.input[0], two], [flat]),
            helper.make_node("Gemm", [flat, upright, bias], [product], transB=1),
            helper.make_node("Shape", [node.input[0]], [shape]),
            helper.make_node("Slice", [shape, zero, minus_one], [rest]),
            helper.make_node("Concat", [rest, width], [whole], axis=0),
            helper.make_node("Reshape", [product, whole], list(add.output)),
        ]

    edit.replace(change)


def transposed(model: Model) -> None:
    """Weights lie upright and are turned by a node."""
    edit = Editing(model)

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = edit.weight_of(node)
        if not weight:
            return [node]
        upright, turned = edit.constant(np.ascontiguousarray(edit.array(weight).T)), edit.value()
        node.input[1] = turned
        return [helper.make_node("Transpose", [upright], [turned], perm=[1, 0]), node]

    edit.replace(change)


def fused_matmul(model: Model) -> None:
    """Products by FusedMatMul, with half the weight, twice over, and upright."""
    domain(model)
    edit = Editing(model)

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = edit.weight_of(node)
        if not weight:
            return [node]
        half = edit.constant(np.ascontiguousarray(edit.array(weight).T) / np.float32(2))
        made = helper.make_node("FusedMatMul", [node.input[0], half], list(node.output), domain=MS, alpha=2.0, transB=1)
        return [made]

    edit.replace(change)


def matrix_first(model: Model) -> None:
    """Where a vector is multiplied, the upright matrix stands before it."""
    edit = Editing(model)
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    if len(dims) != 1 or len(dims[0]) != 1:
        return

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = edit.weight_of(node)
        if weight:
            vector = node.input[0]
            node.input[:] = [edit.constant(np.ascontiguousarray(edit.array(weight).T)), vector]
        return [node]

    edit.replace(change)


def split_by_constants(model: Model) -> None:
    """Weights in two halves that are joined, of a wider number that is narrowed."""
    edit = Editing(model)

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = edit.weight_of(node)
        if not weight:
            return [node]
        wide = edit.array(weight).astype(np.float64)
        halves = [edit.constant(part) for part in np.array_split(wide, 2, axis=1)]
        joined, narrow = edit.value(), edit.value()
        node.input[1] = narrow
        return [
            helper.make_node("Concat", halves, [joined], axis=-1),
            helper.make_node("Cast", [joined], [narrow], to=onnx.TensorProto.FLOAT),
            node,
        ]

    edit.replace(change)


def norm_apart(model: Model) -> None:
    """LayerNormalization as exporters before opset 17 write it."""
    edit = Editing(model)
    axes_as_input = opset_of(model) > LAST_WITH_AXES_AS_ATTRIBUTE

    def mean(x: str, out: str) -> onnx.NodeProto:
        if axes_as_input:
            return helper.make_node("ReduceMean", [x, edit.constant(np.array([-1], np.int64))], [out])
        return helper.make_node("ReduceMean", [x], [out], axes=[-1])

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type != "LayerNormalization":
            return [node]
        x, weight, bias = node.input
        eps = next(a.f for a in node.attribute if a.name == "epsilon")
        average, centred, squared, variance, safe, deviation, normal, scaled = (edit.value() for _ in range(8))
        two, small = (edit.constant(np.array(n, np.float32)) for n in (2.0, eps))
        return [
            mean(x, average),
            helper.make_node("Sub", [x, average], [centred]),
            helper.make_node("Pow", [centred, two], [squared]),
            mean(squared, variance),
            helper.make_node("Add", [variance, small], [safe]),
            helper.make_node("Sqrt", [safe], [deviation]),
            helper.make_node("Div", [centred, deviation], [normal]),
            helper.make_node("Mul", [normal, weight], [scaled]),
            helper.make_node("Add", [scaled, bias], list(node.output)),
        ]

    edit.replace(change)


def gelu_operator(model: Model) -> None:
    """GELU as the operator of opset 20."""
    set_opset(model, 20)
    nodes = list(model.graph.node)
    index = 0
    kept = []
    while index < len(nodes):
        group = nodes[index : index + len(GELU_NODES)]
        if tuple(node.op_type for node in group) == GELU_NODES:
            kept.append(helper.make_node("Gelu", [group[0].input[0]], [group[-1].output[0]], approximate="tanh"))
            index += len(GELU_NODES)
        else:
            kept.append(nodes[index])
            index += 1
    del model.graph.node[:]
    model.graph.node.extend(kept)
    Editing(model).drop_unused()


def exact_gelu(model: Model) -> None:
    """GELU by the error function instead of tanh."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]


def biases_fused(model: Model) -> None:
    """Sums, biases and norms in one operator, as ONNX Runtime's optimizer for transformers writes them."""
    domain(model)
    edit = Editing(model)
    fused: dict[str, onnx.NodeProto] = {}
    dropped: set[str] = set()
    nodes = list(model.graph.node)
    makers = {name: node for node in nodes for name in node.output}

    def biased(value: str) -> onnx.NodeProto | None:
        maker = makers.get(value)
        return maker if maker is not None and maker.op_type == "Add" and maker.input[1] in edit.constants else None

    for index, node in enumerate(nodes):
        total = makers.get(node.input[0])
        if node.op_type == "LayerNormalization" and total is not None and (add := biased(total.input[-1])) is not None:
            inputs = [total.input[0], add.input[0], node.input[1], node.input[2], add.input[1]]
            outputs = [node.output[0], "", "", total.output[0]]
            made = helper.make_node("SkipLayerNormalization", inputs, outputs, domain=MS, epsilon=1e-5)
            fused[node.output[0]] = made
            dropped |= {total.output[0], add.output[0]}
        group = nodes[index : index + len(GELU_NODES)]
        if tuple(each.op_type for each in group) == GELU_NODES and (add := biased(node.input[0])) is not None:
            fused[group[-1].output[0]] = helper.make_node("FastGelu", add.input, group[-1].output, domain=MS)
            dropped |= {name for each in (add, *group[:-1]) for name in each.output}

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        name = node.output[0]
        return [fused[name]] if name in fused else [] if name in dropped else [node]

    edit.replace(change)


def per_channel_scale(model: Model) -> None:
    """Weights of ones and less, multiplied by a scale a channel behind the product (a power of two: exact)."""
    edit = Editing(model)

    def change(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = edit.weight_of(node)
        if not weight or edit.bias_behind(node.output[0]) is None:
            return [node]
        matrix = edit.array(weight)
        scale = np.exp2(np.arange(matrix.shape[1]) % 5).astype(np.float32)
        product = edit.value()
        out = node.output[0]
        node.input[1], node.output[0] = edit.constant(matrix / scale), product
        return [node, helper.make_node("Mul", [product, edit.constant(scale)], [out])]

    edit.replace(change)


def opset_of(model: Model) -> int:
    version: int = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return version


def set_opset(model: Model, version: int) -> None:
    """Declare another opset; what our export writes means the same from 14 to 20, but for norms (`norm_apart`)."""
    next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")).version = version


def of_opset(version: int) -> Change:
    def change(model: Model) -> None:
        set_opset(model, version)
        if (
            version <= LAST_WITH_AXES_AS_ATTRIBUTE - 1 or version % 2 == 0
        ):  # from 17 on, one opset with norms, one without
            norm_apart(model)
        onnx.checker.check_model(model)

    return change


def optimized(path: Path, level: onnxruntime.GraphOptimizationLevel) -> None:
    """The graph as ONNX Runtime saves it after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    target = path.with_suffix(".optimized")
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    target.rename(path)


def nbits(bits: int, block: int, *, zeros: str, accuracy: int = 0) -> Change:
    """Weights in blocks of few bits; `zeros`: `none`, `packed` or `float`."""

    def change(model: Model) -> None:
        domain(model)
        edit = Editing(model)

        def quantize(node: onnx.NodeProto) -> list[onnx.NodeProto]:
            weight = edit.weight_of(node)
            if not weight:
                return [node]
            upright = edit.array(weight).T
            inputs = [edit.constant(array) for array in packed_blocks(upright, bits, block, zeros)]
            attributes = {"K": upright.shape[1], "N": upright.shape[0], "bits": bits, "block_size": block}
            attributes["accuracy_level"] = accuracy
            made = helper.make_node("MatMulNBits", [node.input[0], *inputs], list(node.output), domain=MS, **attributes)
            return [made]

        edit.replace(quantize)

    return change


def packed_blocks(matrix: NDArray[Any], bits: int, block: int, zeros: str) -> list[NDArray[Any]]:
    """(N, K) → packed numbers (N, blocks, bytes), scales and zero points, as MatMulNBits takes them."""
    levels, middle, scale = in_blocks(matrix, bits, block, zeros)
    arrays: list[NDArray[Any]] = [packed(levels.astype(np.uint8), bits), scale.reshape(-1)]
    if zeros == "packed":
        arrays.append(packed(middle.astype(np.uint8), bits).reshape(-1))
    elif zeros == "float":
        arrays.append(middle.reshape(-1))
    return arrays


def in_blocks(
    matrix: NDArray[Any], bits: int, block: int, zeros: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Levels (N, blocks, block), and the zero point and scale (N, blocks) of each block."""
    rows, columns = matrix.shape
    blocks = -(-columns // block)
    filled = np.zeros((rows, blocks * block), np.float32)
    filled[:, :columns] = matrix
    parts = filled.reshape(rows, blocks, block)
    most, half = (1 << bits) - 1, 1 << (bits - 1)
    if zeros == "none":
        scale = np.abs(parts).max(-1) / half
        middle = np.full_like(scale, half)
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scale = (high - low) / most
        middle = np.clip(np.rint(-low / np.where(scale, scale, 1)), 0, most)
    scale = np.where(scale, scale, 1).astype(np.float32)
    levels = np.clip(np.rint(parts / scale[..., None] + middle[..., None]), 0, most)
    return levels, middle, scale


def rounded(matrix: NDArray[Any], bits: int, block: int, zeros: str) -> NDArray[np.float32]:
    """What a matrix is worth in blocks."""
    levels, middle, scale = in_blocks(matrix, bits, block, zeros)
    values: NDArray[np.float32] = (levels - middle[..., None]) * scale[..., None]
    return values.reshape(len(matrix), -1)[:, : matrix.shape[1]]


def packed(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Small numbers along the last axis into bytes, the first in the lowest bits; a last byte is filled with 0."""
    each = 8 // bits
    short = -levels.shape[-1] % each
    whole = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(0, short)])
    apart = whole.reshape(*levels.shape[:-1], -1, each)
    total = np.zeros(apart.shape[:-1], np.uint8)
    for index in range(each):
        total |= apart[..., index] << np.uint8(bits * index)
    return total


def graphs_in(directory: Path) -> Iterator[Path]:
    yield from sorted(directory.glob("*.onnx"))


def rewrite(directory: Path, *changes: Change) -> None:
    """Apply changes to every graph in a directory."""
    for path in graphs_in(directory):
        model = onnx.load(path)
        for change in changes:
            change(model)
        onnx.save(model, path)


def in_float16(model: Model) -> None:
    """Everything in float16, weights and sums; integer products stay what they are, with casts around them."""
    from onnxruntime.transformers.float16 import (  # type: ignore[import-untyped]  # it comes without types
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    kept = [*DEFAULT_OP_BLOCK_LIST, "DynamicQuantizeLinear", "MatMulInteger"]
    inferred = not any(node.op_type in kept for node in model.graph.node)
    converted = convert_float_to_float16(
        model, min_positive_val=SMALLEST_HALF, disable_shape_infer=inferred, op_block_list=kept
    )
    model.CopyFrom(converted)
