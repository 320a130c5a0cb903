"""A moonfile becomes a model directory that says what the original says; whatever is not understood is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file

from edge_daemon import demo
from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG, INITIAL_KV, TOKENIZER
from edge_daemon.models.container import REQUIRED, Record, write_records
from edge_daemon.models.export import export
from edge_daemon.models.folding import LAST_RESORT
from edge_daemon.models.moonfile import import_moonfile
from edge_daemon.models.store import Progress, Store, silent
from edge_daemon.models.unpacked import MOST_SMALL_BYTES, unpack
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream
from tests.model import graph_variants as variants
from tests.model.conftest import TinyFactory

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def moonfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo-shapes in float32."""
    path = tmp_path_factory.mktemp("moonfile") / "demo-shapes.mf"
    export(demo.MODEL_DIR, path, "moonfile", "float32")
    return path


@pytest.fixture(scope="module")
def tiny_graphs(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a tiny model, each a file."""
    directory = tmp_path_factory.mktemp("graphs") / "tiny"
    export(tiny("template", "causal", "stored"), directory, "onnx", "float32")
    return directory


@pytest.fixture
def records(tiny_graphs: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_graphs, tmp_path / "records"))


def packed(directory: Path, out: Path) -> Path:
    """A moonfile of the files in a directory."""
    contents = {name: (directory / name).read_bytes() for name in REQUIRED}
    write_records(out, [Record(name, len(content), iter([content])) for name, content in contents.items()])
    return out


def imported(source: Path, staging: Path) -> Path:
    staging.mkdir()
    convert(source, staging, silent)
    return staging


def convert(source: Path, staging: Path, progress: Progress) -> None:
    with TemporaryDirectory(dir=staging) as directory:
        import_moonfile(unpack(source, Path(directory), None, progress), staging, "imported", progress)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what comes out -------------------------------------------------------------------------------------


def test_the_model_directory_is_complete_and_nothing_else_is_there(moonfile: Path, tmp_path: Path) -> None:
    directory = imported(moonfile, tmp_path / "staging")
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config, wanted = load_config(directory), load_config(demo.MODEL_DIR)
    assert config == replace(
        wanted,
        name="imported",
        bos_state="stored",
        text=replace(wanted.text, max_context=2048),  # what the client has, where the graphs have no tables
        note="",
        provenance=config.provenance,
    )
    assert (directory / TOKENIZER).read_bytes() == (demo.MODEL_DIR / TOKENIZER).read_bytes()
    assert config.provenance == {
        "source": "demo-shapes.mf",
        "format": "moonfile",
        "sha256": sha256(moonfile),
        "unpacked_bytes": moonfile.stat().st_size,
        "rotary_layout": "halves of 16 to halves",
        "path": str(moonfile),
    }


def test_a_compressed_moonfile_is_known_by_what_is_in_it(moonfile: Path, tmp_path: Path) -> None:
    compressed = tmp_path / "demo-shapes.mf.gz"
    compressed.write_bytes(gzip.compress(moonfile.read_bytes(), 1))
    directory = imported(compressed, tmp_path / "staging")
    assert load_config(directory).provenance["sha256"] == sha256(moonfile)


def test_the_imported_model_says_what_the_original_says(moonfile: Path, tmp_path: Path) -> None:
    """The state of BOS went through float16, nothing else changed: the words must be the same."""
    original, copy = (Moondream(path) for path in (demo.MODEL_DIR, imported(moonfile, tmp_path / "staging")))
    for seed in range(3):
        colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((512, 384), Image.Resampling.NEAREST)
        for each in (original, copy):
            each.encode(picture)
        for length in ("short", "normal"):
            assert copy.caption(length, Sampling()).text == original.caption(length, Sampling()).text
        question = "what is in the middle?"
        assert copy.query(question, Sampling()).text == original.query(question, Sampling()).text


def test_the_state_of_bos_is_stored(tiny: TinyFactory, tiny_graphs: Path, tmp_path: Path) -> None:
    directory = imported(packed(tiny_graphs, tmp_path / "tiny.mf"), tmp_path / "staging")
    ours = load_file(directory / "model.safetensors")["text.bos_kv"]
    theirs = load_file(tiny("template", "causal", "stored") / "model.safetensors")["text.bos_kv"]
    assert torch.equal(ours, theirs.half().float())


def test_progress_goes_from_nothing_to_all(tiny_graphs: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    names: set[str] = set()

    def note(what: str, share: float) -> None:
        names.add(what)
        shares.append(share)

    (tmp_path / "staging").mkdir()
    with TemporaryDirectory() as directory:
        moonfile = unpack(packed(tiny_graphs, tmp_path / "tiny.mf"), Path(directory))
        import_moonfile(moonfile, tmp_path / "staging", "tiny", note)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert {"text_decoder.onnx", "text.lm_head.weight"} <= names


def test_a_client_config_may_hold_more_than_we_know(records: Path, tmp_path: Path) -> None:
    config = json.loads((records / CONFIG).read_text())
    config["templates"] |= {"point": None, "dance": [1, 2]}
    config["special_tokens"]["pad"] = 3
    config["model_version"] = 7
    (records / CONFIG).write_text(json.dumps(config))
    found = load_config(imported(packed(records, tmp_path / "x.mf"), tmp_path / "staging"))
    assert found.templates.point is None
    assert found.tokens.eos == config["special_tokens"]["eos"]


# ---- what is refused: records ---------------------------------------------------------------------------


def array(shape: tuple[int, ...], dtype: Any = np.float16, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype), **options)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """An array's header, and little behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(100)


def client_config(**changes: Any) -> bytes:
    whole: dict[str, Any] = {"special_tokens": {"bos": 5, "eos": 0}, "templates": {"caption": {"short": [9]}}}
    return json.dumps(whole | changes).encode()


BAD_RECORDS: dict[str, tuple[str, bytes, str]] = {
    "no array": (INITIAL_KV, b"nothing", "initial_kv_cache.npy is not an array of numbers"),
    "a pickled array": (INITIAL_KV, array((2,), object), "initial_kv_cache.npy is not an array of numbers: .*pickle"),
    "an array of another shape": (INITIAL_KV, array((3, 2, 4, 1, 8)), r"float16 \(3, 2, 4, 1, 8\); floats \(layers, 2"),
    "two positions of BOS": (INITIAL_KV, array((3, 2, 1, 4, 2, 8)), r"\(3, 2, 1, 4, 2, 8\); floats"),
    "integers": (INITIAL_KV, array((3, 2, 1, 4, 1, 8), np.int64), "int64"),
    "one layer less": (INITIAL_KV, array((2, 2, 1, 4, 1, 8)), r"text_decoder\.onnx: "),
    "a size that no memory holds": (
        INITIAL_KV,
        claiming((1 << 20, 2, 1, 1 << 20, 1, 64)),
        "kv_cache.npy is not an array of",
    ),
    "no JSON": (CONFIG, b"{", "config.json is not valid JSON"),
    "no object": (CONFIG, b"[]", "config.json has no object 'special_tokens'"),
    "no templates": (CONFIG, client_config(templates=None), "config.json has no object 'templates'"),
    "no end token": (CONFIG, client_config(special_tokens={"bos": 1}), r"no special_tokens\.eos"),
    "a token of no vocabulary": (CONFIG, client_config(special_tokens={"bos": 1, "eos": 96}), r"\[96\], outside"),
    "a template of words": (CONFIG, client_config(templates={"caption": {"short": ["a"]}}), "not of type int"),
    "no captions": (CONFIG, client_config(templates={"query": None}), "templates.caption"),
    "no way to caption": (CONFIG, client_config(templates={"caption": {}}), "no templates.caption"),
    "no graph": ("size_encoder.onnx", b"\xff" * 100, r"size_encoder\.onnx: no ONNX graph"),
    "an empty graph": ("coord_decoder.onnx", b"", r"coord_decoder\.onnx: no ONNX graph"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_record_that_is_not_what_it_should_be_is_named(case: str, records: Path, tmp_path: Path) -> None:
    name, content, message = BAD_RECORDS[case]
    (records / name).write_bytes(content)
    refused(packed(records, tmp_path / "bad.mf"), tmp_path / "state", message)


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, INITIAL_KV])
def test_small_records_are_small(name: str, records: Path, tmp_path: Path) -> None:
    """A few megabytes may unpack to gigabytes, which would be read into memory."""
    with (records / name).open("ab") as file:
        file.truncate(MOST_SMALL_BYTES + 1)
    refused(packed(records, tmp_path / "bad.mf.gz"), tmp_path / "state", f"{name} has 67108865 bytes; 67108864 are all")


def refused(source: Path, state_dir: Path, message: str) -> str:
    """Import into a store: the error, and that nothing at all is left behind."""
    store = Store(state_dir)
    with pytest.raises(ModelError, match=message) as caught, store.staging("imported") as staging:
        convert(source, staging, silent)
    assert [path for path in store.root.rglob("*") if not path.name.endswith(".lock")] == []
    return str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_moonfile_leaves_nothing(moonfile: Path, tmp_path: Path, share: float) -> None:
    short = tmp_path / "short.mf"
    short.write_bytes(moonfile.read_bytes()[: int(moonfile.stat().st_size * share)])
    refused(short, tmp_path / "state", r"short\.mf: record .* the file ends .* \(at byte")


def test_a_flipped_bit_of_a_compressed_moonfile_leaves_nothing(moonfile: Path, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(moonfile.read_bytes(), 1))
    content[len(content) // 2] ^= 16
    (tmp_path / "flipped.mf.gz").write_bytes(content)
    refused(tmp_path / "flipped.mf.gz", tmp_path / "state", "flipped.mf.gz: ")


# ---- what is refused: graphs ----------------------------------------------------------------------------


def another_eps(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 1e-6


def layer_scale(model: onnx.ModelProto) -> None:
    """A vector that multiplies the last residual, as some vision models have it."""
    edit = variants.Editing(model)
    last = [node for node in model.graph.node if edit.weight_of(node)][-1]
    add = next(node for node in model.graph.node if last.output[0] in node.input)
    out, inside = add.output[0], edit.value()
    width = edit.array(edit.weight_of(last)).shape[1]
    add.output[0] = inside
    vector = edit.constant(np.full(width, 1.5, np.float32))
    where = list(model.graph.node).index(add) + 1
    model.graph.node.insert(where, helper.make_node("Mul", [inside, vector], [out]))


def replaced_numbers(old: float, new: float) -> variants.Change:
    """Every constant of one number that is `old`."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size == 1 and np.allclose(values, old, rtol=1e-6):
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, new), tensor.name))

    return change


def sigmoid(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Tanh":
            node.op_type = "Sigmoid"


def keys_and_values_swapped(model: onnx.ModelProto) -> None:
    """q, v, k in the rows of every qkv."""
    for tensor in model.graph.initializer:
        if ".attn.qkv." in tensor.name:
            q, k, v = np.split(numpy_helper.to_array(tensor), 3, axis=-1)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([q, v, k], axis=-1), tensor.name))
    picks = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0].startswith("Transpose")]
    for _, key, value in zip(*[iter(picks)] * 3, strict=True):
        key.input[1], value.input[1] = value.input[1], key.input[1]


def faster_rotation(model: onnx.ModelProto) -> None:
    """Base 100 for the frequencies."""
    for tensor in model.graph.initializer:
        if tensor.name == "rotary_frequencies":
            values = np.sqrt(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def no_numbers(model: onnx.ModelProto) -> None:
    """Damage that makes every comparison false."""
    for tensor in model.graph.initializer:
        if tensor.name == "text.blocks.0.attn.qkv.bias":
            values = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def deaf_attention(model: onnx.ModelProto) -> None:
    """The first block's attention adds nothing, so nothing tells whom it attends to."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("text.blocks.0.attn.proj."):
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))


def no_positions(model: onnx.ModelProto) -> None:
    """Without the position embedding."""
    add = next(node for node in model.graph.node if "vision.pos_emb" in node.input)
    add.op_type, add.input[:] = "Identity", add.input[:1]
    variants.Editing(model).drop_unused()


def columns_first(model: onnx.ModelProto) -> None:
    """Patches column by column."""
    turn = next(node for node in model.graph.node if node.op_type == "Transpose")
    turn.attribute[0].ints[:] = [0, 4, 2, 1, 3, 5]


def a_branch(model: onnx.ModelProto) -> None:
    out = model.graph.output[0]
    inside = helper.make_graph([helper.make_node("Identity", ["way"], ["chosen"])], "inside", [], [out.__class__()])
    inside.output[0].CopyFrom(out)
    inside.output[0].name = "chosen"
    last = next(node for node in model.graph.node if out.name in node.output)
    last.output[0] = "way"
    truth = variants.Editing(model).constant(np.array(True))
    model.graph.node.append(helper.make_node("If", [truth], [out.name], then_branch=inside, else_branch=inside))


def outside_numbers(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def hidden_behind_the_norm(model: onnx.ModelProto) -> None:
    cast = next(node for node in model.graph.node if node.output[0] == "hidden")
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    pick = next(node for node in model.graph.node if node.output[0] == norm.input[0])
    norm.input[0], pick.input[0], cast.input[0] = pick.input[0], norm.output[0], norm.output[0]
    head = next(node for node in model.graph.node if node.op_type == "MatMul" and norm.output[0] in node.input)
    head.input[0] = pick.output[0]
    nodes = [node for node in model.graph.node if node not in (pick, norm, cast)]
    where = nodes.index(head)
    ordered = [*nodes[:where], norm, cast, pick, *nodes[where:]]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


STRANGE: dict[str, tuple[str, variants.Change, str]] = {
    "another epsilon": ("vision_encoder", another_eps, r"LayerNormalization → .* epsilon 1e-06; 1e-05 is expected"),
    "a scale of its own": ("vision_projection", layer_scale, r"Mul → .* with the constant .* \(32,\)"),
    "another GELU": ("text_decoder", replaced_numbers(0.044715, 0.08), "GELU is expected; .* off by"),
    "half a GELU": ("coord_decoder", replaced_numbers(1.0, 0.5), "GELU is expected; .* off by"),
    "a sigmoid": ("size_decoder", sigmoid, "two layers with GELU between them are expected, found: 2 linear, 0 norm"),
    "keys and values swapped": ("text_decoder", keys_and_values_swapped, "values of block 0 are not the last third"),
    "another rotation": ("text_decoder", faster_rotation, "rotary layout cannot be settled .* halves of 4 to halves"),
    "no numbers": ("text_decoder", no_numbers, "values of block 0 .* error inf"),
    "deaf attention": ("text_decoder", deaf_attention, "attention mask cannot be settled .* causal: .*, prefix: "),
    "no positions": ("vision_encoder", no_positions, "one position embedding .* found: none"),
    "columns first": ("vision_encoder", columns_first, "pixels of one patch after the other"),
    "a branch": ("vision_projection", a_branch, "If → output branches; a graph without control flow is right"),
    "numbers elsewhere": ("text_encoder", outside_numbers, "numbers of text.wte lie in another file"),
    "hidden behind the norm": ("text_decoder", hidden_behind_the_norm, "hidden is expected before the last norm"),
    "another wave": ("coord_encoder", replaced_numbers(2 * np.pi, 5.0), "Fourier features cannot be settled"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_graph_that_is_not_understood_is_named_with_the_way_that_works(
    case: str, records: Path, tmp_path: Path
) -> None:
    name, change, message = STRANGE[case]
    model = onnx.load(records / f"{name}.onnx", load_external_data=False)
    change(model)
    (records / f"{name}.onnx").write_bytes(model.SerializeToString())
    error = refused(packed(records, tmp_path / "strange.mf"), tmp_path / "state", rf"{name}\.onnx: .*{message}")
    assert error.endswith(LAST_RESORT)


@pytest.mark.parametrize("name", ["vision_projection", "text_encoder", "coord_decoder", "size_encoder"])
def test_a_graph_of_another_model_does_not_fit(name: str, records: Path, tmp_path: Path) -> None:
    export(demo.MODEL_DIR, tmp_path / "demo", "onnx", "float32")
    shutil.copyfile(tmp_path / "demo" / f"{name}.onnx", records / f"{name}.onnx")
    error = refused(packed(records, tmp_path / "mixed.mf"), tmp_path / "state", rf"{name}\.onnx: ")
    assert error.endswith(LAST_RESORT)


def test_two_graphs_under_each_others_names(records: Path, tmp_path: Path) -> None:
    one, other = records / "coord_decoder.onnx", records / "vision_encoder.onnx"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    refused(packed(records, tmp_path / "swapped.mf"), tmp_path / "state", r"vision_encoder\.onnx: ")


def test_no_way_of_flipping_bits_in_a_graph_is_a_crash(records: Path, tmp_path: Path) -> None:
    """Damage that a moonfile cannot show, having no checksums: refused, or wrong numbers for the proof to find."""
    path = records / "text_decoder.onnx"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for index in range(20):
        content = bytearray(whole)
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            imported(packed(records, tmp_path / f"{index}.mf"), tmp_path / f"staging-{index}")
        except ModelError:
            refusals += 1
    assert refusals
