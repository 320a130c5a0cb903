"""Whatever a source is, what comes of it in the store is whole and proven, or is not there."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from edge_daemon import demo
from edge_daemon.choices import Engine
from edge_daemon.demo.evaluate import shrunk
from edge_daemon.demo.language import short_caption
from edge_daemon.demo.scenes import draw, random_scene
from edge_daemon.errors import ConfigError, EdgeDaemonError, ModelError
from edge_daemon.models.container import GRAPH_NAMES, Record, write_records
from edge_daemon.models.export import export
from edge_daemon.models.importing import import_source, verify
from edge_daemon.models.moonfile import import_moonfile
from edge_daemon.models.store import Progress, Store, sha256_of
from edge_daemon.models.unpacked import Unpacked
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream
from tests.model.conftest import PictureFactory
from tests.model.moonfiles import digest_of, read_records

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def moonfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo-shapes in int8, packed."""
    path = tmp_path_factory.mktemp("importing") / "demo.mf.gz"
    export(demo.MODEL_DIR, path, "moonfile", "int8")
    return path


@pytest.fixture(scope="module")
def imported(moonfile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of it, engine torch."""
    store = Store(tmp_path_factory.mktemp("state"))
    origin = {"repository": "somebody/something", "commit": "0123abcd"}
    told: list[tuple[str, float]] = []
    directory = import_source(moonfile, store, "shapes", origin=origin, progress=lambda *what: told.append(what))
    shares = [share for _, share in told]
    assert shares == sorted(shares), "a bar that goes back tells nothing"
    assert shares[0] < 0.1
    assert 0.9 < shares[-1] <= 1.0
    assert {"unpacking text_decoder.onnx", "comparing: our text"} <= {what for what, _ in told}
    return directory


def left_in(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*")) if store.root.exists() else []


def test_a_moonfile_becomes_float32_weights_with_their_proof(imported: Path, moonfile: Path) -> None:
    assert sorted(path.name for path in imported.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config = load_config(imported)
    assert (config.name, config.engine, config.bos_state) == ("shapes", "torch", "stored")
    told = config.provenance
    assert (told["source"], told["format"], told["repository"]) == ("demo.mf.gz", "moonfile", "somebody/something")
    assert told["sha256"] == digest_of(moonfile).sha256
    assert told["files"] == {name: sha256_of(imported / name) for name in ("model.safetensors", "tokenizer.json")}
    assert told["proof"]["passed"]
    assert told["proof"]["greedy_steps"] >= 192


def test_both_engines_say_the_same(imported: Path, moonfile: Path, tmp_path: Path) -> None:
    onnx = import_source(moonfile, Store(tmp_path), "graphs", engine="onnx")
    assert sorted(path.name for path in (onnx / "graphs").iterdir()) == sorted(f"{name}.onnx" for name in GRAPH_NAMES)
    config = load_config(onnx)
    assert (config.engine, config.provenance["precision"]) == ("onnx", "int8")
    assert set(config.provenance["files"]) == {
        *("tokenizer.json", "initial_kv_cache.npy"),
        *(f"graphs/{name}.onnx" for name in GRAPH_NAMES),
    }
    said = []
    for directory in (imported, onnx):
        model = Moondream(directory, 256)
        model.encode(shrunk(draw(random_scene(random.Random(3)))))
        said.append(model.caption("short", Sampling(20)).text)
    assert said == [short_caption(random_scene(random.Random(3)))] * 2
    assert verify(onnx, None)["note"].startswith("nothing was converted")


def test_a_wrong_hash_names_both_and_leaves_nothing(moonfile: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ModelError) as refused:
        import_source(moonfile, store, "shapes", expected_sha256="00ff")
    assert "00ff" in str(refused.value)
    assert digest_of(moonfile).sha256 in str(refused.value)
    assert left_in(store) == []


def test_an_unproven_conversion_leaves_nothing(moonfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own is put in behind the conversion; everything else is the real thing."""

    def faulty(source: Unpacked, staging: Path, name: str, progress: Progress) -> None:
        import_moonfile(source, staging, name, progress)
        weights = staging / "model.safetensors"
        tensors = load_file(weights)
        tensors["text.blocks.0.mlp.fc1.weight"] *= 1.5
        save_file(tensors, weights)

    monkeypatch.setattr("edge_daemon.models.importing.import_moonfile", faulty)
    store = Store(tmp_path)
    with pytest.raises(ModelError, match=r"text_decoder.*relative error"):
        import_source(moonfile, store, "shapes")
    assert left_in(store) == []


def test_a_safetensors_checkpoint_comes_in(tmp_path: Path, noise: PictureFactory) -> None:
    export(demo.MODEL_DIR, tmp_path / "checkpoint", "safetensors", "float16")
    directory = import_source(tmp_path / "checkpoint", Store(tmp_path), "again", origin={"commit": "abcd"})
    told = load_config(directory).provenance
    assert (told["format"], told["commit"]) == ("safetensors", "abcd")
    assert told["files"]["model.safetensors"] == sha256_of(directory / "model.safetensors")
    model = Moondream(directory)
    model.encode(noise(64, 64))
    assert model.caption("short", Sampling(5)).tokens
    assert verify(directory, None)["note"].startswith("nothing was converted")


def no_such(directory: Path) -> Path:
    return directory / "nothing.mf"


def pickled(directory: Path) -> Path:
    (directory / "model.bin").write_bytes(b"PK\x03\x04 a zip")
    return directory / "model.bin"


def text(directory: Path) -> Path:
    (directory / "model.mf").write_text("<html>not found</html>")
    return directory / "model.mf"


def empty(directory: Path) -> Path:
    (directory / "model.mf").touch()
    return directory / "model.mf"


def no_moonfile_inside(directory: Path) -> Path:
    (directory / "model.mf.gz").write_bytes(gzip.compress(b"something else"))
    return directory / "model.mf.gz"


REFUSED = {
    "nothing there": (no_such, "No such file"),
    "a pickle": (pickled, "pickle"),
    "a web page": (text, "begins with b'<htm'"),
    "nothing in it": (empty, "begins with b''"),
    "another gzip file": (no_moonfile_inside, "MOON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, why = REFUSED[case]
    store = Store(tmp_path / "state")
    source = make(tmp_path)
    with pytest.raises(EdgeDaemonError) as refused:
        import_source(source, store, "model")
    assert why in str(refused.value)
    assert source.name in str(refused.value)
    assert left_in(store) == []


WORDS: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[: len(text) // 2], "tokenizer.json cannot be used: EOF while parsing"),
    "empty": (lambda text: "", "tokenizer.json cannot be used: EOF while parsing"),
    "a token too many": (
        lambda text: text.replace('"vocab":{', '"vocab":{"never":100000,', 1),
        "tokenizer.json has tokens up to number 100000, the weights have",
    ),
}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("case", WORDS)
def test_a_tokenizer_that_does_not_fit_is_refused(case: str, engine: Engine, moonfile: Path, tmp_path: Path) -> None:
    """It goes through no conversion, so that the proof says nothing of it."""
    change, message = WORDS[case]
    contents = {record.name: record.read() for record in read_records(moonfile)}
    whole = json.dumps(json.loads(contents["tokenizer.json"]), separators=(",", ":"))
    contents["tokenizer.json"] = change(whole).encode()
    assert contents["tokenizer.json"] != whole.encode()
    source = tmp_path / "foreign.mf"
    write_records(source, [Record(name, len(content), iter([content])) for name, content in contents.items()])
    store = Store(tmp_path / "state")
    with pytest.raises(ModelError, match=f"foreign.mf: {message}"):
        import_source(source, store, "shapes", engine=engine)
    assert left_in(store) == []


def test_safetensors_have_no_graphs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a moonfile has graphs"):
        import_source(demo.MODEL_DIR, Store(tmp_path), "model", engine="onnx")


# -- verify


@pytest.fixture
def copy(imported: Path, tmp_path: Path) -> Path:
    """Of the imported model, to be changed."""
    return Path(shutil.copytree(imported, tmp_path / "models" / "shapes"))


def test_the_proof_is_repeated(copy: Path, moonfile: Path) -> None:
    report = verify(copy, None)
    first = load_config(copy).provenance["proof"]
    assert report["model"] == "shapes"
    assert report["files"] == ["model.safetensors", "tokenizer.json"]
    assert report["proof"]["passed"]
    for then, now in zip(first["components"], report["proof"]["components"], strict=True):
        assert now["component"] == then["component"]
        assert now["relative_error"] == pytest.approx(then["relative_error"], rel=0.5, abs=1e-3)
    assert report["note"] == ""
    assert [path.name for path in copy.parent.iterdir()] == ["shapes"]


def test_whoever_may_read_a_model_may_verify_it(
    copy: Path, moonfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is root's; and what a killed one leaves is where the system sweeps."""
    monkeypatch.setenv("TMPDIR", str(scratch := tmp_path / "scratch"))
    scratch.mkdir()
    seen: set[str] = set()

    def look(what: str, share: float) -> None:
        seen.update(path.name.rstrip("abcdefghijklmnopqrstuvwxyz0123456789_") for path in scratch.iterdir())
        assert [path.name for path in copy.parent.iterdir()] == ["shapes"]

    verify(copy, moonfile, look)
    assert seen == {"edge-daemon-verify-"}
    assert list(scratch.iterdir()) == []


def test_a_moved_moonfile_is_asked_for(copy: Path, moonfile: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["provenance"]["path"] = str(tmp_path / "gone.mf.gz")
    (copy / "config.json").write_text(json.dumps(config))
    report = verify(copy, None)
    assert report["proof"] is None
    assert "--source FILE" in report["note"]
    assert verify(copy, moonfile)["proof"]["passed"]


def test_a_changed_file_is_named_with_both_hashes(copy: Path) -> None:
    before = sha256_of(copy / "model.safetensors")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        verify(copy, None)
    assert "model.safetensors" in str(refused.value)
    assert before in str(refused.value)
    assert sha256_of(copy / "model.safetensors") in str(refused.value)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: sha256 no such file"):
        verify(copy, None)


def test_another_moonfile_is_refused(copy: Path, tmp_path: Path) -> None:
    export(demo.MODEL_DIR, tmp_path / "other.mf", "moonfile", "float16")
    with pytest.raises(ModelError, match="the right one is") as refused:
        verify(copy, tmp_path / "other.mf")
    assert digest_of(tmp_path / "other.mf").sha256 in str(refused.value)


def test_a_model_of_somebodys_own_has_nothing_to_verify() -> None:
    with pytest.raises(ModelError, match="no provenance"):
        verify(demo.MODEL_DIR, None)
