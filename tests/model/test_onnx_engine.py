"""The graphs of a moonfile as an engine: what torch says, within the same bounds, and every damage named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from edge_daemon.choices import ExportPrecision
from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import CaptionError, ModelError, UnavailableError
from edge_daemon.model_files import GRAPHS, INITIAL_KV
from edge_daemon.moondream.config import Mask, load_config
from edge_daemon.moondream.footprint import footprint
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Answer, Moondream, open_parts
from edge_daemon.moondream.onnx_parts import OnnxText
from edge_daemon.moondream.parts import ManyTextsPart
from tests.model.checkpoints import HALF_BILLION, write_model
from tests.model.onnx_models import as_graphs

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]
LONG = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo-shapes as graphs."""
    return as_graphs(MODEL_DIR, tmp_path_factory.mktemp("shapes") / "demo-shapes")


@pytest.fixture
def graphs(tiny: TinyFactory, tmp_path: Path) -> Path:
    """A tiny model as graphs, to be damaged."""
    return as_graphs(tiny(), tmp_path / "tiny")


@dataclass(frozen=True)
class Said:
    """What can be compared of an answer, and the tokens that were heard on the way."""

    text: str
    tokens: list[int]
    finish_reason: str


def said(ask: Callable[..., Answer], text: str, sampling: Sampling = LONG) -> Said:
    tokens: list[int] = []
    answer = ask(text, sampling, tokens.append)
    return Said(answer.text, tokens, answer.finish_reason)


def everything(model: Moondream, objects: int = 1) -> list[object]:
    """Answers, and the first object: in a random model dozens are found, and float16 decides a tie sooner or later."""
    words: list[object] = [said(model.caption, length) for length in model.config.templates.caption]
    words.append(said(model.query, "red star on the road"))
    return [*words, model.detect("star")[:objects], model.point("sky")[:objects]]


# -- the same answers


@pytest.mark.parametrize("bos_state", ["stored", "computed"])
@pytest.mark.parametrize("size", [(30, 30), (41, 90)], ids=["one crop", "tiles"])
def test_every_task_is_the_torch_one(
    tiny: TinyFactory, tmp_path: Path, noise: PictureFactory, bos_state: str, size: tuple[int, int]
) -> None:
    source = tiny(bos_state=bos_state, own_bos=bos_state == "computed")
    torch_model, onnx_model = Moondream(source), Moondream(as_graphs(source, tmp_path / "graphs"))
    different = []
    for seed in range(3):
        for model in (torch_model, onnx_model):
            model.encode(noise(*size, seed))
        assert everything(onnx_model) == everything(torch_model)
        different.append(str(everything(onnx_model)))
    assert len(set(different)) == 3, "the pictures make no difference: this test shows nothing"


def test_several_are_asked_one_after_the_other(tiny: TinyFactory, graphs: Path, noise: PictureFactory) -> None:
    """A graph takes what it is given for one text."""
    asked = [("caption", "short"), ("query", "red star"), ("caption", "endless"), ("query", " sky")]
    answers = []
    for directory in (tiny(), graphs):
        model = Moondream(directory)
        model.encode(noise(30, 30))
        assert isinstance(model.text, ManyTextsPart) is (directory != graphs)
        found = model.ask(asked, Sampling(9))
        answers.append([(a.text, a.finish_reason) if isinstance(a, Answer) else str(a) for a in found])
    assert answers[0] == answers[1]
    assert len({str(answer) for answer in answers[0]}) == len(asked)


def test_every_part_gives_the_same_numbers(tiny: TinyFactory, graphs: Path, noise: PictureFactory) -> None:
    """Fed with the same, step by step; what passes between graphs is float16, 11 bits of it."""
    torch_model, onnx_model = Moondream(tiny()), Moondream(graphs)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        embeddings = [model.image_embeddings(noise(50, 45)) for model in (torch_model, onnx_model)]
        assert apart(*embeddings) < 0.01
        for model in (torch_model, onnx_model):
            model.text.extend(model.cache, model._prefix(embeddings[0]))
        for length in (4, 1, 1, 7):
            tokens = torch.randint(0, 96, (1, length), generator=generator)
            assert apart(torch_model.text.embed(tokens), onnx_model.text.embed(tokens)) < 0.002
            steps = [m.text.extend(m.cache, torch_model.text.embed(tokens)) for m in (torch_model, onnx_model)]
            assert apart(*(step.logits for step in steps)) < 0.02
            assert apart(*(step.hidden for step in steps)) < 0.02
            assert apart(torch_model.cache.filled(), onnx_model.cache.filled()) < 0.02
            for read, given in (("coord", torch.rand(1, 1, 1)), ("size", torch.rand(1, 1, 2))):
                found = [getattr(m.region, f"{read}_logits")(steps[0].hidden) for m in (torch_model, onnx_model)]
                assert apart(*found) < 0.02
                encoded = [getattr(m.region, f"encode_{read}")(given) for m in (torch_model, onnx_model)]
                assert encoded[0].shape == encoded[1].shape == (1, 1, 32)
                assert apart(*encoded) < 0.01


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max())


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_the_mask_is_in_the_graphs(tiny: TinyFactory, tmp_path: Path, noise: PictureFactory, mask: Mask) -> None:
    """Also where config.json says another one: nobody asks it."""
    source = tiny(mask=mask, bos_state="stored")
    target = as_graphs(source, tmp_path / "graphs")
    config = replace(load_config(target), mask="prefix" if mask == "causal" else "causal")
    (target / "config.json").write_text(config.to_json())
    torch_model, onnx_model = Moondream(source), Moondream(target)
    for model in (torch_model, onnx_model):
        model.encode(noise(30, 30))
    assert everything(onnx_model) == everything(torch_model)


@pytest.mark.parametrize("size", [(512, 384), (773, 767)], ids=str)
def test_demo_shapes_says_the_same_words(shapes: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    torch_model, onnx_model = Moondream(MODEL_DIR), Moondream(shapes)
    for path, _ in sample_pictures(tmp_path, 4, seed=11):
        picture = Image.open(path).convert("RGB").resize(size)
        answers = []
        for model in (torch_model, onnx_model):
            model.encode(picture)
            words = [said(model.caption, "short", Sampling()), said(model.query, "How many shapes are there?")]
            answers.append((words, model.detect("circle")))
        (torch_words, torch_boxes), (onnx_words, onnx_boxes) = answers
        assert onnx_words == torch_words
        assert onnx_boxes == torch_boxes


def test_int8_graphs_say_nearly_always_the_same(tmp_path: Path) -> None:
    """Activations are quantized as well, so a close decision may fall the other way."""
    torch_model, onnx_model = Moondream(MODEL_DIR), Moondream(as_graphs(MODEL_DIR, tmp_path / "int8", "int8"))
    same = 0
    samples = sample_pictures(tmp_path, 10, seed=12)
    for path, _ in samples:
        picture = Image.open(path).convert("RGB")
        for model in (torch_model, onnx_model):
            model.encode(picture)
        same += said(onnx_model.caption, "short", Sampling()) == said(torch_model.caption, "short", Sampling())
    assert same >= 8


# -- the same bounds


@pytest.mark.parametrize("free", [0, 1, 4])
def test_a_small_cache_ends_an_answer_and_a_search_alike(
    tiny: TinyFactory, tmp_path: Path, noise: PictureFactory, free: int
) -> None:
    source = tiny()
    answers = []
    for directory in (source, as_graphs(source, tmp_path / "graphs")):
        model = Moondream(directory, kv_positions=101 + 3 + free)
        model.encode(noise(30, 30))
        answers.append((said(model.caption, "short"), model.detect("star"), model.point("star")))
        with pytest.raises(CaptionError, match=rf"prompt takes 18 positions, .* {3 + free} of {104 + free} left"):
            model.query(" red" * 14, LONG)
    assert answers[0] == answers[1]
    assert (answers[1][0].finish_reason, len(answers[1][0].tokens)) == ("memory", free + 1)


def test_length_and_repetition_end_it_too(tiny: TinyFactory, graphs: Path, noise: PictureFactory) -> None:
    model = Moondream(graphs)
    model.encode(noise(30, 30))
    whole = said(model.caption, "short")
    assert said(model.caption, "short", Sampling(2)) == replace(
        whole, text=model.tokenizer.decode(whole.tokens[:2]).strip(), tokens=whole.tokens[:2], finish_reason="length"
    )
    proto = onnx.load(graphs / GRAPHS / "text_decoder.onnx")
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "text.lm_head.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[40] += 1000
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(proto, graphs / GRAPHS / "text_decoder.onnx")
    model = Moondream(graphs)
    model.encode(noise(30, 30))
    assert model.caption("short", Sampling(60)).finish_reason == "repetition"


def test_the_cache_has_the_element_type_of_the_graph(graphs: Path, tiny: TinyFactory) -> None:
    onnx_model, torch_model = Moondream(graphs, kv_positions=150), Moondream(tiny(), kv_positions=150)
    assert onnx_model.cache._kv.dtype == torch.float16
    assert onnx_model.cache.size_bytes * 2 == torch_model.cache.size_bytes


def test_the_cache_is_never_reallocated(graphs: Path, noise: PictureFactory) -> None:
    model = Moondream(graphs, kv_positions=150)
    model.encode(noise(30, 30))
    assert isinstance(model.text, OnnxText)
    addresses = []
    for _ in range(2):
        everything(model)
        model.encode(noise(30, 30, 1))
        addresses.append((model.cache._kv.data_ptr(), model.cache._packed.data_ptr()))
    assert addresses[0] == addresses[1]
    assert model.cache._packed.numel() == model.cache._kv.numel()


# -- opened when first needed, and refused by name


def test_parts_are_opened_when_first_needed(graphs: Path, noise: PictureFactory) -> None:
    model = Moondream(graphs)
    assert not {"vision", "text", "region"} & vars(model).keys()
    model.load()
    model.encode(noise(30, 30))
    assert {"vision", "text"} == {"vision", "text", "region"} & vars(model).keys()
    model.detect("star")
    assert "region" in vars(model)


Edit = Callable[[onnx.GraphProto], None]


def edited(path: Path, edit: Edit) -> None:
    proto = onnx.load(path)
    edit(proto.graph)
    onnx.save(proto, path)


def rename_output(graph: onnx.GraphProto) -> None:
    old = graph.output[0].name
    graph.node.append(onnx.helper.make_node("Identity", [old], ["states"]))
    graph.output[0].name = "states"


def drop_output(graph: onnx.GraphProto) -> None:
    del graph.output[1]


def rename_input(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.input[:] = ["pixels" if name == "input" else name for name in node.input]
    graph.input[0].name = "pixels"


def fix_a_free_length(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def take_doubles(graph: onnx.GraphProto) -> None:
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["cast" if given == name else given for given in node.input]
    graph.node.insert(0, onnx.helper.make_node("Cast", [name], ["cast"], to=onnx.TensorProto.FLOAT16))
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("text_decoder", rename_output, "missing output hidden (1, 's', 32)"),
        ("text_decoder", drop_output, "missing output new_kv_cache (3, 2, 1, 4, 's', 8)"),
        ("vision_encoder", rename_input, "missing input input ('n', 3, 30, 30)\n  unexpected input pixels"),
        ("vision_encoder", fix_a_free_length, "input input has shape (1, 3, 30, 30), expected ('n', 3, 30, 30)"),
        ("vision_projection", take_doubles, "input input is a tensor(double), which is not one of tensor(float16)"),
    ],
)
def test_a_foreign_interface_is_refused_when_it_is_loaded(graphs: Path, name: str, edit: Edit, words: str) -> None:
    path = graphs / GRAPHS / f"{name}.onnx"
    edited(path, edit)
    with pytest.raises(ModelError) as caught:
        Moondream(graphs).load()
    assert str(caught.value).startswith(f"{path} does not fit its config.json:\n  ")
    assert words in str(caught.value)


def test_a_graph_of_another_model_is_refused(graphs: Path, shapes: Path) -> None:
    path = graphs / GRAPHS / "text_decoder.onnx"
    shutil.copy(shapes / GRAPHS / "text_decoder.onnx", path)
    with pytest.raises(ModelError, match=r"text_decoder\.onnx does not fit .*\n.*input_embeds has shape .*, expected"):
        Moondream(graphs).load()


def test_a_graph_in_anothers_place_is_refused(graphs: Path) -> None:
    shutil.copy(graphs / GRAPHS / "vision_projection.onnx", graphs / GRAPHS / "vision_encoder.onnx")
    with pytest.raises(ModelError, match=r"vision_encoder\.onnx does not fit"):
        Moondream(graphs).load()


@pytest.mark.parametrize("name", ["vision_encoder", "vision_projection", "text_encoder", "text_decoder"])
@pytest.mark.parametrize("keep", [0, 40, 3000])
def test_a_damaged_graph_is_refused_by_name(graphs: Path, name: str, keep: int) -> None:
    path = graphs / GRAPHS / f"{name}.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{name}\.onnx"):
        Moondream(graphs).load()


def test_a_missing_graph_is_named(graphs: Path) -> None:
    (graphs / GRAPHS / "vision_projection.onnx").unlink()
    with pytest.raises(ModelError, match=r"vision_projection\.onnx: no such file"):
        Moondream(graphs).load()
    (graphs / GRAPHS / "text_decoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"text_decoder\.onnx: No such file"):
        Moondream(graphs)


def test_an_output_that_lies_about_its_shape_is_noticed(graphs: Path, noise: PictureFactory) -> None:
    """Its declaration says what we want, and more positions come out."""

    def lie(graph: onnx.GraphProto) -> None:
        graph.node.append(onnx.helper.make_node("Concat", [graph.output[0].name] * 2, ["twice"], axis=0))
        graph.output[0].name = "twice"

    edited(graphs / GRAPHS / "vision_encoder.onnx", lie)
    model = Moondream(graphs)
    model.load()
    with pytest.raises(ModelError, match=r"vision_encoder\.onnx: its output has shape \(2, 100, 24\), expected \(1, "):
        model.encode(noise(30, 30))
    with pytest.raises(CaptionError, match="no picture has been encoded"):
        model.caption("short", LONG)


def test_a_damaged_region_head_does_not_keep_from_captioning(graphs: Path, noise: PictureFactory) -> None:
    (graphs / GRAPHS / "size_decoder.onnx").write_bytes(b"\x08\x08")
    model = Moondream(graphs)
    model.encode(noise(30, 30))
    assert model.caption("short", LONG).tokens
    with pytest.raises(ModelError, match=r"size_decoder\.onnx"):
        model.detect("star")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 2, 1, 4, 2, 8), np.float16), r"has shape \(3, 2, 1, 4, 2, 8\) of float16, expected \(3, 2, 1"),
        (np.zeros((3, 2, 1, 4, 1, 8), np.float64), "of float64, expected"),
        (np.zeros((3, 2, 1, 4, 1, 8), np.float32), r"text_decoder\.onnx: kv_cache is of torch\.float16, .*float32"),
        (np.full((3, 2, 1, 4, 1, 8), None), "not a readable NumPy file"),
    ],
    ids=["shape", "type", "other than the graph", "pickle"],
)
def test_an_initial_cache_that_does_not_fit_is_refused(graphs: Path, array: np.ndarray, words: str) -> None:
    np.save(graphs / INITIAL_KV, array, allow_pickle=True)
    with pytest.raises(ModelError, match=words):
        Moondream(graphs).load()


def test_without_onnx_runtime_it_is_told_what_to_install(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what Python itself does for a module that is not there
    with pytest.raises(UnavailableError, match=r"pip install 'edge-daemon\[models\]'") as caught:
        Moondream(graphs).load()
    assert not isinstance(caught.value, ModelError)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", None), ("cpu", torch.float32)])
def test_graphs_choose_neither_device_nor_dtype(graphs: Path, device: str, dtype: torch.dtype | None) -> None:
    config = load_config(graphs)
    with pytest.raises(ModelError, match="run on the CPU and in the precision that they hold"):
        open_parts(graphs, config, device, dtype)


# -- memory

MEASURE = """\
import json, re, sys
from pathlib import Path
import numpy as np, onnxruntime, torch
from PIL import Image
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream

def kib(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = kib("VmRSS")
model = Moondream(Path(sys.argv[1]), kv_positions=int(sys.argv[2]))
model.load()
model.encode(Image.new("RGB", (773, 773)))
model.caption("short", Sampling(4))
print((kib("VmHWM") - before) * 1024)
"""


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The width of the 0.5B, with few layers and words."""
    config = replace(
        HALF_BILLION,
        vision=replace(HALF_BILLION.vision, layers=2),
        text=replace(HALF_BILLION.text, layers=4, vocab=8000),
        templates=replace(HALF_BILLION.templates, caption={"short": [5, 6]}, query=None, detect=None),
        tokens=replace(HALF_BILLION.tokens, bos=1, eos=2),
    )
    return write_model(tmp_path_factory.mktemp("full-width"), config)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_the_footprint_is_an_upper_bound(full_width: Path, tmp_path: Path, precision: ExportPrecision) -> None:
    directory = as_graphs(full_width, tmp_path / "graphs", precision)
    positions = 1024
    command = [sys.executable, "-c", MEASURE, str(directory), str(positions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken_bytes = json.loads(done.stdout)
    needed = footprint(directory, load_config(directory))
    work_bytes = max(needed.vision_activation_bytes, needed.text_activation_bytes)
    weights_bytes = needed.vision_bytes + needed.text_bytes + needed.region_bytes
    promised = weights_bytes + work_bytes + positions * needed.bytes_per_position
    print(f"\n{precision}: {taken_bytes >> 20} MiB taken, {promised >> 20} MiB promised")
    assert taken_bytes <= promised <= 3 * taken_bytes
