"""What the doctor says of the state directory, the model, the sources and secrets, and what `--fix` does about it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import config
from edge_daemon.clock import Stamp
from edge_daemon.config import Config
from edge_daemon.demo import MODEL_DIR
from edge_daemon.doctor import hiding, model, processor, sources, state, yaml_change
from edge_daemon.doctor.finding import Finding
from edge_daemon.doctor.subject import Account, Subject, Unit, lock_holder
from edge_daemon.errors import ConfigError, UnavailableError
from edge_daemon.models.catalogue import CATALOGUE
from edge_daemon.models.store import LOCK, STAGING
from edge_daemon.moondream.threads import cores_here
from edge_daemon.outbox import Outbox

STRANGER = Account("stranger", 54321, frozenset({54321}))
"""Not the one who runs the tests, who may be root and everything."""
HOLD = """\
import sys
from pathlib import Path
from edge_daemon.outbox import Outbox
box = Outbox(Path(sys.argv[1]))
print(flush=True)
input()
"""
ME = Account("me", os.geteuid(), frozenset({os.getegid()}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


def settings(tmp_path: Path, **changes: object) -> Config:
    source = {"type": "folder", "path": tmp_path}
    return Config.model_validate({"state_dir": tmp_path / "state", "sources": {"inbox": source}, **changes})


def subject(tmp_path: Path, settings: Config | None, account: Account = ME) -> Subject:
    return Subject(tmp_path / "config.yaml", settings, tmp_path / "state", account)


def mend(found: Finding) -> str:
    assert found.fix is not None
    assert found.fix.will
    assert found.fix.undo
    return found.fix.do()


# ---- the state directory --------------------------------------------------------------------------------


def test_a_state_directory_that_is_not_there(tmp_path: Path) -> None:
    place = tmp_path / "var" / "state"
    found = state.directory(place, ME)
    assert found.state == "warning"
    mend(found)
    assert state.directory(place, ME).state == "ok"
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert state.directory(tmp_path / "state", ME).state == "problem"


def test_a_state_directory_of_somebody_else(place: Path) -> None:
    found = state.directory(place, STRANGER)
    assert found.state == "problem"
    assert "stranger" in found.meaning
    place.chmod(0o777)
    found = state.directory(place, STRANGER)
    assert (found.state, "Everybody" in found.meaning) == ("warning", True)
    mend(found)
    assert place.stat().st_mode & 0o777 == 0o775
    assert state.directory(place, ME).state == "ok"


def test_rights_are_given_and_what_was_before_is_told(place: Path) -> None:
    """As nobody special, who may nothing but what the mode says."""
    if os.geteuid() == 0:
        owner = Account("daemon", 1, frozenset({1}))
        os.chown(place, 1, 1)
    else:
        owner = ME
    place.chmod(0o500)
    found = state.directory(place, owner)
    assert (found.state, "mode 500" in found.what) == ("problem", True)
    assert f"{place} was {owner.uid}:" in mend(found)
    assert state.directory(place, owner).state == "ok"


def test_files_that_somebody_else_made(place: Path) -> None:
    (place / "models/mine").mkdir(parents=True)
    (place / "models/mine/config.json").write_text("{}")
    place.chmod(0o777)
    for path in (place / "models", place / "models/mine"):
        path.chmod(0o755)
    (place / "models/mine/config.json").chmod(0o644)
    assert state.contents(place, STRANGER).state == "ok", "models are only read"
    (place / "models/mine/config.json").chmod(0o600)
    (place / "outbox.db").write_text("")
    (place / "outbox.db").chmod(0o644)
    found = state.contents(place, STRANGER)
    assert (found.state, found.what) == (
        "problem",
        f"stranger may not use {place / 'models/mine/config.json'} and 1 more",
    )
    if os.geteuid() != 0:  # root could give it to others, if they were there
        with pytest.raises(UnavailableError, match="sudo"):
            mend(found)


@pytest.mark.parametrize("swapped", ["models/mine/config.json", "models/mine"])
def test_a_link_that_takes_the_place_of_a_file_leads_nowhere(place: Path, swapped: str) -> None:
    """Between the look and the mending its owner may put one there, to have a file of root's."""
    theirs = place.parent / "theirs"
    for directory in (place / "models/mine", theirs):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "config.json").chmod(0o000)
    (place / swapped).rename(place / "aside")
    (place / swapped).symlink_to(theirs / "config.json" if swapped.endswith("json") else theirs)
    before = (theirs / "config.json").stat()
    with pytest.raises(UnavailableError, match=r"a symbolic link now|is not what it was"):
        state._mend_rights(place, ME, [place / "models/mine/config.json"])
    after = (theirs / "config.json").stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


def test_what_a_killed_import_has_left(place: Path) -> None:
    assert state.locks(place).state == "ok"
    assert not (place / "models").exists(), "looking makes nothing"
    staging = place / "models" / STAGING.format("mine")
    staging.mkdir(parents=True)
    lock = place / "models" / LOCK
    lock.write_text("4711\n")
    found = state.locks(place)
    assert (found.state, staging.name in found.what, LOCK in found.what) == ("warning", True, True)
    with lock.open("r+b") as file:  # an import that runs
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state.locks(place).state == "ok"
    mend(found)
    assert list((place / "models").iterdir()) == []
    assert state.locks(place).state == "ok"


def filled(path: Path, count: int = 20) -> None:
    box = Outbox(path, clock=lambda: Stamp(1.0, 1.0, "boot", True))
    for number in range(count):
        box.put("porch", [{"task": "caption", "caption": f"picture {number} {'x' * 500}"}], None)
    box.close()


def test_an_outbox_and_what_waits_in_it(place: Path) -> None:
    path = place / "outbox.db"
    assert state.outbox(path, ME).what == "does not exist yet"
    filled(path)
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.iterdir()}
    assert state.outbox(path, ME).what.startswith("20 results wait for the broker, 0.")
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in place.iterdir()} == before, "only read"


def test_an_outbox_in_use(place: Path) -> None:
    """By another process: the kernel does not tell us of our own locks."""
    path = place / "outbox.db"
    filled(path)
    assert lock_holder(path) is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        found = state.outbox(path, ME)
        assert lock_holder(path) == other.pid
        with pytest.raises(UnavailableError, match="in use"):
            state._renew(path, ME)
        other.communicate(b"\n")
    assert (found.state, f"in use by process {other.pid}" in found.what) == ("ok", True)


def test_a_damaged_outbox(place: Path) -> None:
    path = place / "outbox.db"
    filled(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2048] = b"\xff" * 2048
    path.write_bytes(data)
    found = state.outbox(path, ME)
    assert found.state == "problem"
    assert "is damaged" in found.what
    assert "results were taken over; the damaged file is outbox.db.damaged-1" in mend(found)
    again = state.outbox(path, ME)
    assert (again.state, "kept aside as damaged: outbox.db.damaged-1" in again.what) == ("ok", True)
    assert (place / "outbox.db.damaged-1").read_bytes() == bytes(data)


def test_an_outbox_with_a_damaged_result(place: Path) -> None:
    path = place / "outbox.db"
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET body = x'00' WHERE row = 3")
    db.close()
    found = state.outbox(path, ME)
    assert (found.state, "1 of 20 results cannot be read" in found.what) == ("problem", True)
    assert mend(found).startswith("19 results were taken over")


# ---- the model, and threads -----------------------------------------------------------------------------


def stored(place: Path, name: str = "mine") -> Path:
    directory = place / "models" / name
    shutil.copytree(MODEL_DIR, directory)
    return directory


def test_a_model_that_is_not_here(tmp_path: Path, place: Path) -> None:
    (found,) = model.look(subject(tmp_path, settings(tmp_path, model={"name": "mine"})))
    assert (found.state, "'mine'" in found.what, found.command) == ("problem", True, "edge-daemon model list")
    (found,) = model.look(subject(tmp_path, settings(tmp_path, model={"name": "moondream"})))
    assert "no variant of moondream is installed" in found.what
    (found,) = model.look(subject(tmp_path, None))
    assert found.state == "skipped"


def test_how_a_model_is_fetched_for_another_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DAEMON_STATE_DIR", str(tmp_path / "state"))
    examined = subject(tmp_path, settings(tmp_path, model={"name": "moondream-0.5b"}))
    here = replace(examined, catalogue=CATALOGUE)
    elsewhere = replace(here, state_dir=tmp_path / "else")
    assert [found.command for found in model.look(here)] == ["sudo edge-daemon model pull moondream-0.5b"]
    (found,) = model.look(elsewhere)
    assert found.command == f"sudo EDGE_DAEMON_STATE_DIR={tmp_path / 'else'} edge-daemon model pull moondream-0.5b"


def test_a_model_that_changed(tmp_path: Path, place: Path) -> None:
    import json

    directory = stored(place)
    examined = subject(tmp_path, settings(tmp_path, model={"name": "mine"}))
    assert {f.id: f.state for f in model.look(examined)}["model.files"] == "skipped", "nobody imported it"
    description = json.loads((directory / "config.json").read_text())
    digests = {
        n: hashlib.sha256((directory / n).read_bytes()).hexdigest() for n in ("tokenizer.json", "model.safetensors")
    }
    description["provenance"] = {"files": digests}
    (directory / "config.json").write_text(json.dumps(description))
    assert {f.id: f.state for f in model.look(examined)} == dict.fromkeys(
        ("model", "model.files", "model.memory"), "ok"
    )
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    found = {f.id: f for f in model.look(examined)}["model.files"]
    assert (found.state, str(weights) in found.what) == ("problem", True)


def test_a_model_that_does_not_fit(tmp_path: Path, place: Path) -> None:
    stored(place)
    examined = subject(tmp_path, settings(tmp_path, model={"name": "mine", "memory_limit_mib": 64}))
    found = {f.id: f for f in model.look(examined)}["model.memory"]
    assert (found.state, "are missing" in found.what) == ("problem", True)
    (caption,) = model.caption(examined)
    assert (caption.state, caption.what) == ("skipped", "too little memory is free")
    used = replace(examined, service_pid=4711)
    assert {f.id: f.state for f in model.look(used)}["model.memory"] == "skipped"
    (caption,) = model.caption(used)
    assert (caption.state, "the service is captioning" in caption.what) == ("skipped", True)


def test_a_caption_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no such luck')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = model.captioned(MODEL_DIR, "cpu", "float32")
    assert (found.state, found.what) == ("problem", "ImportError: no such luck")
    assert model.captioned(MODEL_DIR, "cpu", "float32", deadline_s=0.01).what == "no caption within 0 s"


def test_more_threads_than_cores(tmp_path: Path, place: Path) -> None:
    path, many = tmp_path / "config.yaml", min(64, cores_here() * 2)
    text = (
        f"# mine\nmodel:\n  threads: {many}   # as many as there can be\nsources:\n  a: {{type: folder, path: /srv}}\n"
    )
    path.write_text(text)
    (found,) = processor.threads(subject(tmp_path, config.load(path)))
    assert (found.state, f"model.threads is {many}" in found.what) == ("warning", True)
    mend(found)
    assert path.read_text() == text.replace(str(many), "auto", 1)
    assert (tmp_path / "config.yaml.before-doctor").read_text() == text
    (found,) = processor.threads(subject(tmp_path, config.load(path)))
    assert found.state == "ok"


@pytest.mark.parametrize("model", ["model: {threads: 99e0}", 'model:\n  "threads": 12', "model:\n  threads:\n    12"])
def test_what_is_written_in_an_unusual_way_is_left_alone(tmp_path: Path, model: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{model}\nsources:\n  a: {{type: folder, path: /srv}}\n")
    before = path.read_text()
    with pytest.raises(ConfigError):
        yaml_change.change(path, ("model", "threads"), "auto")
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


# ---- sources --------------------------------------------------------------------------------------------


def source(tmp_path: Path, account: Account = ME, unit: Unit = Unit(), **values: object) -> Finding:  # noqa: B008
    examined = subject(tmp_path, settings(tmp_path, sources={"it": values}), account)
    *_, found = sources.look(replace(examined, unit=unit))
    assert found.id == "source.it"
    return found


def test_folders(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    assert source(tmp_path, type="folder", path=inbox).state == "problem"
    inbox.mkdir(mode=0o755)
    (inbox / "a.jpg").write_text("")
    assert source(tmp_path, type="folder", path=inbox).what == f"folder {inbox}, 1 entries"
    assert source(tmp_path, type="folder", path=inbox, enabled=False).state == "skipped"
    inbox.chmod(0o700)
    closed = next(place for place in (*reversed(inbox.parents), inbox) if not STRANGER.may(place.stat(), 1))
    assert source(tmp_path, STRANGER, type="folder", path=inbox).what == f"stranger may not read {closed}"


@pytest.mark.parametrize(("mode", "is_open"), [(0o744, False), (0o711, False), (0o755, True)])
def test_a_folder_has_to_be_listed_and_entered(mode: int, is_open: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which is below a directory that is closed to others
        Path(name).chmod(mode)
        assert sources.closed_to(Path(name), STRANGER) == (None if is_open else Path(name))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("PrivateTmp", {"type": "folder", "path": Path("/tmp")}),
        ("ProtectHome", {"type": "folder", "path": Path("/home/me/pictures")}),
        ("ProtectHome", {"type": "stream", "url": "/home/me/film.mp4"}),
        ("PrivateTmp", {"type": "picamera", "tuning_file": Path("/tmp/imx708.json")}),
        ("PrivateDevices", {"type": "v4l2"}),
    ],
)
def test_what_the_unit_hides(tmp_path: Path, setting: str, values: dict[str, Any]) -> None:
    hidden = source(tmp_path, unit=Unit({setting: "yes"}), **values)
    assert (hidden.state, setting in hidden.what) == ("problem", True)
    assert setting not in source(tmp_path, unit=Unit({setting: "no"}), **values).what


def test_what_the_unit_was_told_to_show(tmp_path: Path) -> None:
    """As systemctl 252 prints what `systemd render` writes."""
    values = {"ProtectHome": "tmpfs", "BindReadOnlyPaths": "-/home/me/a b:/home/me/a b:rbind -/srv/x:/srv/x:rbind"}
    shown, other = Path("/home/me/a b/deep"), Path("/home/me/a")
    assert "ProtectHome" not in source(tmp_path, unit=Unit(values), type="folder", path=shown).what
    assert "ProtectHome" in source(tmp_path, unit=Unit(values), type="folder", path=other).what


def test_the_directory_of_a_dynamic_user(tmp_path: Path, place: Path) -> None:
    """That user does not exist while the service is stopped: its files seem to be nobody's."""
    examined = replace(subject(tmp_path, None, STRANGER), unit=Unit({"LoadState": "loaded", "DynamicUser": "yes"}))
    assert {f.id: f.state for f in state.look(examined)} == {"state": "skipped", "locks": "ok", "outbox": "ok"}


def test_what_is_attached(tmp_path: Path) -> None:
    assert sources.cameras(tmp_path).what == "none by USB"
    (tmp_path / "video0").write_text("")
    assert f"not asked: {tmp_path / 'video0'}: Inappropriate ioctl" in sources.cameras(tmp_path).what


def test_usb_cameras(tmp_path: Path) -> None:
    assert "does not exist" in source(tmp_path, type="v4l2", device=tmp_path / "video0").what
    (tmp_path / "video0").write_text("")
    assert "is not a camera" in source(tmp_path, type="v4l2", device=tmp_path / "video0").what
    device = Path("/dev/full")  # a character device that everybody may use, and nobody does
    assert source(tmp_path, type="v4l2", device=device).what == "camera /dev/full, group root"
    with device.open() as held, subprocess.Popen(["sleep", "60"], stdin=held) as other:
        found = source(tmp_path, type="v4l2", device=device)
        other.kill()
    assert (found.state, f"is in use by sleep ({other.pid})" in found.what) == ("problem", True)


def test_who_has_a_camera(tmp_path: Path) -> None:
    held = tmp_path / "video0"
    with held.open("w"):
        assert sources.users_of(held, Path("/proc")) == [os.getpid()]
    assert sources.users_of(held, Path("/proc")) == []


def test_cameras_at_the_connector(tmp_path: Path) -> None:
    """The system's Python answers for libcamera; here it is a program that says what it would."""
    python = tmp_path / "python"
    listed = '{"cameras": [{"Model": "imx708", "Id": "/base/soc/i2c0mux"}], "problem": ""}'
    for answer, state_, words in (
        (f"echo '{listed}'", "ok", "0: imx708"),
        ("""echo '{"cameras": [], "problem": ""}'""", "problem", "there are: none"),
        ("echo 'no picamera2' >&2; exit 1", "problem", "no picamera2"),
    ):
        python.write_text(f"#!/bin/sh\n{answer}\n")
        python.chmod(0o755)
        found = source(tmp_path, type="picamera", python=python)
        assert (found.state, words in found.what) == (state_, True), found


def test_network_cameras(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://sam:potatoes@127.0.0.1:{server.getsockname()[1]}/live?key=1"
        found = source(tmp_path, type="rtsp", url=url)
        assert found.state == "ok"
    lost = source(tmp_path, type="rtsp", url=url)
    assert (lost.state, "does not answer" in lost.what) == ("problem", True)
    assert "potatoes" not in f"{found}{lost}"
    assert source(tmp_path, type="stream", url=str(tmp_path / "none.mp4")).state == "problem"
    (film := tmp_path / "film #1?.mp4").touch()
    for url in (str(film), f"file://{tmp_path}/film%20%231%3F.mp4"):
        assert source(tmp_path, type="stream", url=url).state == "ok"
    assert source(tmp_path, type="stream", url="udp://:5000").state == "skipped"
    unclear = source(tmp_path, type="rtsp", url="rtsp://sam:1/potatoes@127.0.0.1/live")
    assert (unclear.state, "sam" in f"{unclear}") == ("skipped", False)


def test_programs(tmp_path: Path) -> None:
    assert source(tmp_path, type="command", command=["no-such-program", "--token", "x"]).what == (
        "the program no-such-program is not installed"
    )
    assert source(tmp_path, type="command", command=["sh"]).state == "ok"


# ---- secrets --------------------------------------------------------------------------------------------


def test_secrets_of_a_configuration_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pw").write_text("from the file\n")
    path = tmp_path / "config.yaml"
    path.write_text(
        "mqtt: {username: frodo, password: !file pw, port: nonsense}\n"
        'sources:\n  a: {type: rtsp, url: "rtsp://sam:p%40ss@cam.local/live?key=abc", password: 1234567}\n'
    )
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("USER", "bilbo")
    hide = hiding.hiding(path)
    said = (
        "frodo said from the file at rtsp://sam:p%40ss@cam.local/live?key=abc with p@ss, 1234567 and hf_abcdefghij, "
        "bilbo's /home/bilbo/x and /root/.cache; edge-daemon"
    )
    assert hide.secrets_in(said) == (
        "••• said ••• at rtsp://•••@cam.local/live?••• with •••, ••• and •••, bilbo's /home/bilbo/x and "
        "/root/.cache; edge-daemon"
    )
    assert hide.all_in(said).endswith("USER's ~/x and ~/.cache; edge-daemon")


@pytest.mark.parametrize(
    "text",
    [
        "password=SECRET",
        "'password': 'SECRET'",
        "Authorization: Bearer SECRET",
        "api_key: SECRET,",
        "http://me:SECRET@host/",
        "http://SECRET@host/",
        "rtsp://me:SEC@SECRET@host/",
        "rtsp://me:SEC/SECRET@host/",
        "rtsp://SECRET?SECRET@host/",
        "http://host/?x=SEC@SECRET",
        "http://host/?x=SECRET",
        "MQTT_PASSWORD=SECRET",
        "basic SECRET12345",
        "token hf_SECRET12345",
    ],
)
def test_secrets_that_nobody_knows_of(text: str) -> None:
    assert "SECRET" not in hiding.Hiding().secrets_in(text)


def test_a_user_name_is_hidden_where_it_stands_alone(tmp_path: Path) -> None:
    """Nodes and their topics have names that begin alike."""
    (tmp_path / "config.yaml").write_text("node: porch-pi\nmqtt: {username: porch}\n")
    hide = hiding.hiding(tmp_path / "config.yaml")
    assert hide.secrets_in("porch may write edge-daemon/porch-pi/x") == "••• may write edge-daemon/porch-pi/x"
    people = hiding.Hiding(people=frozenset({"pi"}))
    assert people.all_in("pi's porch-pi") == "USER's porch-pi"


def test_short_secrets_leave_the_words_as_they_are() -> None:
    hide = hiding.Hiding(frozenset({"a"}))
    assert hide.secrets_in("a camera, a=a") == "••• camera, •••=•••"


def test_a_file_that_cannot_be_read_has_no_secrets(tmp_path: Path) -> None:
    assert not hiding.hiding(tmp_path / "none").secrets & {"none"}
