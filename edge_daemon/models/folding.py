"""A view of one ONNX graph: its nodes in order of dependence, and its constants, folded and dequantized on demand.

Whatever can be computed without the graph's inputs is a constant here, however an exporter wrote it: initializer,
`Constant` node, cast, transposed, sliced, dequantized. Nothing large is kept: a constant is computed when it is
asked for. Names of initializers and nodes carry no meaning. It does not know what the graph is for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf comes without types
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from edge_daemon.errors import ModelError

Array = NDArray[Any]

FOLDED_OPS = frozenset(
    re.findall(
        r"\w+",
        "Abs Add And Cast CastLike Ceil Clip Concat Constant ConstantOfShape Cos Div Equal Exp Expand Flatten Floor "
        "Gather Greater GreaterOrEqual Identity Less LessOrEqual MatMul Max Min Mul Neg Not Or Pow Range Reciprocal "
        "ReduceProd ReduceSum Reshape ScatterND Shape Sin Slice Split Sqrt Squeeze Sub Tile Transpose Trilu "
        "Unsqueeze Where",
    )
)
"""Standard operators that are computed here when all their inputs are constant."""
DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft.DequantizeLinear"})
MOST_ELEMENTS = 1 << 28
"""Of one constant; the largest of the published models is the 2B's head, 51200 × 2048."""
KEPT_ELEMENTS = 1 << 14
"""Constants up to this size are computed once."""
LAST_RESORT = "the moonfile itself can still be run: edge-daemon model import FILE --engine onnx"


def refusal(graph: str, what: str) -> ModelError:
    """The error for a graph that is not understood: which, why, and the way that always works."""
    return ModelError(f"{graph}: {what}; {LAST_RESORT}")


@dataclass(frozen=True, eq=False)
class Node:
    """One node. Operators outside the standard domain are named with it: `com.microsoft.FusedMatMul`."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(repr=False)
    proto: onnx.NodeProto = field(repr=False)

    def __str__(self) -> str:
        return f"{self.op} → {self.outputs[0]}"

    def input(self, index: int) -> str:
        """The name of an input, empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


class Graph:
    """One graph, read from a file."""

    def __init__(self, path: Path) -> None:
        """Read and order the graph. Raises ModelError when it is no complete ONNX graph."""
        self.name = path.name
        self.model = _read(path)
        graph = self.model.graph
        self._opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._kept: dict[str, Array] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._folded: dict[str, Node] = {}
        self.inputs = [value.name for value in graph.input if value.name not in self._stored]
        self.outputs = [value.name for value in graph.output]
        nodes = list(self._in_order([self._node(proto) for proto in graph.node]))
        for node in nodes:
            if self._foldable(node):
                self._folded |= dict.fromkeys(node.outputs, node)
        self.nodes = [node for node in nodes if node.outputs[0] not in self._folded]
        self.producer = {output: node for node in self.nodes for output in node.outputs if output}
        self._users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)

    def refuse(self, what: str) -> ModelError:
        """The error for this graph."""
        return refusal(self.name, what)

    def users(self, value: str) -> list[Node]:
        """Nodes that take a value; constants that are folded away do not count."""
        return self._users.get(value, [])

    def is_constant(self, value: str) -> bool:
        """Whether the value needs no input of the graph."""
        return value in self._stored or value in self._folded

    def constant(self, value: str) -> Array:
        """A constant's numbers. Raises ModelError when they cannot be computed or are too many."""
        if value in self._kept:
            return self._kept[value]
        if value in self._stored:
            array = self._stored_array(value)
        else:
            node = self._folded[value]
            array = self._computed(node)[node.outputs.index(value)]
        if array.size > MOST_ELEMENTS:
            raise self.refuse(f"the constant {value} has {array.size} numbers; {MOST_ELEMENTS} at most are expected")
        if array.size <= KEPT_ELEMENTS:
            self._kept[value] = array
        return array

    def shape(self, value: str) -> tuple[int, ...]:
        """A constant's shape."""
        if value not in self._shapes:
            stored = self._stored.get(value)
            self._shapes[value] = tuple(stored.dims) if stored is not None else self.constant(value).shape
        return self._shapes[value]

    def number(self, value: str) -> float | None:
        """A constant of one number; None for anything else."""
        if not self.is_constant(value):
            return None
        array = self.constant(value)
        return float(array.reshape(())) if array.size == 1 and array.dtype.kind in "fiu" else None

    def cut(self, outputs: list[str], given: Mapping[str, int] | None = None) -> onnx.ModelProto:
        """A model of what these values need, and nothing else.

        Its inputs are the graph's that are needed, and the values inside that are `given`: name → ONNX type.
        """
        graph, given = self.model.graph, given or {}
        makers = {output: proto for proto in graph.node for output in proto.output}
        needed, waiting = set[str](), list(outputs)
        while waiting:
            name = waiting.pop()
            if name and name not in needed:
                needed.add(name)
                waiting += makers[name].input if name in makers and name not in given else []
        part = onnx.GraphProto(name=graph.name)
        part.node.extend(proto for proto in graph.node if (needed - given.keys()).intersection(proto.output))
        part.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
        part.input.extend(value for value in graph.input if value.name in needed)
        part.input.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in given.items())
        part.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import, graph=part)

    def _node(self, proto: onnx.NodeProto) -> Node:
        attributes = {}
        for attribute in proto.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise self.refuse(
                    f"{proto.op_type} → {proto.output[0]} branches; a graph without control flow is right"
                )
            attributes[attribute.name] = onnx.helper.get_attribute_value(attribute)
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
        return Node(domain + proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto)

    def _in_order(self, nodes: list[Node]) -> Iterator[Node]:
        """The nodes so that each comes behind those it needs, otherwise as they are."""
        known = {"", *self.inputs, *self._stored}
        waiting = nodes
        while waiting:
            left = []
            for node in waiting:
                if known.issuperset(node.inputs):
                    known.update(node.outputs)
                    yield node
                else:
                    left.append(node)
            if len(left) == len(waiting):
                lost = sorted(set(left[0].inputs) - known)
                raise self.refuse(f"{left[0]} takes {', '.join(lost)}, which nothing makes")
            waiting = left
        absent = sorted(set(self.outputs) - known)
        if absent:
            raise self.refuse(f"nothing makes its output {', '.join(absent)}")

    def _foldable(self, node: Node) -> bool:
        known = node.op in FOLDED_OPS or node.op in DEQUANTIZE
        return known and all(not name or self.is_constant(name) for name in node.inputs)

    def _stored_array(self, name: str) -> Array:
        tensor = self._stored[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise self.refuse(f"the numbers of {name} lie in another file, which a moonfile cannot hold")
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise self.refuse(f"the constant {name} {tuple(tensor.dims)} cannot be read: {error}") from error

    def _computed(self, node: Node) -> list[Array]:
        """The outputs of a folded node."""
        inputs = [self.constant(name) if name else None for name in node.inputs]
        if node.op in DEQUANTIZE:
            return [self._dequantized(node, inputs)]
        given = {name: array for name, array in zip(node.inputs, inputs, strict=True) if name and array is not None}
        alone = onnx.GraphProto(name="alone")
        alone.node.append(node.proto)
        alone.input.extend(onnx.ValueInfoProto(name=name) for name in given)
        alone.output.extend(onnx.ValueInfoProto(name=name) for name in node.outputs)
        try:
            if _result_size(node, inputs) > MOST_ELEMENTS:
                raise ValueError(f"more than {MOST_ELEMENTS} numbers of constants")
            results = ReferenceEvaluator(alone, opsets=self._opsets).run(None, given)
        except Exception as error:  # whatever numpy or the reference says to a damaged graph
            raise self.refuse(f"{node} cannot be computed: {type(error).__name__}: {error}") from error
        return [np.asarray(result) for result in results]

    def _dequantized(self, node: Node, inputs: list[Array | None]) -> Array:
        quantized, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        if quantized is None or scale is None:
            raise self.refuse(f"{node} has no scale")
        axis, block = int(node.attributes.get("axis", 1)), int(node.attributes.get("block_size", 0))
        try:
            return dequantized(quantized, scale, zero, axis, block)
        except (ValueError, IndexError) as error:
            raise self.refuse(f"{node}: its scale {scale.shape} does not fit {quantized.shape}: {error}") from error


def dequantized(quantized: Array, scale: Array, zero: Array | None, axis: int, block: int = 0) -> NDArray[np.float32]:
    """(q − zero point) · scale in float32: per tensor, per channel of `axis`, or per `block` numbers along it.

    ONNX, DequantizeLinear. Integers to float32 are exact, so each number is rounded once. Raises ValueError or
    IndexError for a scale that does not fit.
    """

    def spread(values: Array) -> Array:
        if values.size == 1:
            return values.reshape(())
        if block:
            return np.repeat(values, block, axis).take(range(quantized.shape[axis]), axis)
        shape = [1] * quantized.ndim
        shape[axis] = -1
        return values.reshape(shape)

    result = quantized.astype(np.float32)
    if zero is not None and zero.size:
        result -= spread(zero).astype(np.float32)
    result *= spread(scale).astype(np.float32)
    return result


def _result_size(node: Node, inputs: list[Array | None]) -> int:
    """How many numbers a node will make at the most, before it makes them."""
    arrays = [array for array in inputs if array is not None]
    if node.op in ("ConstantOfShape", "Tile", "Expand"):
        factor = math.prod(max(1, int(n)) for n in arrays[-1].reshape(-1))
        return factor if node.op == "ConstantOfShape" else factor * arrays[0].size
    if node.op == "Range":
        start, limit, step = (float(array.reshape(())) for array in arrays)
        return int(abs((limit - start) / (step or 1.0))) + 1
    if node.op == "MatMul":
        return math.prod(arrays[0].shape[:-1]) * math.prod(arrays[1].shape[-1:] if arrays[1].ndim > 1 else ())
    if node.op == "Gather":
        axis = int(node.attributes.get("axis", 0)) % arrays[0].ndim
        return arrays[1].size * math.prod(arrays[0].shape[:axis] + arrays[0].shape[axis + 1 :])
    if node.op == "Concat":
        return sum(array.size for array in arrays)
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) if arrays else 0
    except ValueError:  # no elementwise operator: it makes no more than it takes
        return max(array.size for array in arrays)


def _read(path: Path) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:  # mapped: the graph's bytes are not held beside the message that is made of them
        with (
            path.open("rb") as file,
            mmap(file.fileno(), 0, access=ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            model.ParseFromString(content)
    except (OSError, ValueError, DecodeError) as error:
        raise refusal(path.name, f"no ONNX graph: {error}") from error
    if not model.graph.node:
        raise refusal(path.name, "no ONNX graph: it has no nodes")
    return inline_local_functions(model) if model.functions else model
