"""Checks what stands between two linear layers: GELU, by its numbers, and the factor it is left with.

GELU is written in many ways, and ONNX Runtime moves a factor of one half out of it into the product behind. So the
part of the graph between the layers runs on a row of numbers, and is compared with our GELU (tanh form, Hendrycks and
Gimpel, arXiv 1606.08415). It does not know what the layers are for.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from edge_daemon.models.folding import Graph
from edge_daemon.models.matrices import UNARY, Floats
from edge_daemon.models.probing import relative, session
from edge_daemon.models.structure import Element

MOST_ERROR = 2e-3
"""Relative; measured over REACH: GELU by erf is 2e-4 away from GELU by tanh, float16 4e-4, x·sigmoid(1.702 x) 8e-3."""
REACH = 3.0
"""GELU is looked at from -REACH to REACH; beyond, it is 0 or x."""
TYPES = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
"""In which a graph may compute its activations."""


def gelu_factor(graph: Graph, first: Element, second: Element) -> float:
    """What GELU between two layers is multiplied with; the second layer's weight is to be multiplied with it.

    Raises ModelError when something else stands there.
    """
    one, other = first.layer, second.layer
    assert one is not None  # both are linear layers
    assert other is not None
    begin, end = _inwards(graph, one.output, other.source)
    x = np.linspace(-REACH, REACH, one.rows, dtype=np.float32)[None]
    problem = ""
    for kind, dtype in TYPES.items():
        try:
            part = graph.cut([end], given={begin: kind})
            (found,) = session(part).run([end], {begin: x.astype(dtype)})
        except Exception as error:  # noqa: BLE001  ValueError for inputs of other names as well; the next type may fit
            problem = str(error)
            continue
        inside = x + one.bias if one.bias_follows and one.bias is not None else x
        return _factor(graph, second, found.astype(np.float32), gelu(inside))
    raise graph.refuse(f"what stands between {first} and {second} does not run alone: {problem}") from None


def gelu(x: Floats) -> Floats:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    y: Floats = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


def _factor(graph: Graph, second: Element, found: Floats, wanted: Floats) -> float:
    if found.shape != wanted.shape:
        raise graph.refuse(f"GELU before {second} makes {found.shape} of {wanted.shape}")
    factor = float((found * wanted).sum() / (wanted * wanted).sum())
    error = relative(found, factor * wanted) if factor > 0 else math.inf
    if error > MOST_ERROR:
        raise graph.refuse(f"before {second} GELU is expected; what stands there is off by {error:.2g} (relative)")
    exponent = round(math.log2(factor))
    return 2.0**exponent if math.isclose(factor, 2.0**exponent, rel_tol=MOST_ERROR) else factor


def _inwards(graph: Graph, begin: str, end: str) -> tuple[str, str]:
    """Both ends without the casts and reshapes next to the layers."""
    while len(users := graph.users(begin)) == 1 and users[0].op in UNARY and users[0].inputs[0] == begin:
        begin = users[0].outputs[0]
    while (node := graph.producer.get(end)) is not None and node.op in UNARY and end != begin:
        end = node.inputs[0]
    return begin, end
