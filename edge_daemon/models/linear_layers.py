"""Recognises the linear layers of an ONNX graph in all the forms that exporters and ONNX Runtime write them.

A layer is a product with a constant matrix (`matrices`) and what follows it: the scale of an integer product, and
the bias. It does not know what a layer is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edge_daemon.models.folding import Array, Graph, Node
from edge_daemon.models.matrices import MS, READERS, UNARY, Floats, Weight

FUSED_BIAS = {f"{MS}BiasGelu": 1, f"{MS}FastGelu": 1, f"{MS}SkipLayerNormalization": 4, f"{MS}MultiHeadAttention": 3}
"""Operators that add a constant bias to the product that they take, and the input that it is."""


@dataclass(frozen=True)
class Layer:
    """A linear layer: y = x · weightᵀ + bias."""

    rows: int
    columns: int
    source: str
    weight: Callable[[], Floats] = field(repr=False)
    """(out, in)."""
    bias: Floats | None = field(repr=False)
    """(out,); None where the graph adds none."""
    bias_follows: bool
    """Whether the bias is added by what takes `output`, such as a fused GELU, and not before."""
    output: str
    """The value behind the bias, or behind the product."""
    absorbed: tuple[str, ...] = field(repr=False)
    """Values between the product and `output`, both included."""
    scales: frozenset[str] = field(repr=False)
    """Values that the scale of an integer product is computed by."""


def layer_of(graph: Graph, node: Node) -> Layer | None:
    """The layer that begins with this node; None when the node is no product with a constant matrix.

    Raises ModelError for a product that is recognised but has a form that is not understood.
    """
    reader = READERS.get(node.op)
    weight = reader(graph, node) if reader else None
    if weight is None:
        return None
    tail = _Tail(graph, node, weight)
    tail.follow()
    scale = tail.scale
    return Layer(
        weight.rows,
        weight.columns,
        weight.source,
        lambda: weight.read(scale),
        tail.bias,
        tail.bias_follows,
        tail.output,
        tuple(tail.absorbed),
        frozenset(tail.scales),
    )


class _Tail:
    """What follows a product: its scale and its bias."""

    def __init__(self, graph: Graph, node: Node, weight: Weight) -> None:
        self.graph, self.node, self.weight = graph, node, weight
        self.output = node.outputs[0]
        self.absorbed = [self.output]
        self.scales: set[str] = set()
        self.scale: Array | None = None
        self.bias: Floats | None = None
        self.bias_follows = False
        self._factors = 0 if weight.activation_scale else 1
        """How often the scale of the activations has been seen; it must be once."""

    def follow(self) -> None:
        """Walk from the product to its bias."""
        if self.weight.bias is not None:
            self._take(*self.weight.bias)
            return
        value, passed, pending = self.output, list[str](), list[str]()  # pending: factors that count if a bias follows
        while value not in self.graph.outputs and len(users := self.graph.users(value)) == 1:
            node = users[0]
            passed += node.outputs[:1]
            if node.op == "Mul" and self._scaled(node, value):
                pending = []
                self._pass(passed)
            elif node.op == "Mul" and (beside := self._constant_beside(node, value)):
                pending.append(beside)
            elif node.op == "Add" and self._bias_beside(node, value):
                self._multiply(pending)
                self._pass(passed)
                break
            elif node.op not in UNARY or node.inputs[0] != value:
                self._fused_bias(node)
                break
            value = node.outputs[0]
        if self._factors != 1:
            raise self.graph.refuse(f"{self.node} is an integer product whose scale is not found behind it")

    def _pass(self, values: list[str]) -> None:
        self.absorbed += [value for value in values if value not in self.absorbed]
        self.output = values[-1]

    def _take(self, name: str, factor: float = 1.0) -> None:
        bias = self.graph.constant(name).astype(np.float32).reshape(-1) * np.float32(factor)
        if bias.size not in (1, self.weight.rows):
            raise self.graph.refuse(f"{self.node} has a bias of {bias.size} numbers for {self.weight.rows} outputs")
        self.bias = np.ascontiguousarray(np.broadcast_to(bias, (self.weight.rows,)))

    def _bias_beside(self, node: Node, value: str) -> bool:
        name = self._constant_beside(node, value)
        if name and math.prod(self.graph.shape(name)) == self.weight.rows:
            self._take(name)
            return True
        return False

    def _fused_bias(self, node: Node) -> None:
        name = node.input(FUSED_BIAS[node.op]) if node.op in FUSED_BIAS else ""
        if name and self.graph.is_constant(name) and math.prod(self.graph.shape(name)) == self.weight.rows:
            self._take(name)
            self.bias_follows = True

    def _constant_beside(self, node: Node, value: str) -> str:
        """The constant that a node combines with `value`, or an empty name."""
        others = [name for name in node.inputs if name != value]
        return others[0] if len(others) == 1 and self.graph.is_constant(others[0]) else ""

    def _multiply(self, names: list[str]) -> None:
        for name in names:
            array = self.graph.constant(name).astype(np.float32)
            self.scale = array if self.scale is None else self.scale * array

    def _scaled(self, node: Node, value: str) -> bool:
        """Whether the node multiplies an integer product with a scale that belongs to it."""
        if not self.weight.activation_scale:
            return False
        others = [name for name in node.inputs if name != value]
        found = self._scale_parts(others[0]) if len(others) == 1 else None
        if found is None:
            return False
        activations, constants = found
        self._factors += activations
        self._multiply(constants)
        return True

    def _scale_parts(self, value: str) -> tuple[int, list[str]] | None:
        """What a scale is the product of: how often that of the activations, and which constants."""
        if self.graph.is_constant(value):
            return 0, [value]
        if value == self.weight.activation_scale:
            return 1, []
        node = self.graph.producer.get(value)
        if node is None or (node.op != "Mul" and node.op not in UNARY):
            return None
        parts = [self._scale_parts(name) for name in (node.inputs if node.op == "Mul" else node.inputs[:1])]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        self.scales.add(value)
        return sum(count for count, _ in found), [name for _, names in found for name in names]
