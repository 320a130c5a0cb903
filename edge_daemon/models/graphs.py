"""The eight ONNX graphs of a moonfile, made from the tensors of a model directory.

Interfaces are those that moondream 0.0.6 (onnx_vl.py) feeds: float16, but token ids, which are int64. Inside
everything is computed in float32, whatever the weights are stored in, so a graph's answers are our own but for the
rounding of its inputs and outputs. Standard operators only; linear layers in int8 are what ONNX Runtime's dynamic
quantization writes (quantize_dynamic, weights u8, one scale and zero point a tensor).

Shapes: n crops, P patches, D vision width, T text width, L layers, H heads, E head width, p past and s new positions.
It knows no files but the weights, which are read when a graph is written.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_daemon.choices import ExportPrecision
from edge_daemon.errors import ModelError
from edge_daemon.models.graph_file import FLOAT, HALF, INT64, UINT8, Array, GraphFile, Slot, Source
from edge_daemon.moondream.config import ModelConfig, RegionConfig
from edge_daemon.moondream.text import ROTARY_THETA
from edge_daemon.moondream.vision import LAYER_NORM_EPS
from edge_daemon.moondream.weights import Weights

Floats = NDArray[np.float32]


class Graphs:
    """All graphs of one model at one precision."""

    def __init__(self, config: ModelConfig, weights: Weights, precision: ExportPrecision) -> None:
        """Of an open model directory whose region head is there."""
        self.config = config
        self.weights = weights
        self.precision: ExportPrecision = precision

    def all(self) -> list[GraphFile]:
        """The eight graphs; no weight has been read yet."""
        return [
            self.vision_encoder(),
            self.vision_projection(),
            self.text_encoder(),
            self.text_decoder(),
            self.coord_encoder(),
            self.coord_decoder(),
            self.size_encoder(),
            self.size_decoder(),
        ]

    def vision_encoder(self) -> GraphFile:
        """`input` (n, 3, S, S) → (n, P, D)."""
        vision = self.config.vision
        graph, side = self._graph("vision_encoder"), vision.crop_px
        x = graph.given("input", ("n", 3, side, side))
        x = graph.reshape(x, 0, 3, vision.grid, vision.patch_px, vision.grid, vision.patch_px)
        x = graph.reshape(graph.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), 0, vision.patches, -1)
        x = graph.linear(x, "vision.patch_emb", vision.dim, 3 * vision.patch_px**2)
        x = graph.node("Add", x, graph.vector("vision.pos_emb", (1, vision.patches, vision.dim)))
        for layer in range(vision.layers):
            block = f"vision.blocks.{layer}"
            y = graph.layer_norm(x, f"{block}.ln1", vision.dim)
            q, k, v = graph.heads(y, f"{block}.attn.qkv", vision.heads, vision.dim)
            x = graph.node("Add", x, graph.attention(q, k, v, f"{block}.attn.proj", vision.dim, vision.heads))
            y = graph.layer_norm(x, f"{block}.ln2", vision.dim)
            x = graph.node("Add", x, graph.mlp(y, f"{block}.mlp", vision.dim, vision.ff_dim, vision.dim))
        graph.give(graph.layer_norm(x, "vision.post_ln", vision.dim), "output", ("n", vision.patches, vision.dim))
        return graph

    def vision_projection(self) -> GraphFile:
        """`input` (1, P, 2D) → (1, P, T)."""
        vision, width = self.config.vision, self.config.text.dim
        graph = self._graph("vision_projection")
        x = graph.given("input", (1, vision.patches, 2 * vision.dim))
        x = graph.mlp(x, "vision.proj_mlp", 2 * vision.dim, vision.projection_dim, width)
        graph.give(x, "output", (1, vision.patches, width))
        return graph

    def text_encoder(self) -> GraphFile:
        """`input_ids` (1, s) → (1, s, T)."""
        text = self.config.text
        graph = self._graph("text_encoder")
        tokens = graph.input("input_ids", INT64, (1, "s"))
        table = graph.table("text.wte", (text.vocab, text.dim))
        graph.give(graph.node("Gather", table, tokens), "output", (1, "s", text.dim))
        return graph

    def text_decoder(self) -> GraphFile:
        """`input_embeds` (1, s, T) and `kv_cache` (L, 2, 1, H, p, E) → `hidden`, `new_kv_cache` and `logits`.

        `hidden` (1, s, T) is before the last norm; `new_kv_cache` (L, 2, 1, H, s, E) is of the new positions;
        `logits` (1, V) of the last one.
        """
        text = self.config.text
        graph = self._graph("text_decoder")
        x = graph.given("input_embeds", (1, "s", text.dim))
        past = graph.input("kv_cache", HALF, (text.layers, 2, 1, text.heads, "p", text.head_dim))
        rotary, mask = self._positions(graph, x, past)
        new: list[str] = []
        for layer in range(text.layers):
            block = f"text.blocks.{layer}"
            y = graph.layer_norm(x, f"{block}.ln", text.dim)
            q, k, v = graph.heads(y, f"{block}.attn.qkv", text.heads, text.dim)
            q, k = (
                graph.rotated(q, rotary, text.rotary_dim, text.head_dim),
                graph.rotated(k, rotary, text.rotary_dim, text.head_dim),
            )
            new += [k, v]
            before = graph.pick(past, layer)
            k, v = (
                graph.node("Concat", graph.cast(graph.pick(before, side), FLOAT), now, axis=2)
                for side, now in enumerate((k, v))
            )
            attended = graph.attention(q, k, v, f"{block}.attn.proj", text.dim, text.heads, mask)
            spoken = graph.mlp(y, f"{block}.mlp", text.dim, text.ff_dim, text.dim)
            x = graph.node("Add", graph.node("Add", x, attended), spoken)
        graph.give(x, "hidden", (1, "s", text.dim))
        kv = graph.reshape(graph.node("Concat", *new, axis=0), text.layers, 2, 1, text.heads, -1, text.head_dim)
        graph.give(kv, "new_kv_cache", (text.layers, 2, 1, text.heads, "s", text.head_dim))
        last = graph.layer_norm(graph.pick(x, -1, axis=1), "text.post_ln", text.dim)
        graph.give(graph.linear(last, "text.lm_head", text.vocab, text.dim), "logits", (1, text.vocab))
        return graph

    def _positions(self, graph: Drawing, x: str, past: str) -> tuple[tuple[str, str], str]:
        """Cosines and sines (s, rotary_dim/2) of the new positions, and the mask (s, p + s), 0 or −∞."""
        start = graph.pick(graph.node("Shape", past), 4)
        end = graph.node("Add", start, graph.pick(graph.node("Shape", x), 1))
        one = graph.whole(1)
        rows = graph.node("Unsqueeze", graph.node("Range", start, end, one), graph.whole(1, 1))
        half = np.arange(0, self.config.text.rotary_dim, 2, dtype=np.float32) / self.config.text.rotary_dim
        frequencies = graph.constant("rotary_frequencies", np.float32(ROTARY_THETA) ** -half)
        angles = graph.node("Mul", graph.cast(rows, FLOAT), frequencies)
        if self.config.mask == "prefix":  # those inside see up to its end
            last_of_prefix = graph.whole(self.config.prefix_positions - 1)
            rows = graph.node("Max", rows, last_of_prefix)
        columns = graph.node("Range", graph.whole(0), end, one)
        seen = graph.node("LessOrEqual", columns, rows)
        mask = graph.node("Where", seen, graph.number(0.0), graph.number(-math.inf))
        return (graph.node("Cos", angles), graph.node("Sin", angles)), mask

    def coord_encoder(self) -> GraphFile:
        """`input` (1,) → (T,)."""
        return self._region_encoder("coord", 1, self._region.coord_features)

    def size_encoder(self) -> GraphFile:
        """`input` (2,), width and height, → (T,)."""
        return self._region_encoder("size", 2, self._region.size_features)

    def coord_decoder(self) -> GraphFile:
        """`input` (T,) → (bins,)."""
        return self._region_decoder("coord", (self._region.coord_bins,))

    def size_decoder(self) -> GraphFile:
        """`input` (T,) → (2, bins), width and height."""
        return self._region_decoder("size", (2, self._region.size_bins))

    @property
    def _region(self) -> RegionConfig:
        if self.config.region is None:
            raise ModelError(f"{self.config.name}: the model has no region head")
        return self.config.region

    def _region_encoder(self, kind: str, inputs: int, features: int) -> GraphFile:
        graph, width = self._graph(f"{kind}_encoder"), self.config.text.dim
        x = graph.node("Mul", graph.given("input", (inputs,)), graph.number(2 * math.pi))
        angles = graph.node("MatMul", x, graph.vector(f"region.{kind}_features", (inputs, features // 2)))
        waves = graph.node("Concat", graph.node("Cos", angles), graph.node("Sin", angles), axis=0)
        graph.give(graph.linear(waves, f"region.{kind}_encoder", width, features), "output", (width,))
        return graph

    def _region_decoder(self, kind: str, bins: tuple[int, ...]) -> GraphFile:
        graph, width = self._graph(f"{kind}_decoder"), self.config.text.dim
        x = graph.mlp(
            graph.given("input", (width,)), f"region.{kind}_decoder", width, self._region.inner_dim, math.prod(bins)
        )
        graph.give(graph.reshape(x, *bins), "output", bins)
        return graph

    def _graph(self, name: str) -> Drawing:
        return Drawing(name, self.weights, self.precision)


class Drawing(GraphFile):
    """A graph with the vocabulary of our modules: values are named by the node that makes them."""

    def __init__(self, name: str, weights: Weights, precision: ExportPrecision) -> None:
        """Begin an empty graph that takes its weights from a model directory."""
        super().__init__(name)
        self._stored = weights
        self._precision = precision
        self._quantized: dict[str, tuple[str, ...]] = {}

    def given(self, name: str, dims: tuple[int | str, ...]) -> str:
        """A float16 input, as float32."""
        return self.cast(self.input(name, HALF, dims), FLOAT)

    def give(self, x: str, name: str, dims: tuple[int | str, ...]) -> None:
        """Make a value a float16 output."""
        self.node("Cast", x, name=name, to=HALF)
        self.output(name, HALF, dims)

    def cast(self, x: str, element: int) -> str:
        """To another type."""
        return self.node("Cast", x, to=element)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"number_{value}", np.array(value, np.float32))

    def whole(self, value: int, dims: int = 0) -> str:
        """An int64 scalar, or a vector of one with `dims` 1."""
        return self.constant(f"whole_{value}_{dims}", np.full((1,) * dims, value, np.int64))

    def reshape(self, x: str, *dims: int) -> str:
        """0 keeps a dimension, −1 takes what is left."""
        name = "shape_" + "_".join(map(str, dims))
        return self.node("Reshape", x, self.constant(name, np.array(dims, np.int64)))

    def pick(self, x: str, index: int, axis: int = 0) -> str:
        """One element along an axis, which goes away."""
        return self.node("Gather", x, self.whole(index), axis=axis)

    def vector(self, tensor: str, dims: tuple[int, ...]) -> str:
        """A tensor in float32, at every precision."""
        slot = Slot(tensor, dims, FLOAT)
        return self.weights(Source((slot,), lambda: (self._read(tensor, dims),)))[0]

    def table(self, tensor: str, dims: tuple[int, int]) -> str:
        """An embedding table: float32 or float16 (int8 models keep their table in float16)."""
        if self._precision == "float32":
            return self.vector(tensor, dims)
        return self.half(tensor, tensor, dims)

    def half(self, name: str, tensor: str, dims: tuple[int, int], transposed: bool = False) -> str:
        """A matrix in float16."""

        def read() -> tuple[Array, ...]:
            with np.errstate(over="ignore"):  # it is said better below
                values = self._read(tensor, dims).astype(np.float16)
            if not np.isfinite(values).all():
                raise ModelError(f"{self._stored.path}: {tensor} has values that float16 cannot hold: use float32")
            return (values.T if transposed else values,)

        return self.weights(Source((Slot(name, dims[::-1] if transposed else dims, HALF),), read))[0]

    def linear(self, x: str, layer: str, out_dim: int, in_dim: int) -> str:
        """A linear layer, x · Wᵀ + b; W is stored transposed, (in, out)."""
        name, dims = f"{layer}.weight", (out_dim, in_dim)
        if self._precision == "int8":
            product = self._integer_product(x, name, dims)
        elif self._precision == "float16":  # unpacked once, when the graph is loaded
            product = self.node("MatMul", x, self.cast(self.half(name, name, dims, transposed=True), FLOAT))
        else:
            slot = Slot(name, dims[::-1], FLOAT)
            stored = self.weights(Source((slot,), lambda: (self._read(name, dims).T,)))[0]
            product = self.node("MatMul", x, stored)
        return self.node("Add", product, self.vector(f"{layer}.bias", (out_dim,)))

    def _integer_product(self, x: str, tensor: str, dims: tuple[int, int]) -> str:
        """Give x · Wᵀ with both quantized; x once, however many layers it feeds."""
        slots = (
            Slot(f"{tensor}_quantized", dims[::-1], UINT8),
            Slot(f"{tensor}_scale", (), FLOAT),
            Slot(f"{tensor}_zero_point", (), UINT8),
        )
        weight, weight_scale, weight_zero = self.weights(Source(slots, lambda: quantized(self._read(tensor, dims))))
        if x not in self._quantized:
            names = (f"{x}_quantized", f"{x}_scale", f"{x}_zero_point")
            self._quantized[x] = self.nodes("DynamicQuantizeLinear", x, names=names)
        rounded, scale, zero = self._quantized[x]
        whole = self.node("MatMulInteger", rounded, weight, zero, weight_zero)
        return self.node("Mul", self.cast(whole, FLOAT), self.node("Mul", scale, weight_scale))

    def layer_norm(self, x: str, layer: str, dim: int) -> str:
        """Over the last dimension."""
        weight, bias = self.vector(f"{layer}.weight", (dim,)), self.vector(f"{layer}.bias", (dim,))
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)

    def mlp(self, x: str, layer: str, dim: int, inner_dim: int, out_dim: int) -> str:
        """Two linear layers with a tanh-GELU between them."""
        y = self.gelu(self.linear(x, f"{layer}.fc1", inner_dim, dim))
        return self.linear(y, f"{layer}.fc2", out_dim, inner_dim)

    def gelu(self, x: str) -> str:
        """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), written so that ONNX Runtime fuses it."""
        cube = self.node("Mul", self.node("Pow", x, self.number(3.0)), self.number(0.044715))
        inner = self.node("Mul", self.node("Add", x, cube), self.number(math.sqrt(2 / math.pi)))
        gate = self.node("Add", self.node("Tanh", inner), self.number(1.0))
        return self.node("Mul", self.node("Mul", x, self.number(0.5)), gate)

    def heads(self, x: str, layer: str, heads: int, dim: int) -> tuple[str, str, str]:
        """(B, S, dim) → queries, keys and values, each (B, H, S, E)."""
        qkv = self.reshape(self.linear(x, layer, 3 * dim, dim), 0, 0, 3, heads, dim // heads)
        apart = self.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        return self.pick(apart, 0), self.pick(apart, 1), self.pick(apart, 2)

    def rotated(self, x: str, rotary: tuple[str, str], rotary_dim: int, head_dim: int) -> str:
        """Pairs (i, i + rotary_dim/2) of each head, turned in place, as `text.rotate` does."""
        cos, sin = rotary
        half = rotary_dim // 2
        parts = [half, half] if rotary_dim == head_dim else [half, half, head_dim - rotary_dim]
        sizes = self.constant(f"parts_{rotary_dim}_{head_dim}", np.array(parts, np.int64))
        names = tuple(f"{x}_part_{index}" for index in range(len(parts)))
        real, imag, *rest = self.nodes("Split", x, sizes, names=names, axis=-1)
        first = self.node("Sub", self.node("Mul", real, cos), self.node("Mul", imag, sin))
        second = self.node("Add", self.node("Mul", real, sin), self.node("Mul", imag, cos))
        return self.node("Concat", first, second, *rest, axis=-1)

    def attention(self, q: str, k: str, v: str, layer: str, dim: int, heads: int, mask: str | None = None) -> str:
        """softmax(q·kᵀ/√E + mask) · v and the layer behind it: (B, H, S, E) each → (B, S, dim)."""
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.node("Mul", scores, self.number(1 / math.sqrt(dim // heads)))
        if mask is not None:
            scores = self.node("Add", scores, mask)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        joined = self.reshape(self.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, dim)
        return self.linear(joined, layer, dim, dim)

    def _read(self, tensor: str, dims: tuple[int, ...]) -> Floats:
        values: Floats = self._stored.tensor(tensor).numpy()
        if values.shape != dims:
            raise ModelError(f"{self._stored.path}: {tensor} has shape {values.shape}, config.json says {dims}")
        return values


def quantized(matrix: Floats) -> tuple[Array, ...]:
    """(out, in) → u8 (in, out), scale and zero point, as ONNX Runtime's quantize_dynamic chooses them.

    The range is that of the values and holds 0: scale = (highest − lowest)/255, zero point = round(−lowest/scale).
    """
    lowest, highest = min(float(matrix.min()), 0.0), max(float(matrix.max()), 0.0)
    scale = np.float32((highest - lowest) / 255 or 1.0)
    zero = np.rint(-lowest / scale)
    levels = matrix / scale
    np.rint(levels, out=levels)
    levels += zero
    np.clip(levels, 0, 255, out=levels)
    return levels.astype(np.uint8).T, np.array(scale), np.array(zero, np.uint8)
