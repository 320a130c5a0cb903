"""The model store: a model is there whole or not at all, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_daemon import models
from edge_daemon.demo import MODEL_DIR
from edge_daemon.errors import ConfigError, EdgeDaemonError, ModelError, UnavailableError
from edge_daemon.models.store import LOCK, Store, free_on_disk

ROOT = Path(__file__).parents[2]
MODEL = {"config.json": '{"engine": "torch"}', "tokenizer.json": "{}", "model.safetensors": "weights"}


def fill(directory: Path, content: dict[str, str] = MODEL) -> None:
    for name, text in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def everything(store: Store) -> list[str]:
    """All that lies in the store, hidden things too."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def put(
    store: Store,
    name: str = "mine",
    content: dict[str, str] = MODEL,
    *,
    needed_bytes: int = 0,
    replace: bool = False,
    then: Callable[[], object] = lambda: None,
) -> None:
    """A model comes into the store; `then` happens when its files are written."""
    with store.staging(name, needed_bytes, replace) as staging:
        fill(staging, content)
        then()


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


# ---- coming in ------------------------------------------------------------------------------------------


def test_a_model_appears_whole_and_nothing_else_does(store: Store) -> None:
    with store.staging("mine") as staging:
        fill(staging)
        assert store.names() == []
        assert not (store.root / "mine").exists()
        assert staging.parent == store.root  # a rename within one file system
    assert store.names() == ["mine"]
    assert everything(store) == sorted(f"mine/{name}" for name in MODEL)


@pytest.mark.parametrize("error", [ModelError("damaged"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_whatever_fails_leaves_nothing_behind(store: Store, error: BaseException) -> None:
    with pytest.raises(type(error)):
        put(store, then=raising(error))
    assert everything(store) == []
    assert list(store.root.iterdir()) == []
    put(store)  # and the lock is free


def test_an_incomplete_model_is_not_published(store: Store) -> None:
    with pytest.raises(ModelError, match=r"the import made no tokenizer\.json, model\.safetensors"):
        put(store, content={"config.json": "{}"})
    assert list(store.root.iterdir()) == []


def test_a_name_that_is_taken(store: Store) -> None:
    put(store)
    with pytest.raises(ModelError, match=r"mine exists: choose another name \(--name\), or add --replace"):
        put(store)
    with store.staging("mine", replace=True) as staging:
        fill(staging, MODEL | {"model.safetensors": "new weights"})
        assert (store.root / "mine" / "model.safetensors").read_text() == "weights"  # until the very end
    assert (store.root / "mine" / "model.safetensors").read_text() == "new weights"
    assert len(list(store.root.iterdir())) == 1


def test_a_failed_replacement_keeps_what_was_there(store: Store) -> None:
    put(store)
    with pytest.raises(ModelError):
        put(store, replace=True, then=raising(ModelError("damaged")))
    assert everything(store) == sorted(f"mine/{name}" for name in MODEL)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc", "a b", "a\n", "é", "x" * 101])
def test_names_that_are_none(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid model name"):
        put(store, name)
    with pytest.raises(ConfigError):
        store.remove(name)
    assert not store.root.exists()


def test_the_name_that_stands_for_whichever_fits_is_no_models(store: Store) -> None:
    with pytest.raises(ConfigError, match="moondream in a configuration means whichever variant fits"):
        put(store, "moondream")


def test_a_built_in_model_is_neither_replaced_nor_removed(store: Store) -> None:
    with pytest.raises(ConfigError, match="demo-shapes is built in and cannot be replaced"):
        put(store, "demo-shapes", replace=True)
    with pytest.raises(ConfigError, match="demo-shapes is built in and cannot be removed"):
        store.remove("demo-shapes")
    assert (MODEL_DIR / "model.safetensors").is_file()


def test_a_model_may_be_made_anywhere(tmp_path: Path) -> None:
    store = Store.around(tmp_path / "here" / "my-model")
    put(store, "my-model")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["my-model"]
    assert sorted(path.name for path in (tmp_path / "here" / "my-model").iterdir()) == sorted(MODEL)


@pytest.mark.parametrize(
    "there", [{"wedding.jpg": "a picture"}, {"config.json": "{}", "src/main.py": "a program"}], ids=str
)
def test_what_is_no_model_is_not_replaced(tmp_path: Path, there: dict[str, str]) -> None:
    fill(place := tmp_path / "photos", there)
    with pytest.raises(ModelError, match=rf"photos is not a model, it has {max(there).partition('/')[0]}: it is not "):
        put(Store.around(place), "photos", replace=True)
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == set(there)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("a list")
    with pytest.raises(ModelError, match="photos is not a model, it is a file"):
        put(Store.around(tmp_path / "photos"), "photos", replace=True)
    assert (tmp_path / "photos").read_text() == "a list"


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_that_lost_a_file_is_replaced(store: Store, missing: str) -> None:
    put(store)
    (store.root / "mine" / missing).unlink()
    put(store, replace=True)
    assert everything(store) == sorted(f"mine/{name}" for name in MODEL)


# ---- the disk -------------------------------------------------------------------------------------------


def test_too_little_disk_is_told_with_both_numbers_before_anything_is_written(store: Store) -> None:
    needed = free_on_disk(store.root) + (10 << 30)
    with pytest.raises(UnavailableError, match=rf"{needed / (1 << 20):.0f} MiB of disk are needed, \d+ MiB are free"):
        put(store, needed_bytes=needed)
    assert not store.root.exists()


def test_a_disk_that_is_full_on_the_way(store: Store) -> None:
    """The real error of a real full device."""
    with pytest.raises(UnavailableError, match="No space left on device"):
        put(store, then=lambda: Path("/dev/full").write_text("weights"))
    assert list(store.root.iterdir()) == []


def test_a_bug_is_not_called_a_full_disk(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        put(store, then=lambda: Path("/nothing/there").read_text())


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, where a directory must be")
    with pytest.raises(UnavailableError, match="cannot be written: Not a directory; run this as the user who owns it"):
        put(Store(tmp_path / "state"))


# ---- killed imports, and two at once --------------------------------------------------------------------

KILLED = """\
import os, signal, sys
from pathlib import Path
from edge_daemon.models.store import Store
with Store(Path(sys.argv[1])).staging("killed") as staging:
    (staging / "model.safetensors").write_text("half")
    print("in the middle", flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def importer(store: Store, what: str) -> subprocess.Popen[str]:
    """A real process in the middle of an import."""
    argv = [sys.executable, "-c", KILLED, str(store.root.parent), what]
    started = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert started.stdout is not None
    assert started.stdout.readline() == "in the middle\n"
    return started


def test_a_killed_import_is_swept_up_by_the_next(store: Store) -> None:
    with importer(store, "kill") as killed:
        assert killed.wait(timeout=30) == -signal.SIGKILL
    assert any("staging" in name for name in everything(store))
    assert store.names() == []
    put(store, "other")
    assert everything(store) == sorted(f"other/{name}" for name in MODEL)


def test_two_imports_do_not_meet(store: Store) -> None:
    with importer(store, "wait") as first:
        with pytest.raises(UnavailableError, match=rf"another process \({first.pid}\) is changing the models"):
            put(store, "second")
        with pytest.raises(UnavailableError, match="another process"):
            put(store, "killed")
        first.kill()
    put(store, "second")
    assert store.names() == ["second"]


def test_a_lock_that_is_a_link_is_not_written_to(store: Store, tmp_path: Path) -> None:
    """The service owns the directory; root imports."""
    theirs = tmp_path / "theirs"
    theirs.write_text("root:x:0:0:")
    store.root.mkdir(parents=True)
    (store.root / LOCK).symlink_to(theirs)
    with pytest.raises(UnavailableError, match="cannot be written"):
        store.sweep()
    assert theirs.read_text() == "root:x:0:0:"


def test_a_power_cut_between_the_two_renames_brings_the_old_model_back(store: Store) -> None:
    """The state it leaves: the old model moved aside, the new one not yet in its place."""
    put(store)
    (store.root / "mine").rename(store.root / ".mine.edge-daemon-retired")
    fill(store.root / ".mine.edge-daemon-staging")
    put(store, "other")
    assert store.names() == ["mine", "other"]
    assert (store.root / "mine" / "model.safetensors").read_text() == "weights"
    assert len(list(store.root.iterdir())) == 2


def test_a_power_cut_after_the_second_rename_keeps_the_new_model(store: Store) -> None:
    put(store)
    fill(store.root / ".mine.edge-daemon-retired", MODEL | {"model.safetensors": "old"})
    put(store, "other")
    assert (store.root / "mine" / "model.safetensors").read_text() == "weights"
    assert len(list(store.root.iterdir())) == 2


# ---- what is there --------------------------------------------------------------------------------------


def test_removing(store: Store) -> None:
    put(store)
    assert store.remove("mine") == sum(map(len, MODEL.values()))
    assert list(store.root.iterdir()) == []
    with pytest.raises(ModelError, match=r"no model 'mine' in .*; there are: none"):
        store.remove("mine")


@pytest.mark.parametrize("there", [True, False], ids=["", "a disk that is not there"])
def test_a_model_on_another_disk_is_only_a_link_here(store: Store, tmp_path: Path, there: bool) -> None:
    fill(usb := tmp_path / "usb")
    store.root.mkdir(parents=True)
    link = store.root / "mine"
    link.symlink_to(usb if there else tmp_path / "gone")
    put(store, replace=True)
    assert everything(store) == sorted(f"mine/{name}" for name in MODEL)
    assert not link.is_symlink()
    (store.root / "theirs").symlink_to(usb)
    assert store.remove("theirs") == 0, "nothing became free"
    assert [path.name for path in store.root.iterdir()] == ["mine"]
    assert sorted(path.name for path in usb.iterdir()) == sorted(MODEL)


def test_what_a_model_says_of_itself(store: Store) -> None:
    config = {"engine": "onnx", "provenance": {"source": "a.mf", "sha256": "53"}}
    put(store, content={"config.json": json.dumps(config), "tokenizer.json": "{}", "graphs/a.onnx": "graph"})
    (model,) = store.installed()
    assert (model.name, model.engine, model.provenance) == ("mine", "onnx", config["provenance"])
    assert model.size_bytes == len(json.dumps(config)) + len("{}graph")


def test_a_damaged_config_is_listed_with_no_engine(store: Store) -> None:
    put(store)
    (store.root / "mine" / "config.json").write_text("{")
    (model,) = store.installed()
    assert (model.engine, model.provenance) == ("", {})


# ---- where a name leads ---------------------------------------------------------------------------------


def test_a_name_leads_to_the_store_and_a_path_anywhere(store: Store, tmp_path: Path) -> None:
    put(store)
    state = store.root.parent
    assert models.directory_of("mine", state) == store.root / "mine"
    assert models.directory_of("demo-shapes", state) == MODEL_DIR
    shutil.copytree(store.root / "mine", tmp_path / "elsewhere")
    assert models.directory_of(f"{tmp_path}/elsewhere", state) == tmp_path / "elsewhere"
    assert models.installed(state) == ["mine"]


@pytest.mark.parametrize(("engine", "content"), [("torch", "model.safetensors"), ("onnx", "graphs")])
def test_what_a_directory_must_hold_depends_on_its_engine(tmp_path: Path, engine: str, content: str) -> None:
    fill(tmp_path, {"config.json": json.dumps({"engine": engine}), "tokenizer.json": "{}"})
    with pytest.raises(ModelError, match=rf"has no {content}; models here: demo-shapes;"):
        models.directory_of(f"{tmp_path}/", tmp_path)
    fill(tmp_path, {"model.safetensors" if engine == "torch" else "graphs/text_decoder.onnx": "x"})
    assert models.directory_of(f"{tmp_path}/", tmp_path) == tmp_path


def test_an_unknown_name_says_how_to_get_one(store: Store) -> None:
    with pytest.raises(EdgeDaemonError, match=r"models here: demo-shapes; .*`edge-daemon model list` shows what can"):
        models.directory_of("moondream-9b", store.root.parent)
