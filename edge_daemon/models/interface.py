"""What ONNX Runtime needs to be told of a moonfile's graphs: a config.json for `engine: onnx`.

That is what goes in and out of them, and it is measured by running each once, on zeros. Of what lies inside only the
memory budget asks, and gets what transformers usually have: an inner layer four times as wide, heads of about 64.
Knows nothing of weights.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # it comes without types
from numpy.typing import NDArray

from edge_daemon.errors import ModelError
from edge_daemon.model_files import INITIAL_KV
from edge_daemon.models.probing import session
from edge_daemon.models.unpacked import CLIENT_CROP_PX, CLIENT_POSITIONS, Unpacked
from edge_daemon.moondream import onnx_session
from edge_daemon.moondream.config import ModelConfig, RegionConfig, TextConfig, VisionConfig

UNSEEN = 1
"""For sizes inside the graphs that nobody asks for."""
USUAL_WIDENING, USUAL_HEAD_DIM = 4, 64
"""Of published transformers, Moondream's among them (0.5B: 3.7 and 4; 72 and 64)."""
NUMBERS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}
"""Types that an input may have, as ONNX Runtime calls them."""
Numbers = NDArray[Any]


def measured(moonfile: Unpacked, name: str) -> ModelConfig:
    """The configuration of unpacked graphs, each of which is run once. Raises ModelError for foreign ones."""
    vision, features = _vision(moonfile.graphs)
    both = np.concatenate([features, features], axis=-1)
    width = run_once(moonfile.graph("vision_projection"), input=both)[0].shape[-1]
    layers, _, _, heads, _, head_dim = moonfile.kv.shape
    if width != heads * head_dim:
        raise ModelError(
            f"{moonfile.source}: {heads} heads of {head_dim} in {INITIAL_KV}, but a decoder {width} wide in the graphs"
        )
    embedding = run_once(moonfile.graph("text_encoder"), input_ids=np.zeros((1, 1)))[0]
    outputs = run_once(moonfile.graph("text_decoder"), input_embeds=embedding, kv_cache=moonfile.kv)
    text = TextConfig(
        dim=width,
        ff_dim=USUAL_WIDENING * width,
        layers=layers,
        heads=heads,
        vocab=min(outputs, key=lambda array: array.ndim).shape[-1],  # the only output of two dimensions
        max_context=CLIENT_POSITIONS,
        rotary_dim=2 * UNSEEN,
    )
    config = moonfile.config(name, vision, text, _region(moonfile.graphs, width), "causal", "onnx")
    config.provenance["precision"] = precision_of(moonfile.graph("text_decoder"))
    return config


def _vision(graphs: Path) -> tuple[VisionConfig, Numbers]:
    """The vision encoder as seen from outside, and the features (1, P, D) of a grey picture."""
    crop_px = _crop_px(graphs / "vision_encoder.onnx")
    features = run_once(graphs / "vision_encoder.onnx", input=np.zeros((1, 3, crop_px, crop_px)))[0]
    grid = math.isqrt(features.shape[1])
    if not grid or grid**2 != features.shape[1] or crop_px % grid:
        raise ModelError(f"{graphs}: {features.shape[1]} patches are not a square grid over {crop_px} pixels")
    dim = features.shape[2]
    return VisionConfig(
        dim=dim,
        ff_dim=USUAL_WIDENING * dim,
        layers=UNSEEN,
        heads=next(heads for heads in range(max(1, dim // USUAL_HEAD_DIM), 0, -1) if dim % heads == 0),
        patch_px=crop_px // grid,
        crop_px=crop_px,
        projection_dim=UNSEEN,
    ), features


def _region(graphs: Path, width: int) -> RegionConfig:
    """The region head as seen from outside."""
    coord, size = (run_once(graphs / f"{kind}_decoder.onnx", input=np.zeros(width))[0] for kind in ("coord", "size"))
    inside = {"coord_features": 2 * UNSEEN, "size_features": 2 * UNSEEN, "inner_dim": UNSEEN}
    return RegionConfig(coord_bins=coord.shape[-1], size_bins=size.shape[-1], size_scale="linear", **inside)


def run_once(path: Path, **inputs: Numbers) -> list[Numbers]:
    """The outputs of a graph, each input in the type that it takes. Raises ModelError when it cannot be run so."""
    graph = opened(path)
    wanted = {given.name: given.type for given in graph.get_inputs()}
    if wanted.keys() != inputs.keys():
        raise ModelError(f"{path}: its inputs are {', '.join(sorted(wanted))}; a moonfile's are {', '.join(inputs)}")
    unknown = {name: kind for name, kind in wanted.items() if kind not in NUMBERS}
    if unknown:
        raise ModelError(f"{path}: inputs of a type that is not known: {unknown}")
    feeds = {name: np.ascontiguousarray(values, NUMBERS[wanted[name]]) for name, values in inputs.items()}
    try:
        results: list[Numbers] = graph.run(None, feeds)
    except onnx_session.errors() as error:
        raise ModelError(f"{path}: ONNX Runtime cannot run it: {error}") from error
    return results


def opened(path: Path) -> onnxruntime.InferenceSession:
    """A graph of the moonfile. Raises ModelError when it is missing or no graph."""
    if not path.is_file():
        raise ModelError(f"{path.name} is not in the moonfile")
    try:
        return session(path)
    except onnx_session.errors() as error:
        raise ModelError(f"{path}: not a graph that ONNX Runtime can run: {error}") from error


def _crop_px(path: Path) -> int:
    """Side of a crop, by the encoder's declared input, or the client's where it is left open."""
    side = opened(path).get_inputs()[0].shape[-1]
    return side if isinstance(side, int) else CLIENT_CROP_PX


def precision_of(path: Path) -> str:
    """What a graph holds most of its bytes in: float32, float16, int8 or int4."""
    graph = onnx.load(path, load_external_data=False).graph
    bytes_of: Counter[int] = Counter()
    for tensor in graph.initializer:
        item_bytes = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        bytes_of[tensor.data_type] += math.prod(tensor.dims) * item_bytes
    if any(node.op_type == "MatMulNBits" for node in graph.node):
        return "int4"
    kind = bytes_of.most_common(1)[0][0] if bytes_of else onnx.TensorProto.FLOAT
    if kind == onnx.TensorProto.FLOAT:
        return "float32"
    return "float16" if kind == onnx.TensorProto.FLOAT16 else "int8"
