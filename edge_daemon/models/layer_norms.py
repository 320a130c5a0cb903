"""Recognises layer normalization in an ONNX graph: as one operator, fused with an addition, or taken apart.

(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias over the last axis (Ba et al., arXiv 1607.06450).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edge_daemon.models.folding import Graph, Node
from edge_daemon.models.matrices import MS, Floats

SKIP = f"{MS}SkipLayerNormalization"
SKIP_EPS = 1e-12
"""What ONNX Runtime takes when the attribute is missing (ContribOperators.md)."""
EPS = 1e-5
"""Of all published models, and of ONNX where the attribute is missing."""
EPS_TOLERANCE = 0.01
"""1e-5 in float16 is 1.0014e-5."""


@dataclass(frozen=True)
class LayerNorm:
    """One layer normalization."""

    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    sources: tuple[str, ...]
    """What is normalized; of several values their sum."""
    output: str
    absorbed: tuple[str, ...]
    """Values that are inside or the output."""
    sums: tuple[str, ...] = ()
    """Further outputs: the sum of the sources itself."""


def norm_of(graph: Graph, node: Node) -> LayerNorm | None:
    """The normalization that this node is, or divides in; None when it is none.

    Raises ModelError for one with another epsilon, or whose weight and bias are not found.
    """
    if node.op == "LayerNormalization":
        _check_eps(graph, node, float(node.attributes.get("epsilon", EPS)))
        weight = _vector(graph, node, node.inputs[1])
        bias = _vector(graph, node, node.inputs[2]) if node.input(2) else np.zeros_like(weight)
        return LayerNorm(weight, bias, node.inputs[:1], node.outputs[0], node.outputs)
    if node.op == SKIP:
        _check_eps(graph, node, float(node.attributes.get("epsilon", SKIP_EPS)))
        weight = _vector(graph, node, node.inputs[2])
        bias = _vector(graph, node, node.inputs[3]) if node.input(3) else np.zeros_like(weight)
        return LayerNorm(weight, bias, node.inputs[:2], node.outputs[0], node.outputs[:3], node.outputs[3:])
    return _taken_apart(graph, node)


def _taken_apart(graph: Graph, node: Node) -> LayerNorm | None:
    """Sub, Pow, ReduceMean, Add, Sqrt and this division; then Mul and Add."""
    if node.op not in ("Div", "Mul"):
        return None
    for centred, other in (node.inputs[:2], node.inputs[1::-1]):
        deviation = _deviation(graph, other, reciprocal=node.op == "Mul")
        source = _centred(graph, centred)
        if deviation is not None and source is not None and _square_of(graph, deviation[0]) == source:
            _check_eps(graph, node, deviation[1])
            return _with_vectors(graph, node, source)
    return None


def _behind_casts(graph: Graph, value: str) -> Node | None:
    """The node that makes a value, casts left out."""
    node = graph.producer.get(value)
    while node is not None and node.op in ("Cast", "Identity"):
        node = graph.producer.get(node.inputs[0])
    return node


def _uncast(graph: Graph, value: str) -> str:
    """The value itself, before casts."""
    while (node := graph.producer.get(value)) is not None and node.op in ("Cast", "Identity"):
        value = node.inputs[0]
    return value


def _centred(graph: Graph, value: str) -> str | None:
    """X of x - mean(x)."""
    node = _behind_casts(graph, value)
    if node is None or node.op != "Sub":
        return None
    mean = _behind_casts(graph, node.inputs[1])
    source = _uncast(graph, node.inputs[0])
    if mean is None or mean.op != "ReduceMean" or _uncast(graph, mean.inputs[0]) != source:
        return None
    return source


def _deviation(graph: Graph, value: str, reciprocal: bool) -> tuple[str, float] | None:
    """(mean of squares, eps) of sqrt(mean of squares + eps), or of one divided by it."""
    node = _behind_casts(graph, value)
    if reciprocal and node is not None and node.op == "Reciprocal":
        node, reciprocal = _behind_casts(graph, node.inputs[0]), False
    elif reciprocal and node is not None and node.op == "Div" and graph.number(node.inputs[0]) == 1.0:
        node, reciprocal = _behind_casts(graph, node.inputs[1]), False
    power = graph.number(node.inputs[1]) if node is not None and node.op == "Pow" else None
    if node is None or not (power == (-0.5 if reciprocal else 0.5) or (node.op == "Sqrt" and not reciprocal)):
        return None
    added = _behind_casts(graph, node.inputs[0])
    if added is None or added.op != "Add":
        return None
    for squares, eps in (added.inputs[:2], added.inputs[1::-1]):
        number = graph.number(eps)
        if number is not None:
            return squares, number
    return None


def _square_of(graph: Graph, value: str) -> str | None:
    """X of mean((x - mean(x))^2)."""
    mean = _behind_casts(graph, value)
    square = _behind_casts(graph, mean.inputs[0]) if mean is not None and mean.op == "ReduceMean" else None
    if square is None:
        return None
    twice = square.op == "Mul" and _uncast(graph, square.inputs[0]) == _uncast(graph, square.inputs[1])
    if twice or (square.op == "Pow" and graph.number(square.inputs[1]) == 2.0):
        return _centred(graph, square.inputs[0])
    return None


def _with_vectors(graph: Graph, node: Node, source: str) -> LayerNorm:
    """Follow the division to its weight and bias."""
    found: dict[str, Floats] = {}
    absorbed, value = [node.outputs[0]], node.outputs[0]
    while len(users := graph.users(value)) == 1 and value not in graph.outputs:
        user = users[0]
        vector = next((name for name in user.inputs if name != value and graph.is_constant(name)), None)
        if user.op in ("Mul", "Add") and vector is not None and user.op not in found:
            found[user.op] = _vector(graph, user, vector)
        elif user.op not in ("Cast", "Identity"):
            break
        value = user.outputs[0]
        absorbed.append(value)
        if "Add" in found:
            break
    if found.keys() != {"Mul", "Add"} or found["Mul"].shape != found["Add"].shape:
        raise graph.refuse(f"{node} normalizes, but is not followed by a constant weight and a constant bias")
    return LayerNorm(found["Mul"], found["Add"], (source,), value, tuple(absorbed))


def _vector(graph: Graph, node: Node, name: str) -> Floats:
    if not graph.is_constant(name):
        raise graph.refuse(f"{node} takes {name or 'nothing'} as weight or bias; a constant is expected")
    vector: Floats = graph.constant(name).astype(np.float32).reshape(-1)
    return vector


def _check_eps(graph: Graph, node: Node, eps: float) -> None:
    if not math.isclose(eps, EPS, rel_tol=EPS_TOLERANCE):
        raise graph.refuse(f"{node} normalizes with epsilon {eps:g}; {EPS:g} is expected")
