"""The commands: what they print, and with which exit code they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_daemon import __version__, cli, exit_codes
from edge_daemon.demo import MODEL_DIR
from edge_daemon.errors import (
    BudgetError,
    CaptionError,
    ChildBootError,
    ChildDied,
    ConfigError,
    EdgeDaemonError,
    ModelError,
    UnavailableError,
)

CONFIG = """\
node: shed
mqtt: {host: broker.local, username: cam, password: hunter2}
sources: {porch: {type: folder, path: /srv/porch}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def edge_daemon(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real program."""
    argv = [sys.executable, "-m", "edge_daemon", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_check_config_says_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", "-c", str(file)]) == exit_codes.OK
    output = capsys.readouterr().out
    assert output.startswith(f"{file}: good\n")
    assert "broker.local:1883" in output
    assert "/srv/porch → edge-daemon/shed/porch/caption" in output


def test_a_secret_without_end_is_not_read_to_its_end(file: Path) -> None:
    file.write_text(CONFIG.replace("hunter2", "!file /dev/zero"))
    limited = 'ulimit -d 500000; exec "$@"'
    argv = ["bash", "-c", limited, "bash", sys.executable, "-m", "edge_daemon", "check-config", "-c", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.CONFIG
    assert "mqtt.password: value (hidden): this must be UTF-8 text of at most 65535 bytes" in done.stderr


def test_check_config_prints_everything_but_secrets(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", "--json", "-c", str(file)]) == exit_codes.OK
    output = capsys.readouterr().out
    document = json.loads(output)
    assert document["sources"]["porch"]["settle_s"] == 2.0
    assert document["mqtt"]["keepalive_s"] == 30
    assert "hunter2" not in output


@pytest.mark.parametrize("command", ["check-config", "run"])
def test_a_wrong_configuration_is_78(file: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    file.write_text(CONFIG.replace("node", "nod"))
    assert cli.main([command, "-c", str(file)]) == exit_codes.CONFIG == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (f"edge-daemon: {file}:1:1: nod: value 'shed': unknown key; did you mean 'node'?\n")


@pytest.mark.parametrize("command", ["check-config", "run"])
def test_a_missing_configuration_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "-c", str(tmp_path / "none.yaml")]) == exit_codes.CONFIG
    assert capsys.readouterr().err == f"edge-daemon: {tmp_path}/none.yaml: cannot be read: No such file or directory\n"


def test_an_unknown_model_is_told_with_those_there_are(file: Path) -> None:
    """In a process of its own: `run` sets up the log of the whole process."""
    file.write_text(f"model: {{name: moondream-9b}}\nstate_dir: {file.parent}\n{CONFIG}")
    done = edge_daemon("run", "-c", str(file))
    assert done.returncode == exit_codes.CONFIG
    assert done.stderr.startswith(f"edge-daemon: {file}: model.name: model 'moondream-9b': ")
    assert "models here: demo-shapes" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_configuration_may_be_named_by_the_environment(file: Path) -> None:
    done = edge_daemon("check-config", EDGE_DAEMON_CONFIG=str(file))
    assert done.returncode == exit_codes.OK
    assert done.stdout.startswith(f"{file}: good\n")
    assert f"default: {file}" in edge_daemon("run", "--help", EDGE_DAEMON_CONFIG=str(file), COLUMNS="200").stdout


def test_a_reader_who_leaves_is_no_error(file: Path) -> None:
    """As with `edge-daemon check-config --json | head -0`; a pipe whose other end is closed."""
    ours, childs = os.pipe()
    os.close(ours)
    argv = [sys.executable, "-u", "-m", "edge_daemon", "check-config", "--json", "-c", str(file)]
    done = subprocess.run(argv, stdout=childs, stderr=subprocess.PIPE, check=False)
    os.close(childs)
    assert (done.returncode, done.stderr) == (exit_codes.OK, b"")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "--fast"], ["caption"], ["check-config", "-c"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == exit_codes.USAGE == 2
    assert "usage: edge-daemon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["caption", "a.jpg", "--max-tokens", "0"], "argument --max-tokens: '0' is not a whole number of 1 or more"),
        (["caption", "a.jpg", "--max-tokens", "-5"], "argument --max-tokens: '-5' is not a whole number of 1 or more"),
        (["caption", "a.jpg", "--length", "foo"], "argument --length: invalid choice: 'foo'"),
        (["demo", "--pictures", "0"], "argument --pictures: '0' is not a whole number of 1 or more"),
        (["demo", "--pictures", "2.5"], "argument --pictures: '2.5' is not a whole number of 1 or more"),
    ],
)
def test_a_senseless_number_or_word_is_wrong_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == exit_codes.USAGE
    assert words in capsys.readouterr().err


def test_a_length_that_the_model_does_not_have_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", "a.jpg", "b.jpg", "--length", "long"]) == exit_codes.UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "edge-daemon: demo-shapes has no 'long' caption; it has: short, normal\n"


@pytest.mark.parametrize("command", ["run", "check-config", "caption", "demo"])
def test_help_teaches_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == exit_codes.OK
    output = capsys.readouterr().out
    assert re.search(rf"^    {command}\b", output, re.MULTILINE)
    assert f"usage: edge-daemon {command}" in output
    assert f"examples:\n  edge-daemon {command}" in output


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    words = capsys.readouterr().out.split()
    codes = (value for name, value in vars(exit_codes).items() if name.isupper())
    assert set(map(str, codes)) <= set(words)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == exit_codes.OK
    assert capsys.readouterr().out == f"edge-daemon {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("c"), 78),
        (ChildBootError("b"), 78),
        (UnavailableError("u"), 69),
        (ModelError("m"), 69),
        (BudgetError("b"), 69),
        (ChildDied("d"), 69),
        (CaptionError("c"), 69),
        (KeyboardInterrupt(), 1),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "check_config", fails)
    assert cli.main(["check-config", "-c", str(file)]) == code
    assert capsys.readouterr().err == f"edge-daemon: {str(error) or 'interrupted'}\n"


def test_a_bug_is_not_hidden(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "check_config", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check-config", "-c", str(file)])


def test_the_first_error_of_a_group_counts() -> None:
    first, second = ModelError("first"), EdgeDaemonError("second")
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [first, second]), second])
    assert cli._first(group) is first


# ---- which model, and where -----------------------------------------------------------------------------


def install(state_dir: Path, name: str, weights: int) -> None:
    """A model of the store whose header claims so many numbers; nobody here reads them."""
    directory = state_dir / "models" / name
    directory.mkdir(parents=True)
    header = json.dumps({"x": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(MODEL_DIR / file, directory)


def check(file: Path, model: str) -> subprocess.CompletedProcess[str]:
    file.write_text(f"model: {{{model}}}\nstate_dir: {file.parent}\n{CONFIG}")
    return edge_daemon("check-config", "-c", str(file))


def test_check_config_refuses_a_length_that_the_model_has_not(file: Path) -> None:
    file.write_text(CONFIG.replace("type: folder", "type: folder, caption: long"))
    done = edge_daemon("check-config", "-c", str(file))
    assert done.returncode == exit_codes.CONFIG
    assert re.search(
        r":3:\d+: sources\.\w+\.caption: value 'long': demo-shapes has no such caption; it has: short, n", done.stderr
    )


def test_check_config_says_which_variant_would_run_and_why(file: Path) -> None:
    install(file.parent, "moondream-0.5b", 10_000_000)
    done = check(file, "name: moondream")
    assert done.returncode == exit_codes.OK, done.stderr
    assert re.search(r"  model moondream-0\.5b: moondream-0\.5b needs \d+ MiB; .*moondream-2b is not inst", done.stdout)
    install(file.parent, "moondream-2b", 1 << 50)
    done = check(file, "name: moondream, memory_limit_mib: 2000")
    assert re.search(r"  model moondream-0\.5b: .*budget is \d+ MiB \(", done.stdout)
    done = check(file, "name: moondream, variant: 2b")
    assert "  model moondream-2b: variant 2b is configured\n" in done.stdout


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_no_variant_at_all_is_78(file: Path, command: str) -> None:
    file.write_text(f"model: {{name: moondream}}\nstate_dir: {file.parent}\n{CONFIG}")
    done = edge_daemon(command, "-c", str(file))
    assert done.returncode == exit_codes.CONFIG
    assert done.stderr == (
        f"edge-daemon: {file}: model.name: no variant of moondream is installed: "
        f"edge-daemon model pull moondream-0.5b\n"
    )


@pytest.mark.parametrize("command", [["run"], ["caption", "a.jpg"]])
def test_cpu_and_another_device_contradict_each_other(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--cpu", "--device", "cuda"])
    assert caught.value.code == exit_codes.USAGE
    assert "not allowed with argument --cpu" in capsys.readouterr().err


def test_a_device_option_wins_whenever_the_configuration_is_read(file: Path) -> None:
    """At the start and by `reload`, which would else tell of a device that changed and needs a restart."""
    arguments = cli.parser().parse_args(["run", "-c", str(file), "--cpu"])
    assert (cli.configured(arguments).model.device, cli.configured(arguments).node) == ("cpu", "shed")
    file.write_text(f"{CONFIG}model: {{device: cuda, max_tokens: 5}}\n")
    again = cli.configured(arguments).model
    assert (again.device, again.max_tokens) == ("cpu", 5)
    assert cli.configured(cli.parser().parse_args(["run", "-c", str(file)])).model.device == "cuda"


def test_a_device_option_wins_over_the_configuration() -> None:
    assert cli.parser().parse_args(["run"]).device is None
    assert cli.parser().parse_args(["run", "--cpu"]).device == "cpu"
    assert cli.parser().parse_args(["run", "--device", "cuda"]).device == "cuda"
    assert cli.parser().parse_args(["caption", "a.jpg"]).device == "auto"
    assert cli.parser().parse_args(["caption", "a.jpg", "--cpu"]).device == "cpu"


@pytest.mark.parametrize("arguments", [["--help"], ["check-config"], ["systemd", "render"]])
def test_a_reader_that_has_gone_is_no_error(file: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "EDGE_DAEMON_CONFIG": str(file)}
    environment.pop("PYTHONUNBUFFERED", None)
    argv = [sys.executable, "-m", "edge_daemon", *arguments]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8:strict", "→"), ("ascii", "\\u2192")])
def test_what_cannot_be_shown_is_escaped(tmp_path: Path, encoding: str, shown: str) -> None:
    path = tmp_path / os.fsdecode(b"odd\xff.yaml")
    path.write_text(CONFIG)
    argv = [sys.executable, "-m", "edge_daemon", "check-config", "-c", str(path)]
    done = subprocess.run(argv, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=False)
    assert done.returncode == 0, done.stderr
    assert b"odd\\udcff.yaml: good" in done.stdout
    assert shown in done.stdout.decode()


def test_an_empty_variable_names_no_configuration() -> None:
    done = edge_daemon("check-config", "--help", EDGE_DAEMON_CONFIG="", COLUMNS="200")
    assert "/etc/edge-daemon/config.yaml" in done.stdout
