"""A quantizing graph without its rounding is the float graph of its dequantized weights, however it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edge_daemon.models.unrounded import unround

Array = NDArray[np.float32]
LEVELS = {
    "as written": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
FUSED = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
X = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)


def float_graph(path: Path, weights: dict[str, Array]) -> Path:
    """Two layers that share their input, and one behind them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"]),
        helper.make_node("Add", ["p1", "b1"], ["y1"]),
        helper.make_node("MatMul", ["x", "w2"], ["y2"]),
        helper.make_node("Sum", ["y1", "y2"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "w3"], ["y"]),
    ]
    dims = [helper.make_tensor_value_info(name, 1, [1, "s", size]) for name, size in (("x", 8), ("y", 4))]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "layers", dims[:1], dims[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def output(path: Path, level: Any = LEVELS["as written"], written: Path | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    if written is not None:
        options.optimized_model_filepath = str(written)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return cast("Array", session.run(None, {"x": X})[0])


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    random = np.random.default_rng(1)
    shapes = {"w1": (8, 16), "b1": (16,), "w2": (8, 16), "w3": (16, 4)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("signed", [False, True], ids=["u8", "s8"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_what_is_left_is_the_weights(
    weights: dict[str, Array], tmp_path: Path, level: str, signed: bool, per_channel: bool
) -> None:
    quantize_dynamic(
        float_graph(tmp_path / "float.onnx", weights),
        tmp_path / "int8.onnx",
        weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        per_channel=per_channel,
    )
    wanted = output(float_graph(tmp_path / "wanted.onnx", weights | dequantized(tmp_path / "int8.onnx")))
    rounding = output(tmp_path / "int8.onnx", LEVELS[level], tmp_path / "given.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "given.onnx").graph.node}
    assert bool(kinds & FUSED) == (level in ("extended", "all")), "the levels make no difference: this shows nothing"
    assert unround(tmp_path / "given.onnx", tmp_path / "unrounded.onnx")
    found = output(tmp_path / "unrounded.onnx")
    assert np.abs(rounding - wanted).max() > 1e-3
    assert np.abs(found - wanted).max() < 1e-5


def dequantized(path: Path) -> dict[str, Array]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    matrices = {}
    for name in ("w1", "w2", "w3"):
        levels, scale, zero = (stored[f"{name}_{what}"] for what in ("quantized", "scale", "zero_point"))
        matrices[name] = ((levels.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
    return matrices


@pytest.mark.parametrize("accuracy", [0, 4])
def test_blocks_are_computed_in_floats(tmp_path: Path, accuracy: int) -> None:
    random = np.random.default_rng(2)
    packed = random.integers(0, 256, (4, 1, 16), np.uint8)  # 4 outputs, one block of 32 inputs, two levels a byte
    scales = random.random(4, np.float32)
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(4, 32).astype(np.float32) - 8
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=32, N=4, bits=4, block_size=32
    )
    node.attribute.append(helper.make_attribute("accuracy_level", accuracy))
    dims = [helper.make_tensor_value_info(name, 1, [1, "s", size]) for name, size in (("x", 32), ("y", 4))]
    stored = [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "blocks", dims[:1], dims[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "blocks.onnx")
    rounds = unround(tmp_path / "blocks.onnx", tmp_path / "unrounded.onnx")
    assert rounds == (accuracy > 1)
    assert (tmp_path / "unrounded.onnx").exists() == rounds
    x = random.standard_normal((1, 5, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / ("unrounded.onnx" if rounds else "blocks.onnx"))
    assert np.abs(session.run(None, {"x": x})[0] - x @ (levels * scales[:, None]).T).max() < 1e-4


def test_a_graph_that_does_not_round_is_left_alone(weights: dict[str, Array], tmp_path: Path) -> None:
    assert not unround(float_graph(tmp_path / "float.onnx", weights), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
