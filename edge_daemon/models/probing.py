"""Runs graphs, or the parts of them that some values need, in ONNX Runtime. It knows no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it comes without types

from edge_daemon.models.folding import Array, Graph
from edge_daemon.moondream import onnx_session


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """A graph, ready to run on the CPU in as little memory as it takes."""
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, onnx_session.options(), providers=["CPUExecutionProvider"])


def run(graph: Graph, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
    """Run the part of a graph that these values need, each feed in the type that its input has.

    Raises ModelError when ONNX Runtime cannot.
    """
    part = graph.cut(outputs)
    types = {value.name: input_type(value) for value in part.graph.input}
    given = {name: np.asarray(feeds[name], types[name]) for name in types}
    try:
        return cast("list[Array]", session(part).run(outputs, given))
    except onnx_session.errors() as error:
        raise graph.refuse(f"ONNX Runtime does not compute {', '.join(outputs)}: {error}") from error


def input_type(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    """The type of the numbers that an input takes."""
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def relative(found: Array, wanted: Array) -> float:
    """Root mean square of the difference, relative to that of what is wanted; infinite where one is no number."""
    scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
    error = float(np.sqrt(np.mean(np.square(found.astype(np.float64) - wanted)))) / scale
    return error if math.isfinite(error) else math.inf
