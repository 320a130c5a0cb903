"""Products in 8 bits by ONNX Runtime, whose kernels (MLAS) know the dot products of small ARM boards.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it comes without types
import torch
from onnx import TensorProto, helper
from torch import Tensor

from edge_daemon.moondream import onnx_session
from edge_daemon.moondream.allocator import give_back
from edge_daemon.moondream.cpu import DOT_PRODUCTS, flags

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
IR_VERSION = 9
ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.int8: TensorProto.INT8, torch.uint8: TensorProto.UINT8}


def signed(levels: Tensor, machine: str, cpuinfo: str) -> bool:
    """Whether weights (N, K), int8, may be multiplied with their sign, by platform.machine() and /proc/cpuinfo's text.

    Without a dot product, pairs of products are added in 16 bits: on a Cortex-A72 two times −128 · −128 would wrap, and
    cannot come together where an output has one −128 at most; on x86-64 they overflow anyway.
    """
    if DOT_PRODUCTS & flags(cpuinfo):
        return True
    return machine == "aarch64" and int((levels == -128).sum(dim=1).max()) < 2


def product(levels: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor, signed: bool) -> Callable[[Tensor], Tensor]:
    """A function from (…, K) to (…, N), float32: x · ((levels − zeros) · scales)ᵀ + bias.

    `levels` (N, K) int8, `scales` and `zeros` (N) or (1), `bias` (N). Each call rounds its x to 256 levels. Weights
    that are not `signed` are moved by 128, which changes nothing but the kernel, to a slower one.
    """
    weights, zeros = levels.t().contiguous(), zeros.to(torch.int8)
    if not signed:
        weights, zeros = weights.view(torch.uint8) ^ 128, zeros.view(torch.uint8) ^ 128
    scales = scales.to(torch.float32)
    if len(scales) == 1:
        scales, zeros = scales[0], zeros[0]
    session = _session({"weights": weights, "scales": scales, "zeros": zeros, "bias": bias})
    del weights
    give_back()
    return partial(_run, session, len(levels))


def _session(constants: dict[str, Tensor]) -> Any:
    """One product, as a graph. Its constants are handed over beside it, not as a copy in it."""
    inputs, outputs = constants["weights"].shape
    node = helper.make_node("DynamicQuantizeMatMul", ["x", *constants], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])
    graph = helper.make_graph([node], "product", [x], [y], [_declared(*constant) for constant in constants.items()])
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)
    options = onnx_session.options()
    options.enable_mem_pattern = False  # made for calls that are alike; here it leaves holes of 100 MiB and more
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(constant.numpy()) for constant in constants.values()]
    options.add_external_initializers([*constants], values)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _declared(name: str, constant: Tensor) -> onnx.TensorProto:
    """A constant whose values are elsewhere."""
    declared = TensorProto(name=name, data_type=ELEMENTS[constant.dtype], dims=constant.shape)
    declared.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", 0), ("length", constant.nbytes)):
        declared.external_data.add(key=key, value=str(value))
    return declared


def _run(session: Any, outputs: int, x: Tensor) -> Tensor:
    """Into memory of torch's: the runtime's own, taken and given back in every call, leaves holes between weights."""
    rows, y = x.reshape(-1, x.shape[-1]).contiguous(), x.new_empty(*x.shape[:-1], outputs)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, rows.shape, rows.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, (len(rows), outputs), y.data_ptr())
    session.run_with_iobinding(binding)
    return y
