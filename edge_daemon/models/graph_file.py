"""An ONNX graph that is written tensor by tensor: its weights are read when they are written, and never all held.

`onnx.ModelProto` would hold a whole graph twice, as message and as bytes. A protobuf message is its fields in a row,
each with its length before it, and the sizes of tensors are known from their shapes: so the small rest is serialized
by onnx and the weights follow as they come. It does not know what a graph computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_daemon import __version__

OPSET = 17
"""The first with LayerNormalization; the client's ONNX Runtime and every later one read it."""
IR_VERSION = 8
"""What belongs to opset 17 (ONNX, docs/Versioning.md)."""
FLOAT, HALF, INT32, INT64, UINT8 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
)
ITEM_BYTES: dict[int, int] = {FLOAT: 4, HALF: 2, UINT8: 1}
"""Of the types that weights are stored in."""
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
"""Field numbers of onnx.proto that are written by hand here."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Slot:
    """Name, shape and type of a weight that is read later."""

    name: str
    dims: tuple[int, ...]
    element: int
    """One of ITEM_BYTES."""

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return prod(self.dims) * ITEM_BYTES[self.element]

    @property
    def head(self) -> bytes:
        """The tensor's message up to its values."""
        tensor = onnx.TensorProto(name=self.name, dims=self.dims, data_type=self.element)
        head: bytes = tensor.SerializeToString()
        return head + _field_head(TENSOR_RAW_DATA, self.size)


@dataclass(frozen=True)
class Source:
    """Weights that are read together, such as a quantized matrix, its scale and its zero point."""

    slots: tuple[Slot, ...]
    read: Callable[[], tuple[Array, ...]]
    """Their values, in the order, shape and type of the slots."""


class GraphFile:
    """One graph: nodes and small constants at once, weights as promises."""

    def __init__(self, name: str) -> None:
        """Begin an empty graph."""
        self.name = name
        self._graph = onnx.GraphProto(name=name)
        self._sources: list[Source] = []
        self._names: set[str] = set()

    def input(self, name: str, element: int, dims: tuple[int | str, ...]) -> str:
        """Declare an input; a text is a dimension that may vary."""
        self._graph.input.append(onnx.helper.make_tensor_value_info(name, element, dims))
        return name

    def output(self, name: str, element: int, dims: tuple[int | str, ...]) -> None:
        """Declare an output, the value `name` of some node."""
        self._graph.output.append(onnx.helper.make_tensor_value_info(name, element, dims))

    def node(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and give the output's name, `name` if there is one."""
        return self.nodes(op, *inputs, names=(name or f"{op}_{len(self._graph.node)}",), **attributes)[0]

    def nodes(self, op: str, *inputs: str, names: tuple[str, ...], **attributes: Any) -> tuple[str, ...]:
        """Append a node with several outputs."""
        self._graph.node.append(onnx.helper.make_node(op, list(inputs), list(names), names[0], **attributes))
        return names

    def constant(self, name: str, values: Array) -> str:
        """A small constant; the same name means the same constant."""
        if name not in self._names:
            self._names.add(name)
            self._graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def weights(self, source: Source) -> tuple[str, ...]:
        """Weights to be read when the graph is written; their names."""
        self._sources.append(source)
        return tuple(slot.name for slot in source.slots)

    @property
    def size(self) -> int:
        """Bytes of the file, known before any weight is read."""
        graph = self._graph_size
        return len(self._model_head) + len(_field_head(MODEL_GRAPH, graph)) + graph

    @property
    def _graph_size(self) -> int:
        slots = [slot for source in self._sources for slot in source.slots]
        tensors = [len(slot.head) + slot.size for slot in slots]
        return int(self._graph.ByteSize()) + sum(len(_field_head(GRAPH_INITIALIZER, n)) + n for n in tensors)

    @property
    def _model_head(self) -> bytes:
        model = onnx.ModelProto(
            ir_version=IR_VERSION,
            producer_name="edge-daemon",
            producer_version=__version__,
            opset_import=[onnx.helper.make_opsetid("", OPSET)],
        )
        head: bytes = model.SerializeToString()
        return head

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file, piece by piece. Raises ValueError when a weight is not what its slot says."""
        yield self._model_head + _field_head(MODEL_GRAPH, self._graph_size)
        yield self._graph.SerializeToString()
        for source in self._sources:
            for slot, values in zip(source.slots, source.read(), strict=True):
                stored = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(slot.element))
                if values.shape != slot.dims or values.dtype != stored:
                    raise ValueError(f"{slot} was given {values.dtype} {values.shape}")
                yield _field_head(GRAPH_INITIALIZER, len(slot.head) + slot.size) + slot.head
                yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _field_head(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited protobuf field (protobuf.dev, Encoding)."""
    return bytes([number << 3 | 2]) + _varint(size)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
