"""Exported graphs compute what our parts compute; what a format cannot hold is refused before anything is written."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import load_file
from torch import Tensor

from edge_daemon.choices import ExportPrecision
from edge_daemon.demo import MODEL_DIR
from edge_daemon.errors import ConfigError, ModelError, UnavailableError
from edge_daemon.model_files import CONFIG, INITIAL_KV, TOKENIZER
from edge_daemon.models.container import GRAPH_NAMES, REQUIRED
from edge_daemon.models.export import export
from edge_daemon.models.graphs import quantized
from edge_daemon.moondream.config import BosState, Mask, ModelConfig, load_config
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text, masked
from edge_daemon.moondream.vision import Vision
from tests.model.checkpoints import TWO_BILLION, bos_kv, random_tensors, tiny_config, write_model, write_tensors
from tests.model.conftest import TinyFactory
from tests.model.moonfiles import read_records

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.generic]
PRECISIONS: tuple[ExportPrecision, ...] = ("float32", "float16", "int8")
KINDS: tuple[tuple[Mask, BosState], ...] = (("causal", "computed"), ("causal", "stored"), ("prefix", "stored"))
TOLERANCE = {"float32": 4e-3, "float16": 1e-2, "int8": 0.15}
"""Largest difference, of the largest value. Inputs and outputs are float16 (5e-4); the tiny decoder's steep attention
(tests.model.checkpoints) makes up to 2e-3 of the cache's rounding, and as much more of that of the weights. In int8
each activation has 256 levels, and tiny layers average little of it away."""


@dataclass(frozen=True)
class Exported:
    """A moonfile in memory beside the tensors that it was made from."""

    config: ModelConfig
    records: dict[str, bytes]
    tensors: dict[str, Tensor]

    def run(self, graph: str, **inputs: Tensor) -> list[Tensor]:
        """All outputs of one graph, in float32; inputs are rounded to float16 as the client does."""
        session = onnxruntime.InferenceSession(self.records[f"{graph}.onnx"], providers=["CPUExecutionProvider"])
        fed = {name: (x.half() if x.is_floating_point() else x).numpy() for name, x in inputs.items()}
        return [torch.from_numpy(output).float() for output in session.run(None, fed)]

    def part(self, prefix: str, module: torch.nn.Module) -> Any:
        """A module with the tensors of the checkpoint."""
        own = {name.removeprefix(f"{prefix}."): x for name, x in self.tensors.items() if name.startswith(f"{prefix}.")}
        own.pop("bos_kv", None)
        module.load_state_dict(own)
        return module.requires_grad_(False)

    @cached_property
    def vision(self) -> Vision:
        return cast("Vision", self.part("vision", Vision(self.config.vision, self.config.text.dim)))

    @cached_property
    def text(self) -> Text:
        return cast("Text", self.part("text", Text(self.config.text)))

    @cached_property
    def region(self) -> Region:
        assert self.config.region is not None
        return cast("Region", self.part("region", Region(self.config.region, self.config.text.dim)))

    @property
    def bos(self) -> Tensor:
        """(L, 2, 1, H, 1, E)."""
        return torch.from_numpy(np.load(io.BytesIO(self.records[INITIAL_KV]))).float()


def moonfile(directory: Path, out: Path, precision: ExportPrecision) -> dict[str, bytes]:
    export(directory, out, "moonfile", precision)
    return {record.name: record.read() for record in read_records(out)}


def exported(directory: Path, out: Path, precision: ExportPrecision) -> Exported:
    config = load_config(directory)
    return Exported(config, moonfile(directory, out, precision), load_file(directory / "model.safetensors"))


def worst(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module", params=[(*kind, precision) for kind in KINDS for precision in PRECISIONS], ids=str)
def case(request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    mask, bos_state, precision = request.param
    directory = tiny("template", mask, bos_state)
    return exported(directory, tmp_path_factory.mktemp("export") / "tiny.mf", precision)


@pytest.fixture
def tolerance(request: pytest.FixtureRequest, case: Exported) -> float:
    return TOLERANCE[request.node.callspec.params["case"][2]]


# ---- graphs against our own parts -----------------------------------------------------------------------


def test_vision(case: Exported, tolerance: float) -> None:
    vision, generator = case.config.vision, torch.Generator().manual_seed(1)
    crops = (torch.rand(3, 3, vision.crop_px, vision.crop_px, generator=generator) * 2 - 1).half().float()
    assert worst(case.run("vision_encoder", input=crops)[0], case.vision.encode(crops)) < tolerance
    features = torch.randn(1, vision.patches, 2 * vision.dim, generator=generator).half().float()
    assert worst(case.run("vision_projection", input=features)[0], case.vision.proj_mlp(features)) < tolerance


def test_embeddings(case: Exported, tolerance: float) -> None:
    tokens = torch.arange(case.config.text.vocab)[None]
    assert worst(case.run("text_encoder", input_ids=tokens)[0], case.text.embed(tokens)) < min(tolerance, 1e-3)


def test_text_with_its_mask_and_bos(case: Exported, tolerance: float) -> None:
    """The image prefix in one run, then several tokens, then one: as the client does it."""
    config, generator = case.config, torch.Generator().manual_seed(2)
    prefix, length = config.prefix_positions, config.prefix_positions + 5
    said = torch.randn(1, length - 1, config.text.dim, generator=generator).half().float()
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    allowed = key <= query
    if config.mask == "prefix":
        allowed |= (query > 0) & (query < prefix) & (key < prefix)  # BOS was alone when it was computed
    sequence = torch.cat([case.text.embed(torch.tensor([[config.tokens.bos]])), said], dim=1)
    wanted = case.text(sequence, torch.arange(length), masked(allowed))
    cache, start = case.bos, 0
    for end in (prefix - 1, length - 2, length - 1):
        hidden, new, logits = case.run("text_decoder", input_embeds=said[:, start:end], kv_cache=cache)
        assert worst(hidden, wanted[:, 1 + start : 1 + end]) < tolerance
        assert worst(logits, case.text.logits(wanted[:, end])) < tolerance
        cache, start = torch.cat([cache, new], dim=-2), end


def test_region(case: Exported, tolerance: float) -> None:
    hidden = torch.randn(case.config.text.dim, generator=torch.Generator().manual_seed(3)).half().float()
    x, size = torch.tensor([0.375]), torch.tensor([0.25, 0.8125])
    assert worst(case.run("coord_encoder", input=x)[0], case.region.encode_coord(x)) < tolerance
    assert worst(case.run("size_encoder", input=size)[0], case.region.encode_size(size)) < tolerance
    assert worst(case.run("coord_decoder", input=hidden)[0], case.region.coord_logits(hidden)) < tolerance
    assert worst(case.run("size_decoder", input=hidden)[0], case.region.size_logits(hidden)) < tolerance


def test_the_bos_state_is_that_of_the_decoder(case: Exported) -> None:
    assert worst(case.bos, bos_kv(case.text, case.config)[:, :, None]) < 1e-3


def test_a_stored_bos_goes_out_as_it_is(tiny: TinyFactory, tmp_path: Path) -> None:
    case = exported(tiny("template", "causal", "stored", own_bos=False), tmp_path / "tiny.mf", "float32")
    assert worst(case.bos, case.tensors["text.bos_kv"][:, :, None]) < 1e-3


def test_the_graphs_are_valid_and_no_matrix_is_hidden(case: Exported) -> None:
    for name in GRAPH_NAMES:
        model = onnx.load_from_string(case.records[f"{name}.onnx"])
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain for opset in model.opset_import} == {""}, "standard operators only"


# ---- int8 -----------------------------------------------------------------------------------------------


def test_int8_is_what_onnx_runtime_would_have_written(tmp_path: Path) -> None:
    single = exported(MODEL_DIR, tmp_path / "single.mf", "float32")
    ours = moonfile(MODEL_DIR, tmp_path / "int8.mf", "int8")
    for name in ("vision_encoder", "vision_projection", "text_decoder", "coord_decoder", "size_decoder"):
        (tmp_path / "single.onnx").write_bytes(single.records[f"{name}.onnx"])
        quantize_dynamic(tmp_path / "single.onnx", tmp_path / "theirs.onnx", weight_type=QuantType.QUInt8)
        mine, theirs = (
            constants(onnx.load_from_string(data))
            for data in (ours[f"{name}.onnx"], (tmp_path / "theirs.onnx").read_bytes())
        )
        names = [key for key in theirs if key.endswith(("_quantized", "_scale", "_zero_point"))]
        assert len(names) >= 6
        for key in names:
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=f"{name}: {key}")


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("low", [-1.0, 0.25])
def test_quantized_values_are_within_half_a_step(low: float) -> None:
    matrix = np.random.default_rng(0).uniform(low, 3.0, (7, 5)).astype(np.float32)
    levels, scale, zero = quantized(matrix)
    assert levels.shape == (5, 7)
    step = float(scale)
    assert step == pytest.approx((3.0 - min(low, 0.0)) / 255, rel=0.05)
    assert np.abs((levels.T.astype(np.float32) - np.float32(zero)) * step - matrix).max() <= 0.501 * step


def test_zeros_can_be_quantized() -> None:
    levels, scale, zero = quantized(np.zeros((3, 2), np.float32))
    assert ((levels.astype(np.float32) - np.float32(zero)) * np.float32(scale) == 0).all()


# ---- what else is in a moonfile -------------------------------------------------------------------------


def test_the_client_is_told_tokens_and_templates(tmp_path: Path) -> None:
    records = moonfile(MODEL_DIR, tmp_path / "demo.mf", "int8")
    assert set(records) == set(REQUIRED)
    assert records[TOKENIZER] == (MODEL_DIR / TOKENIZER).read_bytes()
    config = json.loads(records[CONFIG])
    ours = json.loads((MODEL_DIR / CONFIG).read_text())
    assert config == {"special_tokens": {"bos": 2, "eos": 1}, "templates": ours["templates"]}
    assert np.load(io.BytesIO(records[INITIAL_KV])).dtype == np.float16


def test_a_task_without_a_template_is_not_mentioned(tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, templates=replace(config.templates, point=None))
    told = json.loads(moonfile(write_model(tmp_path / "tiny", config), tmp_path / "tiny.mf", "int8")[CONFIG])
    assert set(told["templates"]) == {"caption", "query", "detect"}
    assert told["special_tokens"] == {"bos": 5, "eos": 0, "answer": 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    config = tiny_config(bos_state="stored")
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(config, 4).items()}
    write_tensors(tmp_path / "half", config, tensors)
    write_tensors(tmp_path / "full", config, {name: tensor.float() for name, tensor in tensors.items()})
    half, full = (moonfile(tmp_path / name, tmp_path / f"{name}.mf", "float32") for name in ("half", "full"))
    assert half == full


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    export(MODEL_DIR, tmp_path / "demo.mf", "moonfile", "int8", lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {what for what, _ in told} == set(REQUIRED)


# ---- other formats --------------------------------------------------------------------------------------


def test_onnx_is_a_moonfile_in_pieces(tmp_path: Path) -> None:
    export(MODEL_DIR, tmp_path / "graphs", "onnx", "int8")
    assert {path.name: path.read_bytes() for path in (tmp_path / "graphs").iterdir()} == moonfile(
        MODEL_DIR, tmp_path / "demo.mf", "int8"
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_safetensors_are_upstreams(tmp_path: Path, tiny: TinyFactory, precision: ExportPrecision) -> None:
    directory = tiny("overlap", "prefix", "computed", "log2")  # what no moonfile holds
    export(directory, tmp_path / "out", "safetensors", precision)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CONFIG, TOKENIZER, "model.safetensors"}
    for name in (CONFIG, TOKENIZER):
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()
    dtype = torch.float32 if precision == "float32" else torch.float16
    wanted = {f"model.{name}": tensor.to(dtype) for name, tensor in load_file(directory / "model.safetensors").items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wanted[name]), name
    assert {"model.text.wte", "model.text.lm_head.weight", "model.vision.blocks.1.attn.qkv.bias"} <= found.keys()


@pytest.fixture
def ready_made(tmp_path: Path) -> Path:
    """An engine-onnx directory of demo-shapes."""
    records = moonfile(MODEL_DIR, tmp_path / "source.mf", "int8")
    directory = tmp_path / "ready-made"
    (directory / "graphs").mkdir(parents=True)
    for name, content in records.items():
        (directory / ("graphs" if name.endswith(".onnx") else "") / name).write_bytes(content)
    config = replace(load_config(MODEL_DIR), engine="onnx", bos_state="stored")
    (directory / CONFIG).write_text(config.to_json())
    return directory


def test_ready_made_graphs_go_out_as_they_are(ready_made: Path, tmp_path: Path) -> None:
    export(ready_made, tmp_path / "again.mf", "moonfile")
    assert (tmp_path / "again.mf").read_bytes() == (tmp_path / "source.mf").read_bytes()
    export(ready_made, tmp_path / "pieces", "onnx")
    assert len(list((tmp_path / "pieces").iterdir())) == len(REQUIRED)


def test_ready_made_graphs_have_their_precision_and_no_tensors(ready_made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exported as they are: leave out --precision"):
        export(ready_made, tmp_path / "again.mf", "moonfile", "float16")
    with pytest.raises(ModelError, match="made of graphs and has no tensors"):
        export(ready_made, tmp_path / "out", "safetensors")
    (ready_made / "graphs" / "coord_decoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"graphs/coord_decoder\.onnx: no such file"):
        export(ready_made, tmp_path / "again.mf", "moonfile")
    assert not (tmp_path / "again.mf").exists()


# ---- what is refused ------------------------------------------------------------------------------------


def test_what_the_client_would_do_otherwise_is_refused(tiny: TinyFactory, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        export(tiny("overlap", "prefix", "computed", "log2"), tmp_path / "tiny.mf", "moonfile")
    for words in ("cropped with overlap", "its BOS sees the picture", "on a log2 scale", "--format safetensors"):
        assert words in str(caught.value)
    config = tiny_config()
    without = replace(config, region=None)
    tensors = {name: x for name, x in random_tensors(config, 1).items() if not name.startswith("region.")}
    write_tensors(tmp_path / "without", without, tensors)
    with pytest.raises(ModelError, match="no region head"):
        export(tmp_path / "without", tmp_path / "tiny.mf", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["without"]


def test_a_graph_that_no_message_holds_is_refused_before_any_work(tmp_path: Path) -> None:
    """By the config alone: the tensors of this directory are not there."""
    assert TWO_BILLION.region is not None
    region = replace(TWO_BILLION.region, size_scale="linear")
    config = replace(TWO_BILLION, cropping="template", mask="causal", bos_state="stored", region=region)
    write_tensors(tmp_path / "two", config, {"vision.pos_emb": torch.zeros(1)})
    for precision in PRECISIONS[:2]:
        with pytest.raises(ModelError, match=r"text_decoder\.onnx would have \d\.\d GiB.*fits: --precision int8"):
            export(tmp_path / "two", tmp_path / "two.mf", "moonfile", precision)
    huge = replace(config, text=replace(config.text, vocab=2_000_000))
    (tmp_path / "two" / CONFIG).write_text(huge.to_json())
    with pytest.raises(ModelError, match="no precision fits"):
        export(tmp_path / "two", tmp_path / "two.mf", "moonfile", "int8")
    (tmp_path / "two" / CONFIG).write_text(config.to_json())
    with pytest.raises(ModelError, match=r"missing tensor text\.bos_kv"):
        export(tmp_path / "two", tmp_path / "two.mf", "moonfile", "int8")


@pytest.mark.parametrize("form", ["moonfile", "onnx", "safetensors"])
def test_nothing_is_overwritten(tmp_path: Path, form: Any) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="already exists"):
        export(MODEL_DIR, tmp_path / "mine", form)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("form", ["moonfile", "onnx", "safetensors"])
def test_a_place_that_is_none_is_named(tmp_path: Path, form: Any) -> None:
    with pytest.raises(UnavailableError, match="nowhere/out cannot be written: No such file or directory"):
        export(MODEL_DIR, tmp_path / "nowhere" / "out", form)


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / ".out.mf.partial").symlink_to("/dev/full")
    with pytest.raises(UnavailableError, match=r"out\.mf cannot be written: No space left on device"):
        export(MODEL_DIR, tmp_path / "out.mf", "moonfile")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    """A directory that fails late; whatever is in its parent afterwards was left behind."""
    config = tiny_config()
    tensors = random_tensors(config, 1)
    tensors["region.size_decoder.fc2.weight"] = torch.full((3, 4), 1e9)
    write_tensors(tmp_path / "model", config, tensors)
    yield tmp_path / "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["out.mf", "out.mf.gz"])
def test_a_damaged_model_leaves_no_file(damaged: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"size_decoder.fc2.weight has shape \(3, 4\), config.json says \(20, 20\)"):
        export(damaged, damaged.with_name(name), "moonfile")


def test_a_damaged_model_leaves_no_directory(damaged: Path) -> None:
    with pytest.raises(ModelError, match="has shape"):
        export(damaged, damaged.with_name("out"), "onnx")
    with pytest.raises(ModelError, match="has values that float16 cannot hold"):
        export(damaged, damaged.with_name("out"), "safetensors", "float16")


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = random_tensors(config, 1)
    tensors["text.blocks.1.mlp.fc2.weight"][0, 0] = 1e5
    write_tensors(tmp_path / "model", config, tensors)
    with pytest.raises(
        ModelError, match=r"text.blocks.1.mlp.fc2.weight has values that float16 cannot hold: use float32"
    ):
        export(tmp_path / "model", tmp_path / "out.mf", "moonfile", "float16")
