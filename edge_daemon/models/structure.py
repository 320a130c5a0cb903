"""What an ONNX graph consists of, and what feeds what: linear layers, norms, tables, activations, attention.

Everything between these elements (casts, reshapes, residual sums, masks …) only says from which elements a value
comes. So the order and the places of layers are read off the flow of values, never off names. Constants that find no
place in it are kept as loose: whoever knows the model must explain or refuse them. It does not know which model the
graph is part of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edge_daemon.models.folding import Array, Graph, Node
from edge_daemon.models.layer_norms import LayerNorm, norm_of
from edge_daemon.models.linear_layers import Layer, layer_of
from edge_daemon.models.matrices import MS, PRODUCTS, Floats, unpacked

Kind = Literal["input", "linear", "norm", "activation", "attention", "table"]
ACTIVATIONS = frozenset({"Tanh", "Erf", "Gelu", f"{MS}Gelu", f"{MS}FastGelu", f"{MS}BiasGelu"})
"""GELU, or what is at its heart when it is taken apart."""
FUSED_ATTENTION = frozenset({"Attention", f"{MS}MultiHeadAttention", f"{MS}GroupQueryAttention"})
MAY_TAKE_CONSTANTS = frozenset(
    re.findall(
        r"[\w.]+",
        "Add Concat CumSum DequantizeLinear Div DynamicQuantizeLinear Equal Expand Gather GatherND Greater "
        "GreaterOrEqual Less LessOrEqual Max Min Mul Pad Pow QuantizeLinear ReduceMax ReduceMean ReduceSum Reshape "
        "RotaryEmbedding ScatterND Slice Split Squeeze Sub Tile Unsqueeze Where com.microsoft.BiasSoftmax "
        "com.microsoft.RotaryEmbedding",
    )
)
"""Operators between the elements whose constants are no weights: shapes, tables of positions, masks, or numbers that
are noted as loose. An operator that is not known may stand there only if it takes no constant of many numbers."""
CUTS = frozenset({"Shape", "Size"})
"""What comes out no longer comes from what went in."""
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


@dataclass(frozen=True, eq=False)
class Element:
    """One element of a graph."""

    kind: Kind
    node: Node | None
    """Where it begins; None for an input of the graph."""
    origin: frozenset[Element] = field(repr=False)
    """The nearest elements that feed it."""
    output: str
    layer: Layer | None = field(default=None, repr=False)
    norm: LayerNorm | None = field(default=None, repr=False)
    table: Table | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.node if self.node else self.output}"


@dataclass(frozen=True)
class Table:
    """An embedding table."""

    shape: tuple[int, int]
    read: Callable[[], Floats] = field(repr=False)


@dataclass(frozen=True)
class Loose:
    """A constant of several numbers that takes part in arithmetic and belongs to no element."""

    node: Node
    constant: str
    shape: tuple[int, ...]
    origin: frozenset[Element]
    """The elements that feed the other operand."""

    def __str__(self) -> str:
        return f"{self.node} with the constant {self.constant} {self.shape}"


class Structure:
    """The elements of one graph."""

    def __init__(self, graph: Graph) -> None:
        """Take the graph apart. Raises ModelError for an operator that is not known."""
        self.graph = graph
        self.elements: list[Element] = []
        """In order of dependence."""
        self.loose: list[Loose] = []
        self._origins: dict[str, frozenset[Element]] = {}
        self._scales: set[str] = set()
        for name in graph.inputs:
            self._origins[name] = frozenset({self._add(Element("input", None, frozenset(), name))})
        for node in graph.nodes:
            if node.outputs[0] not in self._origins:
                self._visit(node)
        self.loose = [loose for loose in self.loose if loose.node.outputs[0] not in self._scales]
        self.users: dict[Element, list[Element]] = {element: [] for element in self.elements}
        for element in self.elements:
            for source in element.origin:
                self.users[source].append(element)

    def origin(self, value: str) -> frozenset[Element]:
        """The nearest elements that a value comes from."""
        return self._origins.get(value, frozenset())

    def of_kind(self, kind: Kind) -> list[Element]:
        """All elements of a kind, in order of dependence."""
        return [element for element in self.elements if element.kind == kind]

    def _add(self, element: Element) -> Element:
        self.elements.append(element)
        return element

    def _from(self, *values: str) -> frozenset[Element]:
        return frozenset().union(*(self.origin(value) for value in values))

    def _visit(self, node: Node) -> None:
        origin = frozenset() if node.op in CUTS else self._from(*node.inputs)
        if not origin:  # positions, masks, shapes: made of no activations
            self._set(node.outputs, origin)
        elif (norm := norm_of(self.graph, node)) is not None:
            self._norm(node, norm)
        elif node.op == f"{MS}Attention" or node.op == f"{MS}QAttention":
            raise self.graph.refuse(f"{node} contains a layer; separate layers are expected")
        elif not self._linear(node):
            self._other(node, origin)

    def _set(self, values: tuple[str, ...], origin: frozenset[Element]) -> None:
        self._origins |= dict.fromkeys((value for value in values if value), origin)

    def _norm(self, node: Node, norm: LayerNorm) -> None:
        element = self._add(Element("norm", node, self._from(*norm.sources), norm.output, norm=norm))
        self._set(norm.absorbed, frozenset({element}))
        self._set(norm.sums, self._from(*norm.sources))
        for source in norm.sources:
            if self.graph.is_constant(source):
                others = self._from(*norm.sources)
                self.loose.append(Loose(node, source, self.graph.shape(source), others))

    def _linear(self, node: Node) -> bool:
        layer = layer_of(self.graph, node)
        if layer is None or not self.origin(layer.source):
            return False
        element = self._add(Element("linear", node, self.origin(layer.source), layer.output, layer=layer))
        self._set(layer.absorbed, frozenset({element}))
        self._scales |= layer.scales
        return True

    def _other(self, node: Node, origin: frozenset[Element]) -> None:
        """Everything that has no matrix."""
        table = self._table(node)
        if table is not None:
            self._element("table", node, origin, table)
        elif node.op in ACTIVATIONS:
            self._element("activation", node, origin)
        elif node.op in FUSED_ATTENTION:
            self._element("attention", node, origin)
        elif node.op in PRODUCTS:
            mixes = all(self.origin(name) for name in node.inputs[:2])
            if mixes:
                self._element("attention", node, origin)
            else:
                self._set(node.outputs, origin)
        elif node.op in MAY_TAKE_CONSTANTS or not (weights := self._weights(node)):
            self._set(node.outputs, origin)
            self._note_loose(node, origin)
        else:
            raise self.graph.refuse(f"{node} takes the constant {weights} and is not expected in this model")

    def _element(self, kind: Kind, node: Node, origin: frozenset[Element], table: Table | None = None) -> None:
        element = self._add(Element(kind, node, origin, node.outputs[0], table=table))
        self._set(node.outputs, frozenset({element}))

    def _weights(self, node: Node) -> str:
        """A constant of many real numbers that a node takes, or an empty name."""
        for name in node.inputs:
            several = self.graph.is_constant(name) and math.prod(self.graph.shape(name)) > 1
            if several and self.graph.constant(name).dtype.kind not in "iub":
                return name
        return ""

    def _note_loose(self, node: Node, origin: frozenset[Element]) -> None:
        if node.op in ARITHMETIC:
            for name in node.inputs:
                if self.graph.is_constant(name) and math.prod(shape := self.graph.shape(name)) > 1:
                    self.loose.append(Loose(node, name, shape, origin))

    def _table(self, node: Node) -> Table | None:
        """Gather of rows of a constant table, quantized or not."""
        data = node.inputs[0] if node.inputs else ""
        if node.op not in ("Gather", f"{MS}GatherBlockQuantized") or not self.graph.is_constant(data):
            return None
        if node.op == "Gather":
            return self._plain_table(node, data)
        attributes = node.attributes
        bits, block = int(attributes.get("bits", 4)), int(attributes.get("block_size", 128))
        packed = self.graph.shape(data)
        if attributes.get("gather_axis", 0) or attributes.get("quantize_axis", 1) % len(packed) != 1:
            raise self.graph.refuse(f"{node}: rows of a table with blocks along them are expected")
        if len(packed) != 2 or self.graph.constant(data).dtype != np.uint8:
            raise self.graph.refuse(f"{node}: a table {packed} of packed bytes is expected")
        shape = packed[0], packed[1] * 8 // bits

        def read() -> Floats:
            zeros = self.graph.constant(node.inputs[3]) if node.input(3) else None
            return unpacked(self.graph.constant(data), self.graph.constant(node.inputs[2]), zeros, shape, bits, block)

        return Table(shape, read)

    def _plain_table(self, node: Node, data: str) -> Table | None:
        shape = self.graph.shape(data)
        if len(shape) != 2 or node.attributes.get("axis", 0) % 2:
            return None
        users = self.graph.users(node.outputs[0])
        scaled = users[0] if len(users) == 1 and users[0].op in ("DequantizeLinear", f"{MS}DequantizeLinear") else None

        def read() -> Floats:
            values: Array = self.graph.constant(data)
            if scaled is None:
                return values.astype(np.float32)
            scale = self.graph.number(scaled.inputs[1])
            zero = self.graph.number(scaled.inputs[2]) if scaled.input(2) else 0.0
            if scale is None or zero is None:
                raise self.graph.refuse(f"{scaled}: one scale for the whole table is expected")
            return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)

        return Table((shape[0], shape[1]), read)
