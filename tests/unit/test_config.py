"""The configuration: good files, and for every bad one the place, the key, the value and what would be right."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from edge_daemon import config, mqtt_config, sections, source_config, yaml_file
from edge_daemon.errors import ConfigError
from edge_daemon.shown_address import HIDDEN
from edge_daemon.source_config import FolderConfig, StreamConfig

SOURCE = "sources: {porch: {type: folder, path: /srv}}\n"
SECRET = "hunter2-swordfish"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_DAEMON_STATE_DIR", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOT_SET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECRET", SECRET)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(file: Path, text: str | bytes) -> config.Config:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(file)


def refusal(file: Path, text: str | bytes) -> str:
    """The error, with the path of the file left out."""
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines), lines
    return "\n".join(line.removeprefix(f"{file}:") for line in lines)


# ---- good files -----------------------------------------------------------------------------------------


def test_what_is_left_out_has_its_default(file: Path) -> None:
    loaded = load(file, SOURCE)
    assert loaded.mqtt == mqtt_config.MqttConfig()
    assert (loaded.mqtt.host, loaded.mqtt.port, loaded.mqtt.base_topic) == ("localhost", 1883, "edge-daemon")
    assert loaded.model.name == "demo-shapes"
    assert loaded.state_dir == Path("/var/lib/edge-daemon")
    porch = loaded.sources["porch"]
    assert isinstance(porch, FolderConfig)
    assert (porch.path, porch.caption, porch.recursive, porch.questions) == (Path("/srv"), "short", True, ())
    assert re.fullmatch(sections.NAME_PATTERN, loaded.node)


def test_what_is_given_is_taken(file: Path) -> None:
    loaded = load(
        file,
        """\
# a comment
node: shed
mqtt:
    host: 192.168.1.20
    port: 1884
    username: cam
    password: "1234"
model: {threads: 2, memory_limit_mib: auto, temperature: 0}
sources:
    porch:
        type: folder
        path: /srv/küche
        caption: none
        questions:
        -   {id: gate, ask: "Is the gate open?"}
        -   {id: people, ask: "How many?"}
""",
    )
    assert loaded.node == "shed"
    assert loaded.mqtt.password is not None
    assert loaded.mqtt.password.get_secret_value() == "1234"
    assert loaded.model.threads == 2
    assert [question.id for question in loaded.sources["porch"].questions] == ["gate", "people"]
    assert loaded.sources["porch"].place == "/srv/küche"


def test_nothing_changes_after_reading(file: Path) -> None:
    loaded = load(file, SOURCE)
    with pytest.raises(ValueError, match="frozen"):
        loaded.mqtt.port = 1


@pytest.mark.parametrize("host", ["localhost", "broker.local.", "mqtt_1", "10.0.0.1", "::1", "fe80::1%eth0", "a" * 63])
def test_hosts(file: Path, host: str) -> None:
    assert load(file, f"mqtt: {{host: '{host}'}}\n{SOURCE}").mqtt.host == host


def test_windows_editors_leave_their_mark(file: Path) -> None:
    text = f"node: shed\n{SOURCE}".replace("\n", "\r\n")
    assert load(file, b"\xef\xbb\xbf" + text.encode()).node == "shed"


def test_dates_and_signs_are_words(file: Path) -> None:
    assert load(file, f"node: 2024-01-01\n{SOURCE}").node == "2024-01-01"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/var/lib/edge-daemon"),
        ({"STATE_DIRECTORY": "/var/lib/private/edge-daemon"}, "/var/lib/private/edge-daemon"),
        ({"STATE_DIRECTORY": "/a:/b"}, "/a"),
        ({"STATE_DIRECTORY": ""}, "/var/lib/edge-daemon"),
        ({"STATE_DIRECTORY": "/a", "EDGE_DAEMON_STATE_DIR": "/mine"}, "/mine"),
    ],
)
def test_where_the_state_is_kept(
    file: Path, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load(file, SOURCE).state_dir == Path(expected)
    assert load(file, f"state_dir: /else\n{SOURCE}").state_dir == Path("/else")


# ---- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["!env SECRET", "!file secret.txt", "!file '{folder}/secret.txt'", "!credential mqtt-password"]
)
def test_secrets_come_in_by_tags(file: Path, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "secret.txt").write_text(f"{SECRET}\r\nsecond line\n")
    (file.parent / "mqtt-password").write_text(SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    tag = tag.format(folder=file.parent)
    loaded = load(file, f"mqtt: {{username: cam, password: {tag}}}\n{SOURCE}")
    assert loaded.mqtt.password is not None
    assert loaded.mqtt.password.get_secret_value() == SECRET
    assert SECRET not in f"{loaded!r} {loaded.model_dump_json()}"


def test_a_number_may_come_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1884")
    assert load(file, f"mqtt: {{port: !env PORT}}\n{SOURCE}").mqtt.port == 1884


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("!env NOT_SET", "the environment variable 'NOT_SET' is not set (in the unit by Environment="),
        ("!file missing.txt", "missing.txt cannot be read: No such file or directory"),
        ("!file .", "cannot be read: Is a directory"),
        ("!file binary", "is not UTF-8 text"),
        (r'!file "a\0b"', "the secret's file name has a character that no file name can have"),
        ("!credential pw", "$CREDENTIALS_DIRECTORY is not set (LoadCredential=)"),
        ("!env [SECRET]", "only a single word may follow a tag (!env, !file, !credential)"),
        ("!env {a: b}", "only a single word may follow a tag"),
        ("!secret mqtt_password", "unknown tag; known are !env, !file, !credential"),
        ("!!python/name:os.system ''", "unknown tag"),
        ("!!binary aGk=", "unknown tag"),
        ("!!timestamp soon", "unknown tag"),
    ],
)
def test_a_tag_that_leads_nowhere(file: Path, tag: str, expected: str) -> None:
    (file.parent / "binary").write_bytes(b"\xff\xfe")
    error = refusal(file, f"mqtt:\n  username: cam\n  password: {tag}\n{SOURCE}")
    assert error.startswith("3:13: ")
    assert expected in error


@pytest.mark.parametrize(
    "text",
    [
        f"mqtt: {{password: {SECRET}}}",
        f"mqtt: {{username: a, password: [{SECRET}]}}",
        f"mqtt: {{username: a, password: {{{SECRET}: 1}}}}",
        f"mqtt: {{username: a, password: {{x: {SECRET}}}}}",
        f"mqtt: {{username: a, pasword: {SECRET}}}",
        f"mqtt: {{username: a, passwd: {SECRET}}}",
        f"mqtt: {{username: a, pwd: {SECRET}}}",
        f"mqtt: {{username: a, Password: {SECRET}}}",
        f"mqtt: {{username: a, pass: {SECRET}}}",
        f"mqtt: {{username: a, password: *{SECRET}}}",
        f"mqtt: {{username: a, password: &{SECRET}}}",
        f"mqtt: {{username: a, password: !{SECRET}}}",
        f"mqtt: {{username: a, password: !{SECRET}!x y}}",
        f"mqtt: {{username: a, password: !sceret {SECRET}}}",
        f"mqtt: {{username: a, password: !!int {SECRET}}}",
        f"mqtt: {{username: a, password: @{SECRET}}}",
        f"mqtt: {{username: a, password: %{SECRET}}}",
        f"mqtt: {{username: a, password: '{SECRET}",
        f"mqtt: {{username: a, password: {SECRET}: x}}",
        f'mqtt: {{username: a, password: "\\q{SECRET}"}}',
        f"mqtt:\n  username: a\n  password: {SECRET}\n   port: 1",
        f"mqtt:\n  username: a\n\tpassword: {SECRET}",
        f"mqtt: {{host: 'mqtt://cam:{SECRET}@broker'}}",
        f"mqtt: {{host: 'cam:{SECRET}@broker'}}",
        f"mqtt: {{hots: 'mqtt://cam:a/{SECRET}@broker'}}",
        f"mqtt: {{hots: 'ws://broker?token={SECRET}'}}",
        f"mqtt: {{websocket_path: 'mqtt/?token={SECRET}'}}",
        f"sources: {{a: {{type: rtsp, url: 'cam:{SECRET}@10.0.0.9/live'}}}}",
        f"sources: {{a: {{type: rtsp, url: '10.0.0.9/live&password={SECRET}'}}}}",
        f"sources: {{a: {{type: rtsp, url: 'rtsp://cam:[{SECRET}]@10.0.0.9/live'}}}}",
        f"sources: {{a: {{type: rtsp, url: 'rtsp://cam:[{SECRET}@10.0.0.9/live'}}}}",
        f"sources: {{a: {{type: rtsp, ulr: 'cam:{SECRET}@10.0.0.9/live'}}}}",
        f"password: {SECRET}",
        "mqtt: {port: !env SECRET}",
        "mqtt: {host: {a: !env SECRET}}",
        "mqtt: !env SECRET",
        "mqtt: {base_topic: !env SECRET, port: [!env SECRET, !env SECRET]}",
        "model: {precision: !env SECRET, threads: !env SECRET, temperature: !env SECRET}",
        "node: !env SECRET\nnode: x",
        "!env SECRET: x",
        "nod: !env SECRET",
        "node: [!env SECRET]",
        "log_level: !env SECRET",
        "state_dir: {a: {b: !env SECRET}}",
    ],
)
def test_no_error_shows_a_secret(file: Path, text: str) -> None:
    error = refusal(file, text if "sources:" in text else f"{text}\n{SOURCE}")
    assert SECRET not in error
    assert SECRET[:5] not in error


@pytest.mark.parametrize(
    "url",
    [
        *(f"rtsp://cam:{part}{SECRET}@camera.local/stream" for part in ("1[", "a/", "b#", "c?", "d@e:f/")),
        f"rtsp://cam:{SECRET}@[fe80::1/stream",
        f"rtsp://cam:SEC/{SECRET}@10.0.0.9/live",
        f"rtsp://cam:{SECRET}@camera.local:99999/stream",
        f"rtsp://cam:{SECRET}@/stream",
        f"http://camera.local:http/snapshot?user=cam&password={SECRET}",
        f"rtsp//cam:{SECRET}@camera.local/stream",
    ],
)
def test_no_error_shows_the_login_of_an_address_that_is_none(file: Path, url: str) -> None:
    error = refusal(file, f"sources:\n  porch:\n    type: rtsp\n    url: {url!r}\n")
    assert error.startswith("4:5: sources.porch.url: value ")
    assert SECRET[:5] not in error


@pytest.mark.parametrize(
    "url", ["rtsp://[fe80::1]:554/x", "udp://:5000", "udp://@:5000", "file:///srv/film.mp4", "/srv/film [1].mp4"]
)
def test_an_address_need_not_be_a_name(file: Path, url: str) -> None:
    assert "porch" in load(file, f"sources:\n  porch:\n    type: stream\n    url: {url!r}\n").sources


@pytest.mark.parametrize("number", ["12345", "0123", "1.5", "1_000", "1:30", "true", "0x1f", "~", ".inf"])
def test_a_password_that_looks_like_a_number(file: Path, number: str) -> None:
    text = f"mqtt:\n  username: cam\n  password: {number}\n{SOURCE}"
    if number == "~":
        assert load(file, text).mqtt.password is None
        return
    error = refusal(file, text)
    assert error.startswith("3:3: mqtt.password: value (hidden): this must be ")
    assert "this must be text" in error or "this must be a word" in error


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("rtsp://cam:SECRET@10.0.0.9:554/live?key=SECRET", "rtsp://10.0.0.9:554/live"),
        ("rtsp://cam:SEC@SECRET@10.0.0.9/live", "rtsp://10.0.0.9/live"),
        ("http://[fe80::1]:80/live", "http://[fe80::1]:80/live"),
        ("rtsp://cam:1234/SECRET@10.0.0.9/live", f"rtsp://{HIDDEN}"),
        ("rtsp://cam:1234?SECRET@10.0.0.9/live", f"rtsp://{HIDDEN}"),
        ("rtsp://cam:1234#SECRET@10.0.0.9/live", f"rtsp://{HIDDEN}"),
        ("http://10.0.0.9/live?key=SEC@SECRET", f"http://{HIDDEN}"),
        ("rtsp://10.0.0.9:554/user=cam&password=SECRET&channel=1&stream=0.sdp?", "rtsp://10.0.0.9:554/user=…"),
        ("rtsp://10.0.0.9/live;key=SECRET", "rtsp://10.0.0.9/live;key=…"),
        ("/srv/films/a@b=c.mp4", "/srv/films/a@b=c.mp4"),
        ("file:///srv/films/a@b=c.mp4", "file:///srv/films/a@b=c.mp4"),
    ],
)
def test_the_place_of_a_camera_holds_no_secret(url: str, place: str) -> None:
    assert StreamConfig(type="stream", url=SecretStr(url)).place == place


# ---- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: sources: this key is required"),
        ("# only a comment\n", "1:1: sources: this key is required"),
        ("- a\n- b\n", "1:1: the file must begin with keys such as 'mqtt:' and 'sources:'"),
        ("hello", "1:1: the file must begin with keys such as 'mqtt:' and 'sources:'"),
        ("!env SECRET", "1:1: the file must begin with keys such as 'mqtt:' and 'sources:'"),
        ("sources:", "1:1: sources: value null: this must be names with settings below them"),
        ("sources: {}", "1:1: sources: value (keys with values): there must be at least one"),
        ("sources: [a]", "1:1: sources: value (a list): this must be names with settings below them"),
        ("sources: {porch: /srv}", "1:11: sources.porch: value '/srv': this must be keys with values"),
        (f"mqtt: 5\n{SOURCE}", "1:1: mqtt: value 5: this must be keys with values"),
        (
            "sources: {health: {type: folder, path: /srv}}",
            "1:11: sources.health: value 'health': the node itself has this topic; give the source another name",
        ),
        (
            "sources: {a b: {type: folder, path: /srv}}",
            "1:11: sources.a b: value 'a b': only letters, digits, '_' and '-' are allowed",
        ),
        (
            "sources: {1: {type: folder, path: /srv}}",
            "1:11: sources.1: value 1: this must be text, in quotes if it looks like a number",
        ),
        ("sources: {porch: {path: /srv}}", "1:11: sources.porch.type: this key is required"),
        (
            "sources: {porch: {typ: folder, path: /srv}}",
            "1:11: sources.porch.type: this key is required; 'typ' looks like a misspelling of it",
        ),
        ("sources: {porch: {type: folder}}", "1:11: sources.porch.path: this key is required"),
        (
            "sources:\n  porch:\n    type: foldr\n    path: /srv\n",
            "3:5: sources.porch.type: value 'foldr': this must be one of folder, picamera, v4l2, rtsp, http, stream, "
            "command; did you mean 'folder'?",
        ),
        (
            "sources:\n  porch:\n    type: folder\n    path: srv\n",
            "4:5: sources.porch.path: value 'srv': this must be an absolute path, such as /srv/pictures",
        ),
        (
            "sources:\n  porch:\n    type: v4l2\n    device: video0\n",
            "4:5: sources.porch.device: value 'video0': this must be an absolute path, such as /dev/video0",
        ),
        (
            "sources:\n  porch:\n    type: folder\n    path: 5\n",
            "4:5: sources.porch.path: value 5: this must be a path",
        ),
        (
            "sources: {porch: {type: folder, path: /srv, caption: none}}",
            "1:11: sources.porch: value (keys with values): this source has nothing to do: set caption, or add "
            "questions or detect",
        ),
        (
            "sources: {p: {type: folder, path: /srv, questions: [{id: a, ask: b}, {id: a, ask: c}]}}",
            "1:11: sources.p: value (keys with values): the id 'a' is there twice; each question and each "
            "detection needs its own id",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    questions:\n    - {id: caption, ask: b}\n",
            "2:3: sources.p: value (keys with values): the id 'caption' is reserved for the caption; "
            "give the question another one",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    image: {enabled: true, boxes: true}\n",
            "2:3: sources.p: value (keys with values): image.boxes draws what detect finds: add detect, or leave "
            "image.boxes out",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    image: {quality: 100}\n",
            "5:13: sources.p.image.quality: value 100: input should be less than or equal to 95",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    questions:\n    - {id: a}\n",
            "6:7: sources.p.questions.0.ask: this key is required",
        ),
        *(
            (
                f"sources:\n  p: {{type: folder, path: /srv, recursive: {recursive}, pattern: '{pattern}'}}\n",
                f"2:3: sources.p: value (keys with values): {expected}",
            )
            for pattern, recursive, expected in (
                (
                    "/srv/*.jpg",
                    "true",
                    "pattern is matched against the path below the folder: begin it without / or ./",
                ),
                ("./*.jpg", "true", "pattern is matched against the path below the folder: begin it without / or ./"),
                ("a/*.jpg", "false", "a pattern with / in it is for folders below the folder: set recursive to true"),
                ("*.{jpg,png}", "true", "pattern supports *, ? and [..] but no braces"),
            )
        ),
        (
            'sources:\n  "[x]":\n    type: folder\n    path: /srv\n    foo: 1\n',
            "2:3: sources.[x]: value '[x]': only letters, digits, '_' and '-' are allowed\n"
            "5:5: sources.[x].foo: value 1: unknown key; known here: enabled,",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    questions: {id: a, ask: b}\n",
            "5:5: sources.p.questions: value (keys with values): this must be a list",
        ),
        *(
            (
                f"sources:\n  p:\n    type: rtsp\n    url: '{url}'\n",
                "4:5: sources.p.url: value (hidden): the host or port is not valid: the port must be 1 to "
                "65535, an IPv6 address needs brackets",
            )
            for url in ("rtsp://[fe80::1/stream", "rtsp://camera.local:abc/x", "http://camera.local:99999/x")
        ),
        (
            "sources:\n  p:\n    type: rtsp\n    url: 'rtsp://'\n",
            "4:5: sources.p.url: value (hidden): it has no host; write it like rtsp://camera.local:554/stream1",
        ),
        (
            f"mqtt:\n  port: 70000\n{SOURCE}",
            "2:3: mqtt.port: value 70000: input should be less than or equal to 65535",
        ),
        (
            f"mqtt:\n  port: many\n{SOURCE}",
            "2:3: mqtt.port: value 'many': input should be a valid integer, unable to parse string as an integer",
        ),
        (
            f"mqtt:\n  port: yes\n{SOURCE}",
            "2:3: mqtt.port: value true: this must be a word or a number; YAML reads yes, no, on and off as true and "
            "false",
        ),
        (
            f"mqtt:\n  base_topic: /a//b\n{SOURCE}",
            "2:3: mqtt.base_topic: value '/a//b': only letters, digits, '_' and '-' are allowed, with single '/' "
            "between them",
        ),
        (
            f"mqtt:\n  host: mqtt://broker:1883\n{SOURCE}",
            "2:3: mqtt.host: value 'mqtt://broker:1883': this must be a host name or address, such as localhost or "
            "192.168.1.20, without 'mqtt://' or port",
        ),
        (f"mqtt:\n  host: ''\n{SOURCE}", "2:3: mqtt.host: value '': this must be a host name or address"),
        (f"mqtt:\n  host: a..b\n{SOURCE}", "2:3: mqtt.host: value 'a..b': this must be a host name or address"),
        (
            f"mqtt: {{password: x}}\n{SOURCE}",
            "1:1: mqtt: value (keys with values): in MQTT a password needs a username; add mqtt.username",
        ),
        (
            f"model:\n  threads: 2.5\n{SOURCE}",
            "2:3: model.threads: value 2.5: input should be 'auto' or input should be a valid integer",
        ),
        (
            f"model:\n  threads: {{a: 1}}\n{SOURCE}",
            "2:3: model.threads: value (keys with values): input should be 'auto' or input should be a valid integer",
        ),
        (
            f"model:\n  start_timeout_s: .inf\n{SOURCE}",
            "2:3: model.start_timeout_s: value inf: input should be a finite number",
        ),
        (f"nod: x\n{SOURCE}", "1:1: nod: value 'x': unknown key; did you mean 'node'?"),
        (f"mqtt: {{prot: 1}}\n{SOURCE}", "1:8: mqtt.prot: value 1: unknown key; did you mean 'port'?"),
        (
            f"mqtt: {{zzz: 1}}\n{SOURCE}",
            "1:8: mqtt.zzz: value 1: unknown key; known here: host, port, username, password,",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    recursiv: no\n",
            "5:5: sources.p.recursiv: value false: unknown key; did you mean 'recursive'?",
        ),
        (
            "sources:\n  p:\n    type: folder\n    path: /srv\n    questions:\n    - {id: a, ask: b, aks: c}\n",
            "6:23: sources.p.questions.0.aks: value 'c': unknown key; did you mean 'ask'?",
        ),
        (f"node: {'x' * 200}\n{SOURCE}", f"1:1: node: value '{'x' * 76}...: string should have at most 64 characters"),
    ],
)
def test_what_the_values_should_be(file: Path, text: str, expected: str) -> None:
    assert refusal(file, text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1: the key 'a' is here twice"),
        ("mqtt:\n  port: 1\n  port: 2\n", "3:3: the key 'port' is here twice"),
        ("a: 1\n'a': 2\n", "2:1: the key 'a' is here twice"),
        ("mqtt:\n\tport: 1\n", "2:1: not valid YAML: there is a tab here; indent with spaces"),
        ("mqtt:\n  host: [a\n", "3:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c\n", "1:5: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", "2:1: not valid YAML: but found another document"),
        ("yes: 1\n", "1:1: a key must be a plain word; put it in quotes if it looks like a value"),
        ("1.5: 1\n", "1:1: a key must be a plain word"),
        ("~: 1\n", "1:1: a key must be a plain word"),
        ("? [a]\n: b\n", "1:3: a key must be a plain word"),
        ("? {a: b}\n: c\n", "1:3: a key must be a plain word"),
        ("a: !!int x\n", "1:4: this looks like a number but is not one; to use it as text, put it in quotes"),
        ("a: !!bool x\n", "1:4: this looks like a number but is not one"),
        ("a: !!int ''\n", "1:4: this looks like a number but is not one"),
        ("a: 0b_\n", "1:4: this looks like a number but is not one"),
        (f"a: {'9' * 5000}\n", "1:4: this looks like a number but is not one"),
        ("!!bool x: 1\n", "1:1: this looks like a number but is not one"),
        ("a: &x 1\nb: *x\n", "1:4: not valid YAML: &name and *name are not supported"),
        ("a: *x\n", "1:4: not valid YAML: &name and *name are not supported"),
        ("a: &x\n  b: 1\n", "1:4: not valid YAML: &name and *name are not supported"),
        ("a: !!seq {b: c}\n", None),
        (b"a: 1\nb: \xff\n", "2:4: not UTF-8 text: invalid start byte"),
        ("node: x\n".encode("utf-16"), "1:1: not UTF-8 text: invalid start byte"),
        ("a: 1\nbc: \0\n", "2:5: a control character (code 0) in the text"),
        ("a: \x1b[31m\n", "1:4: a control character (code 27) in the text"),
        ("a: " + "[" * 400 + "]" * 400, "1:1: brackets nested too deeply to be read"),
        ("a: " + "{b: " * 5000 + "}" * 5000, "1:1: brackets nested too deeply to be read"),
        ("- " * 5000, "1:1: brackets nested too deeply to be read"),
    ],
)
def test_what_is_no_yaml_of_ours(file: Path, text: str | bytes, expected: str | None) -> None:
    error = refusal(file, text)
    assert expected is None or error.startswith(expected)


def test_a_billion_laughs_are_not_funny(file: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert refusal(file, f'l0: &l0 ["ha"]\n{levels}').startswith("1:5: not valid YAML: &name and *name are not")


def test_merges_are_keys_like_others(file: Path) -> None:
    assert refusal(file, f"<<: {{node: x}}\n{SOURCE}").startswith("1:1: <<: value (keys with values): unknown key")
    assert refusal(file, f"=: x\n{SOURCE}").startswith("1:1: =: value 'x': unknown key")


def test_everything_wrong_is_told_at_once(file: Path) -> None:
    error = refusal(file, "nod: x\nmqtt:\n  port: 0\n  keepalive_s: 1\nsources: {}\n")
    assert [line.partition(" ")[0] for line in error.splitlines()] == ["3:3:", "4:3:", "5:1:", "1:1:"]


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: (No such file or directory|Is a directory)"):
        config.load(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(file: Path) -> None:
    file.touch(0o000)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        config.load(file)


# ---- anything -------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *"-:?{}[],&*!|>'\"%@`# \n\t~",
        *("  ", "- ", ": ", "\n  ", "---\n", "...", "\r\n", "<<", "ü", "\x85", "yes", "1", "1.5"),
        *("mqtt", "port", "password", "sources", "porch", "type", "path", "!env ", "SECRET", "!file ", "!!int "),
    ]
)


@given(st.lists(WORDS, max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    data, found = text.encode("utf-8", "surrogatepass"), ""
    try:
        load(file, data)
    except ConfigError as error:
        found = str(error)
    assert not found or re.match(rf"{re.escape(str(file))}:\d+:\d+: .", found)


def test_the_place_of_a_key_that_is_not_there_is_that_of_the_nearest_above(file: Path) -> None:
    file.write_text("a:\n  b:\n  - c\n  - {d: 1}\n")
    document = yaml_file.read(file)
    places = {key: document.where(key).removeprefix(f"{file}:") for key in document.places}
    assert places == {
        (): "1:1",
        ("a",): "1:1",
        ("a", "b"): "2:3",
        ("a", "b", 0): "3:5",
        ("a", "b", 1): "4:5",
        ("a", "b", 1, "d"): "4:6",
    }
    assert document.where(("a", "b", 1, "x", "y")) == f"{file}:4:5"
    assert document.where(("z",)) == f"{file}:1:1"


# ---- the model ------------------------------------------------------------------------------------------


def test_the_machine_decides_where_and_how_the_model_runs(file: Path) -> None:
    model = load(file, SOURCE).model
    assert (model.device, model.precision, model.variant) == ("auto", "auto", "auto")
    assert (model.kv_precision, model.silence_timeout_s) == ("auto", "auto")


def test_int8_a_short_cache_and_a_deadline_can_be_asked_for(file: Path) -> None:
    model = load(file, f"model: {{precision: int8, kv_precision: float16, silence_timeout_s: 40}}\n{SOURCE}").model
    assert (model.precision, model.kv_precision, model.silence_timeout_s) == ("int8", "float16", 40.0)


@pytest.mark.parametrize("variant", ["2b", "0.5b"])
def test_a_variant_is_one_of_moondream(file: Path, variant: str) -> None:
    assert load(file, f"model: {{name: moondream, variant: {variant}}}\n{SOURCE}").model.variant == variant
    message = refusal(file, f"model: {{variant: {variant}, name: moondream-{variant}}}\n{SOURCE}")
    assert message.startswith("1:1: model: ")
    assert message.endswith(
        f"variant {variant} only works with name 'moondream'; with 'moondream-{variant}' leave it out"
    )


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_int8_and_an_accelerator_contradict_each_other(file: Path, device: str) -> None:
    message = refusal(file, f"model: {{precision: int8, device: {device}}}\n{SOURCE}")
    assert message.endswith(f"precision int8 runs on the CPU only; with device {device} leave precision out")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("device: gpu", "model.device: value 'gpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        (
            "precision: int4",
            "model.precision: value 'int4': input should be 'auto', 'float32', 'int8', 'bfloat16' or 'float16'",
        ),
        ("kv_precision: int8", "model.kv_precision: value 'int8': input should be 'auto', 'float32' or 'float16'"),
        ("silence_timeout_s: never", "model.silence_timeout_s: value 'never': input should be 'auto' or "),
        ("variant: 7b", "model.variant: value '7b': input should be 'auto', '0.5b' or '2b'"),
    ],
)
def test_what_is_not_one_of_a_few_is_told_with_the_few(file: Path, setting: str, words: str) -> None:
    assert words in refusal(file, f"model:\n  {setting}\n{SOURCE}")


def test_the_limit_of_heat_is_above_where_pauses_begin(file: Path) -> None:
    assert load(file, f"thermal: {{slow_down_at_c: 50, limit_at_c: 60}}\n{SOURCE}").thermal.limit_at_c == 60
    message = refusal(file, f"thermal: {{slow_down_at_c: 85}}\n{SOURCE}")
    assert message.endswith("limit_at_c must be above slow_down_at_c (85)")


# ---- questions and things to look for -------------------------------------------------------------------


def asked(file: Path, question: str) -> source_config.Question:
    (question_,) = (
        load(file, f"sources: {{p: {{type: folder, path: /srv, questions: [{question}]}}}}").sources["p"].questions
    )
    return question_


def test_a_question_of_an_older_file_asks_for_a_text(file: Path) -> None:
    question = asked(file, "{id: gate, ask: Is it open}")
    assert (question.type, question.choices, question.for_frames) == ("text", (), 1)
    assert (question.unit, question.device_class) == (None, None)


@pytest.mark.parametrize(
    "settings",
    [
        "type: yes_no, for_frames: 2, device_class: door",
        "type: choice, choices: [open, half open, closed], for_frames: 3",
        "type: choice, choices: ['on', 'off']",
        "type: number, unit: cats",
        "type: number, unit: '°C', device_class: temperature",
        "type: text",
    ],
)
def test_what_a_question_can_ask_for(file: Path, settings: str) -> None:
    assert asked(file, f"{{id: gate, ask: How, {settings}}}").type == settings.split()[1].strip(",")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("type: bool", "1: value 'bool': input should be 'text', 'yes_no', 'number' or 'choice'"),
        ("type: choice", "type choice needs at least two choices, such as choices: [open, closed]"),
        ("type: choice, choices: [open]", "type choice needs at least two choices"),
        ("choices: [open, closed]", "choices work only with type choice; leave them out for type text"),
        ("type: choice, choices: [car, Cars]", "the choices 'car' and 'Cars' cannot be told apart"),
        ("type: choice, choices: [car, '?']", "the choice '?' has no word in it"),
        ("type: choice, choices: [car, Unknown]", "the choice 'Unknown' is reserved for unclear answers"),
        (
            "type: choice, choices: [on, off]",
            "choices.0: value true: this must be text; YAML reads yes, no, on and off as true and false, so put them",
        ),
        ("type: choice, choices: open", "choices: value 'open': this must be a list"),
        ("for_frames: 2", "for_frames works only with types yes_no and choice; leave it out for type text"),
        (
            "type: number, for_frames: 2",
            "for_frames works only with types yes_no and choice; leave it out for type number",
        ),
        ("type: yes_no, for_frames: 0", "for_frames: value 0: input should be greater than or equal to 1"),
        ("type: yes_no, for: 2", "for: value 2: unknown key; known here: id, ask, type, choices, for_frames, unit"),
        ("type: yes_no, unit: cats", "unit works only with type number; leave it out for type yes_no"),
        ("device_class: door", "device_class works only with types yes_no and number; leave it out for type text"),
        ("type: yes_no, device_class: dor", "no device_class 'dor' for type yes_no; did you mean 'door'?"),
        ("type: number, device_class: door", "no device_class 'door' for type number; known here: battery, current"),
        ("type: number, device_class: temperature", "device_class temperature needs one of these units: °C, °F, K"),
        ("type: number, unit: C, device_class: temperature", "needs one of these units: °C, °F, K"),
    ],
)
def test_what_a_question_cannot_ask_for(file: Path, settings: str, words: str) -> None:
    question = f"{{id: gate, ask: How, {settings}}}"
    source = f"sources:\n  p:\n    type: folder\n    path: /srv\n    questions:\n    - {question}\n"
    message = refusal(file, source)
    assert message.startswith("6:")
    assert "sources.p.questions.0" in message
    assert words.removeprefix("1: ") in message


def test_things_to_look_for_are_names_or_have_an_id(file: Path) -> None:
    text = "sources: {p: {type: folder, path: /srv, caption: none, detect: [car, red  car!, {id: dogs, what: dog}]}}"
    things = load(file, text).sources["p"].detect
    assert [(thing.id, thing.what) for thing in things] == [("car", "car"), ("red-car", "red  car!"), ("dogs", "dog")]


@pytest.mark.parametrize(
    ("detect", "words"),
    [
        ("car", "detect: value 'car': this must be a list"),
        ("[1]", "detect.0: value 1: write what to look for, such as car"),
        ("[on]", "detect.0: value true: write what to look for, such as car"),
        ("['?']", "only letters, digits, '_' and '-' are allowed"),
        ("[{what: car}]", "detect.0.id: this key is required"),
        ("[{id: car, wat: car}]", "detect.0.wat: value 'car': unknown key; did you mean 'what'?"),
        ("[car, car]", "the id 'car' is there twice; each question and each detection needs its own id"),
        ("[gate]", "the id 'gate' is there twice"),
        ("[caption]", "the id 'caption' is reserved for the caption"),
    ],
)
def test_what_cannot_be_looked_for(file: Path, detect: str, words: str) -> None:
    source = f"sources: {{p: {{type: folder, path: /srv, questions: [{{id: gate, ask: Open}}], detect: {detect}}}}}"
    assert words in refusal(file, source)


def test_questions_from_elsewhere_keep_the_rules_of_the_file() -> None:
    assert config.questions([{"id": "gate", "ask": "Open?", "type": "yes_no"}])[0].type == "yes_no"
    assert config.questions([]) == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("gate", "questions: this must be a list"),
        (None, "questions: this must be a list"),
        ([5], "questions.0: this must be keys with values"),
        ([{"id": "gate"}], "questions.0.ask: this key is required"),
        ([{"id": "a b", "ask": "?"}], "questions.0.id: only letters, digits, '_' and '-' are allowed"),
        ([{"id": "a", "ask": "?", "tpye": "text"}], "questions.0.tpye: unknown key; did you mean 'type'?"),
        ([{"id": "a", "ask": "?", "type": "choice"}], "questions.0: type choice needs at least two choices"),
    ],
)
def test_what_questions_from_elsewhere_cannot_be(values: object, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.questions(values)


def test_home_assistant_is_told_unless_switched_off(file: Path) -> None:
    assert load(file, SOURCE).homeassistant == config.HomeAssistantConfig(enabled=True, prefix="homeassistant")
    assert not load(file, f"homeassistant: {{enabled: off}}\n{SOURCE}").homeassistant.enabled
    message = refusal(file, f"homeassistant: {{prefix: 'ha/#'}}\n{SOURCE}")
    assert message.endswith("only letters, digits, '_' and '-' are allowed, with single '/' between them")


@pytest.mark.parametrize("key", ["username", "password"])
@pytest.mark.parametrize("value", [b"tail\xff", "ü".encode() * 32768], ids=["no UTF-8", "too long"])
def test_a_login_that_mqtt_cannot_send_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: bytes
) -> None:
    monkeypatch.setitem(os.environb, b"SECRET", value)
    path = tmp_path / "config.yaml"
    path.write_text(f"mqtt:\n  {key}: !env SECRET\n" + ("  username: cam\n" * (key == "password")) + SOURCE)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert f"2:3: mqtt.{key}: value (hidden): this must be UTF-8 text of at most 65535 bytes" in str(caught.value)


# ---- the broker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "port"),
    [("{}", 1883), ("{tls: {enabled: true}}", 8883), ("{tls: {enabled: true}, port: 1}", 1), ("{tls: {}}", 1883)],
)
def test_the_usual_port(tmp_path: Path, keys: str, port: int) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mqtt: {keys}\nsources: {{porch: {{type: folder, path: /srv}}}}\n")
    assert config.load(file).mqtt.port == port


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            "tls: {ca_file: /ca.crt}",
            "mqtt.tls: value (keys with values): this works only with an encrypted connection",
        ),
        ("tls: {enabled: true, ca_file: ca.crt}", "mqtt.tls.ca_file: value 'ca.crt': this must be an absolute path"),
        ("tls: {enabled: true, key_file: /k}", "key_file needs a cert_file"),
        ("tls: {enabled: true, verify: false, ca_file: /c}", "with verify: false ca_file is not used"),
        ("tls: {enabled: true, min_version: 1.1}", "mqtt.tls.min_version: value '1.1': input should be '1.2' or '1.3'"),
        ("protocol: 3.1", "mqtt.protocol: value '3.1': input should be 'auto', '5' or '3.1.1'"),
        ("transport: websockets", "websockets have no standard port"),
        ("websocket_path: mqtt", "this must be a path that begins with '/'"),
    ],
)
def test_what_is_wrong_about_the_broker_is_told_once(tmp_path: Path, keys: str, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mqtt: {{{keys}}}\nsources: {{porch: {{type: folder, path: /srv}}}}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["5", "'5'", "5.0"])
def test_a_protocol_may_look_like_a_number(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mqtt: {{protocol: {value}}}\nsources: {{porch: {{type: folder, path: /srv}}}}\n")
    assert config.load(file).mqtt.protocol == "5"
