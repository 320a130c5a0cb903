"""The `edge-daemon model …` commands: what they print, what they leave, and with which exit code they end."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import cli, exit_codes, memory
from edge_daemon.demo import MODEL_DIR
from edge_daemon.model_commands import Bar, name_of
from edge_daemon.models.catalogue import CATALOGUE, RemoteFile, artefact
from edge_daemon.models.inventory import inventory, memory_of
from edge_daemon.models.store import Store
from edge_daemon.units import MIB

ROOT = Path(__file__).parents[2]
COMMANDS = ["list", "pull", "import", "verify", "remove", "export"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that the commands use."""
    monkeypatch.setenv("EDGE_DAEMON_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def weights(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The built-in model as safetensors in upstream's layout."""
    out = tmp_path / "weights"
    assert cli.main(["model", "export", "demo-shapes", str(out), "--format", "safetensors"]) == exit_codes.OK
    assert capsys.readouterr().out == f"{out}: demo-shapes as safetensors\n"
    return out


def board(mib: int) -> memory.Budget:
    """A board with so much free memory."""
    return memory.budget(memory.Limits(None, None, mib * MIB + memory.RESERVE_BYTES))


# ---- list -----------------------------------------------------------------------------------------------


def test_an_empty_store(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "list"]) == exit_codes.OK
    output = capsys.readouterr().out
    assert output.startswith(f"in {state}/models:\n  nothing yet\nbuilt in:\n  demo-shapes: 9 MiB, engine torch\n")
    for known in CATALOGUE:
        assert f"\n  {known.name}: {known.summary} (" in output
    assert not state.exists()  # looking makes nothing


def test_the_list_as_json(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "list", "--json"]) == exit_codes.OK
    document = json.loads(capsys.readouterr().out)
    assert document["installed"] == []
    assert [model["name"] for model in document["built_in"]] == ["demo-shapes"]
    small = next(known for known in document["catalogue"] if known["name"] == "moondream-0.5b")
    assert small["download_bytes"] == 621_619_051
    assert small["licence"] == "Apache-2.0"
    assert small["files"][0]["commit"] == "9dddae84d54db4ac56fe37817aeaeb502ed083e2"
    assert small["installed"] is False


@pytest.mark.parametrize(
    ("mib", "fitting"),
    [
        (800, {}),
        (1700, {"moondream-0.5b": "int8", "moondream-0.5b-int4": "int8"}),
        (3500, {"moondream-0.5b": "float32", "moondream-0.5b-int4": "float32"}),
        (7700, {"moondream-0.5b": "float32", "moondream-0.5b-int4": "float32", "moondream-2b": "int8"}),
        (12_000, {"moondream-0.5b": "float32", "moondream-0.5b-int4": "float32", "moondream-2b": "float32"}),
    ],
)
def test_what_fits_a_board(state: Path, mib: int, fitting: dict[str, str]) -> None:
    """A Pi 4 with 4 GB holds the 0.5B in float32, one with 2 GB in int8; a board with 8 GB holds the 2B in int8."""
    document = inventory(Store(state), CATALOGUE, board(mib))
    assert {known["name"] for known in document["catalogue"] if known["memory"]["fits"]} == fitting.keys()
    for known in document["catalogue"]:
        why = known["memory"]["why"]
        assert f"the budget is {mib} MiB (the board's free memory, less a reserve)" in why
        precision = fitting.get(known["name"])
        words = rf"needs \d+ MiB in float32, \d+ MiB in int8 at least, .*: {precision}, \d+ of 2048 KV positions$"
        assert re.search(words if precision else r"^int8: \d+ MiB of memory are missing", why)


def test_the_memory_of_the_half_billion() -> None:
    """Weights: 632 million, of which all but 95 million are packed; the cache holds a picture and an answer."""
    known = artefact("moondream-0.5b")
    assert known.weights * 4 == pytest.approx(2.53e9, rel=0.01)
    document = inventory(Store(Path("/nowhere")), (known,), board(20_000))
    (float32, int8), *_ = re.findall(r"needs (\d+) MiB in float32, (\d+) MiB in int8", told(document))
    cache_mib = (730 + 48) * 196_608 / MIB
    assert 2048 + cache_mib < int(float32) < 2048 + cache_mib + 600
    assert 512 + cache_mib < int(int8) < 512 + cache_mib + 600


def told(document: dict[str, Any]) -> str:
    return str(document["catalogue"][0]["memory"]["why"])


def test_a_model_on_graphs_has_one_precision_and_says_what_it_needs(tmp_path: Path) -> None:
    """By the sizes of its files alone: the graphs need not be good ones."""
    config = json.loads((MODEL_DIR / "config.json").read_text()) | {"engine": "onnx"}
    config["provenance"] = {"precision": "int8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "graphs").mkdir()
    for name in ("vision_encoder", "text_decoder", "size_decoder"):
        (tmp_path / "graphs" / f"{name}.onnx").write_bytes(bytes(10 << 20))
    header = "{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }".ljust(117) + "\n"
    (tmp_path / "initial_kv_cache.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(2))
    why = memory_of(tmp_path, board(2000))["why"]
    assert re.match(r"needs 3\d\d MiB in int8 at least, .*: 512 of 512 KV positions$", why)
    assert "given back" not in why


def test_a_verdict_is_told_in_the_precision_that_is_configured() -> None:
    assert re.match(r"needs \d+ MiB in int8 at least", memory_of(MODEL_DIR, board(2000), "int8")["why"])


def test_a_disk_that_is_too_small_is_told(state: Path) -> None:
    known = artefact("moondream-2b")
    vast = replace(known, name="vast", files=(RemoteFile("a/b", "c", "d", 1 << 50, None),))
    (told,) = inventory(Store(state), (vast,), board(20_000))["catalogue"]
    assert told["disk"]["fits"] is False
    assert re.search(r"\d+ MiB while it is imported \(3684 of them stay\), \d+ MiB are free", told["disk"]["why"])


def test_an_unknown_size_is_not_made_up(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = replace(CATALOGUE[0], files=(RemoteFile("a/b", "c", "d", None, None),))
    (told,) = inventory(Store(state), (known,), board(20_000))["catalogue"]
    assert told["download_bytes"] is None
    assert "and the download, whose size is unknown" in told["disk"]["why"]


def test_a_damaged_model_is_listed_with_the_reason(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "models" / "broken").mkdir(parents=True)
    (state / "models" / "broken" / "config.json").write_text('{"name": "broken"}')
    assert cli.main(["model", "list"]) == exit_codes.OK
    output = capsys.readouterr().out
    assert "  broken: 0 MiB, engine torch\n    memory: DOES NOT FIT: it cannot be used: " in output
    assert "missing key 'vision'" in output


# ---- import, verify, remove, export ---------------------------------------------------------------------


def test_from_import_to_removal(state: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = state / "models" / "mine"
    assert cli.main(["model", "import", str(weights), "--name", "mine"]) == exit_codes.OK
    captured = capsys.readouterr()
    assert captured.out.startswith(f"mine: 9 MiB in {directory}, engine torch\n")
    assert captured.out.endswith("try it: edge-daemon caption PICTURE --model mine\n")
    assert captured.err == ""  # no bar where nobody looks

    assert cli.main(["model", "list"]) == exit_codes.OK
    assert "  mine: 9 MiB, engine torch, from weights\n" in capsys.readouterr().out

    assert cli.main(["model", "verify", "mine", "--json"]) == exit_codes.OK
    assert json.loads(capsys.readouterr().out)["files"] == ["model.safetensors", "tokenizer.json"]

    assert cli.main(["model", "import", str(weights), "--name", "mine"]) == exit_codes.UNAVAILABLE
    assert "mine exists: choose another name (--name), or add --replace" in capsys.readouterr().err
    assert cli.main(["model", "import", str(weights), "--name", "mine", "--replace", "--json"]) == exit_codes.OK
    assert json.loads(capsys.readouterr().out)["directory"] == str(directory)

    assert cli.main(["model", "remove", "mine"]) == exit_codes.OK
    assert capsys.readouterr().out == "mine: removed, 9 MiB freed\n"
    assert cli.main(["model", "remove", "mine"]) == exit_codes.UNAVAILABLE
    assert "no model 'mine'" in capsys.readouterr().err


def test_import_to_a_directory(state: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "there" / "my-model"
    assert cli.main(["model", "import", str(weights / "model.safetensors"), "--to", str(target)]) == exit_codes.OK
    assert f"try it: edge-daemon caption PICTURE --model {target}\n" in capsys.readouterr().out
    assert sorted(path.name for path in target.parent.iterdir()) == ["my-model"]
    assert json.loads((target / "config.json").read_text())["name"] == "my-model"
    assert not state.exists()
    assert cli.main(["model", "verify", str(target)]) == exit_codes.OK
    assert capsys.readouterr().out.startswith(f"{target}: 2 files are unchanged since the import\n")


def test_verify_finds_a_changed_file(state: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "import", str(weights), "--name", "mine"]) == exit_codes.OK
    changed = state / "models" / "mine" / "model.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    capsys.readouterr()
    assert cli.main(["model", "verify", "mine"]) == exit_codes.UNAVAILABLE
    assert f"{changed}: sha256 " in capsys.readouterr().err


def test_the_default_name_is_the_files(state: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "import", str(weights)]) == exit_codes.OK
    assert Store(state).names() == ["weights"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/tmp/moondream-0_5b-int8.mf.gz", "moondream-0_5b-int8"),
        ("a.mf", "a"),
        ("/srv/mine/model.safetensors", "mine"),
        ("/srv/other.safetensors", "other"),
        ("/srv/moondream2-2025-06-21/", "moondream2-2025-06-21"),
    ],
)
def test_names_of_sources(source: str, name: str) -> None:
    assert name_of(Path(source)) == name


@pytest.mark.parametrize("arguments", [["verify", "nothing"], ["export", "nothing", "out", "--format", "onnx"]])
def test_a_model_that_is_not_there(state: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", *arguments]) == exit_codes.UNAVAILABLE
    assert "model 'nothing': " in capsys.readouterr().err


def test_a_source_that_is_not_there(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "import", str(tmp_path / "none.safetensors")]) == exit_codes.UNAVAILABLE
    assert f"{tmp_path}/none.safetensors: no such file or directory" in capsys.readouterr().err
    assert cli.main(["model", "import", str(tmp_path / "none.safetensors"), "--name", "a/b"]) == exit_codes.CONFIG


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["pull"], ["import"], ["export", "a", "b"], ["import", "a", "--name", "b", "--to", "c"]],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["model", *arguments])
    assert caught.value.code == exit_codes.USAGE
    assert "usage: edge-daemon model" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["model", *arguments])
        assert caught.value.code == exit_codes.OK
    output = capsys.readouterr().out
    assert re.search(rf"^    {command}\b", output, re.MULTILINE)
    assert f"usage: edge-daemon model {command}" in output
    assert f"examples:\n  edge-daemon model {command}" in output


# ---- the library that is not there, the bar that is seen ------------------------------------------------

WITHOUT = """\
import sys
sys.modules[sys.argv[1]] = None  # what the interpreter itself takes for "cannot be imported"
from edge_daemon import cli
sys.exit(cli.main(["model", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("huggingface_hub", ["pull", "moondream-0.5b"]),
        ("onnx", ["import", "a.mf"]),
        ("onnxruntime", ["import", "a.mf"]),
    ],
)
def test_a_missing_extra_says_the_pip_line(tmp_path: Path, library: str, arguments: list[str]) -> None:
    argv = [sys.executable, "-c", WITHOUT, library, *arguments]
    environment = os.environ | {"EDGE_DAEMON_STATE_DIR": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    assert done.returncode == exit_codes.UNAVAILABLE
    assert "pip install 'edge-daemon[models]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "edge_daemon", "model", "export", "demo-shapes", str(tmp_path / "out")]
    with subprocess.Popen(
        [*argv, "--format", "safetensors"], stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=ROOT
    ) as started:
        os.close(theirs)
        shown = read_terminal(ours)
        assert started.stdout is not None
        assert started.stdout.read() == f"{tmp_path}/out: demo-shapes as safetensors\n"
    assert started.returncode == exit_codes.OK
    assert re.search(r"\r\[#{30}\] 100 % model\.safetensors", shown)
    assert shown.endswith("\r")


def read_terminal(descriptor: int) -> str:
    """All that is written on the other side of a pseudo-terminal until it is closed."""
    shown = b""
    with os.fdopen(descriptor, "rb", buffering=0) as ours:
        try:
            while piece := ours.read(4096):
                shown += piece
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's end of file of a terminal
                raise
    return shown.decode()


def test_the_bar_draws_what_changed_and_wipes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.show("a long name", 0.5)
    bar.show("a long name", 0.501)
    bar.show("short", 7.0)
    bar.clear()
    first, second, wiped, rest = capsys.readouterr().err.removeprefix("\r").split("\r")
    assert first == f"[{'#' * 15}{' ' * 15}]  50 % a long name"
    assert second.rstrip() == f"[{'#' * 30}] 100 % short"
    assert len(second) == len(first)
    assert (wiped.strip(), rest) == ("", "")
