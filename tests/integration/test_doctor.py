"""The doctor against real brokers with every reason to refuse us, and the command as its user gives it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_daemon import mqtt
from edge_daemon.config import Config
from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.broker import Broker, free_port
from edge_daemon.doctor import broker as broker_check
from edge_daemon.doctor.finding import Finding
from edge_daemon.doctor.screen import in_words
from edge_daemon.doctor.subject import Account, Subject
from edge_daemon.models.pull import PART
from edge_daemon.models.store import Store
from edge_daemon.topics import Topics
from tests.conftest import missing
from tests.integration.authority import Authority
from tests.integration.hub import COMMIT, REPOSITORY, Hub
from tests.integration.listening import LONG_S, Listener, mosquitto, until
from tests.integration.promised import broken

ROOT = Path(__file__).parents[2]
NOBODY = Account("nobody", 65534, frozenset())
ACL = """\
user porch
topic read edge-daemon/porch-pi/request/+
topic write edge-daemon/porch-pi/response/+
"""


def examined(
    tmp_path: Path, port: int, alone_s: float = 0.0, service_pid: int | None = None, image_kib: int = 0, **options: Any
) -> dict[str, Finding]:
    """What is said of a broker."""
    image = {"enabled": bool(image_kib), "max_kib": image_kib or 1}
    source = {"type": "folder", "path": tmp_path, "image": image}
    values = {
        "node": "porch-pi",
        "mqtt": {"host": "127.0.0.1", "port": port, **options},
        "sources": {"inbox": source},
        "homeassistant": {"enabled": False},
    }
    config = Config.model_validate(values)
    subject = Subject(tmp_path / "c", config, tmp_path, NOBODY, service_pid=service_pid, alone_s=alone_s)
    return {finding.id: finding for finding in broker_check.look(subject)}


def states(found: dict[str, Finding]) -> dict[str, str]:
    return {id.removeprefix("broker."): finding.state for id, finding in found.items()}


ALL_WELL = dict.fromkeys(("name", "port", "login", "listen", "write", "size", "alone"), "ok")


@contextmanager
def passwords(tmp_path: Path, acl: str = "") -> Iterator[int]:
    """A broker that knows the user porch."""
    program = shutil.which("mosquitto_passwd")
    if program is None:
        missing("mosquitto_passwd")
    subprocess.run([program, "-b", "-c", str(tmp_path / "passwords"), "porch", "right"], check=True)
    (tmp_path / "acl").write_text(acl)
    rules = f"acl_file {tmp_path / 'acl'}" if acl else ""
    with mosquitto(tmp_path, f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}\n{rules}") as port:
        yield port


# ---- the broker -----------------------------------------------------------------------------------------


def heard(listener: Listener, count: int) -> list[tuple[str, bytes, bool]]:
    """What a subscriber gets, when it has got so much."""
    end_s = time.monotonic() + LONG_S
    while len(listener.heard) < count and time.monotonic() < end_s:
        time.sleep(0.01)
    listener.stop()
    return listener.heard


def test_a_broker_where_all_is_well_and_that_hears_nothing_of_it(tmp_path: Path, broker: Broker) -> None:
    listener = Listener(broker.port)
    found = examined(tmp_path, broker.port, image_kib=100)
    assert states(found) == ALL_WELL
    assert "MQTT 5" in found["broker.login"].what
    assert found["broker.size"].what == "a message of 100 KiB is accepted"
    sent = heard(listener, 2)
    assert {topic for topic, _, _ in sent} == {"edge-daemon/porch-pi/response/doctor"}
    assert [broken("response/doctor", payload) for _, payload, _ in sent] == ["", ""]
    later = Listener(broker.port)
    assert states(examined(tmp_path, broker.port, protocol="3.1.1")) == ALL_WELL
    assert [retained for _, _, retained in heard(later, 2)] == [False, False]


def test_no_name_no_port_no_broker(tmp_path: Path) -> None:
    found = examined(tmp_path, 1883, host="no-such-host.invalid")
    assert states(found) == {"name": "problem", "login": "skipped"}
    assert "check mqtt.host" in found["broker.name"].what or "name server" in found["broker.name"].what
    found = examined(tmp_path, free_port())
    assert states(found) == {"name": "ok", "port": "problem", "login": "skipped"}
    assert "nothing listens there" in found["broker.port"].what


def test_something_else_listens(tmp_path: Path) -> None:
    def hang_up(server: socket.socket) -> None:
        for _ in range(3):  # the look at the port, and both versions of MQTT
            connection, _ = server.accept()
            connection.recv(64)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        found = examined(tmp_path, server.getsockname()[1])
    assert states(found) == {"name": "ok", "port": "ok", "login": "problem"}
    assert "does not answer like a broker" in found["broker.login"].what


def test_a_broker_that_speaks_only_the_older_mqtt(tmp_path: Path) -> None:
    """It says so, and then hangs up when we subscribe."""

    def talk(server: socket.socket) -> None:
        for answer in (b"", b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x00"):
            connection, _ = server.accept()
            with connection:
                if answer:
                    connection.recv(256)
                    connection.sendall(answer)
                    connection.recv(256)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=talk, args=(server,), daemon=True).start()
        found = examined(tmp_path, server.getsockname()[1])
    assert found["broker.login"].what == "taken without a login, MQTT 3.1.1"
    assert found["broker.listen"].what == "the broker closes the connection when we subscribe to commands"


def test_logins(tmp_path: Path) -> None:
    with passwords(tmp_path) as port:
        wrong = examined(tmp_path, port, username="porch", password="wrong-precious")
        none = examined(tmp_path, port)
        right = examined(tmp_path, port, username="porch", password="right")
    assert (states(wrong)["login"], states(none)["login"]) == ("problem", "problem")
    assert "check mqtt.username and mqtt.password" in wrong["broker.login"].what
    assert "it wants a login" in none["broker.login"].what
    assert "precious" not in str(wrong)
    assert states(right) == ALL_WELL


def test_access_lists(tmp_path: Path) -> None:
    """The one that we publish lets everything pass; without the right to write nothing would be heard of us."""
    published = (ROOT / "configs/mosquitto/acl").read_text()
    with passwords(tmp_path, published) as port:
        assert states(examined(tmp_path, port, username="porch", password="right")) == ALL_WELL
    with passwords(tmp_path, ACL.replace("response", "elsewhere")) as port:
        found = examined(tmp_path, port, username="porch", password="right")
    assert states(found) == {
        "name": "ok",
        "port": "ok",
        "login": "ok",
        "listen": "ok",
        "write": "problem",
        "alone": "ok",
    }
    assert "Not authorized" in found["broker.write"].what


def test_a_broker_that_does_not_let_us_listen(tmp_path: Path) -> None:
    """Mosquitto's own access lists grant every subscription; its other plugin does not."""
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        missing("mosquitto_dynamic_security.so")
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    (tmp_path / "dynamic.json").write_text(json.dumps({"defaultACLAccess": access, "clients": [], "roles": []}))
    (tmp_path / "dynamic.json").chmod(0o600)
    settings = f"plugin {plugin}\nplugin_opt_config_file {tmp_path / 'dynamic.json'}"
    with mosquitto(tmp_path, settings) as port:
        found = examined(tmp_path, port)
    assert states(found) == ALL_WELL | {"listen": "warning"}
    assert "may not subscribe to edge-daemon/porch-pi/request/+, " in found["broker.listen"].what
    assert "availability" not in found["broker.listen"].what, "nobody needs that one"


def test_messages_that_are_too_large(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "max_packet_size 20000") as port:
        told = examined(tmp_path, port, image_kib=50)
        cut = examined(tmp_path, port, image_kib=50, protocol="3.1.1")
        assert states(examined(tmp_path, port))["size"] == "ok"
    assert "the broker accepts at most 20000 bytes" in told["broker.size"].what
    assert states(cut)["size"] == "problem"
    with mosquitto(tmp_path, "message_size_limit 20000") as port:
        refused = examined(tmp_path, port, image_kib=50)
    assert states(refused)["size"] == "problem"
    with mosquitto(tmp_path, "") as port:
        own = examined(tmp_path, port, image_kib=50, max_packet_kib=20)
    assert "mqtt.max_packet_kib allows 20 KiB" in own["broker.size"].what


def test_encryption(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    server = ours.sign("server", days=60)
    soon = ours.sign("soon", days=3)

    def settings(certificate: Any) -> str:
        return f"certfile {certificate.file}\nkeyfile {certificate.key}"

    def tls(port: int, authority: Authority | None, **more: Any) -> dict[str, Finding]:
        ca = {"ca_file": authority.file} if authority else {}
        return examined(tmp_path, port, tls={"enabled": True, **ca, **more})

    with mosquitto(tmp_path, settings(server)) as port:
        right, wrong, unverified = tls(port, ours), tls(port, other), tls(port, None, verify=False)
        plain = examined(tmp_path, port)
        absent = examined(tmp_path, port, tls={"enabled": True, "ca_file": tmp_path / "none"})
    assert states(right) == ALL_WELL | {"tls": "ok"}
    assert (states(wrong)["tls"], states(wrong)["login"]) == ("problem", "skipped")
    assert "mqtt.tls.ca_file" in wrong["broker.tls"].what
    assert states(unverified)["tls"] == "warning"
    assert "mqtt.tls is missing" in plain["broker.login"].what or "hangs up" in plain["broker.login"].what
    assert "No such file" in absent["broker.tls"].what
    with mosquitto(tmp_path, settings(soon)) as port:
        assert "It ends in 2 days" in tls(port, ours)["broker.tls"].meaning
    with mosquitto(tmp_path, "") as port:
        assert states(tls(port, ours))["tls"] == "problem"


@contextmanager
def namesake(port: int, client_id: str) -> Iterator[list[str]]:
    """Another machine with our name, that comes back at once; what befalls it."""
    fate: list[str] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.reconnect_delay_set(1, 1)
    client.on_disconnect = lambda *_: fate.append("thrown out")
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert connected.wait(LONG_S)
    try:
        yield fate
    finally:
        client.disconnect()
        client.loop_stop()


def test_another_client_with_our_name(tmp_path: Path, broker: Broker) -> None:
    with namesake(broker.port, "shared") as fate:
        found = examined(tmp_path, broker.port, alone_s=60.0, client_id="shared")
        assert states(found)["alone"] == "problem"
        assert "another client has our name" in found["broker.alone"].what
        befell = len(fate)
        as_guest = examined(tmp_path, broker.port, client_id="shared", service_pid=1)
        assert states(as_guest)["alone"] == "skipped"
        assert len(fate) == befell > 0, "beside the running service we have another name"
        assert "under another client id" in as_guest["broker.login"].what


async def test_another_machine_with_our_node(tmp_path: Path, broker: Broker) -> None:
    import asyncio

    topics = Topics("edge-daemon", "porch-pi")
    from edge_daemon.mqtt_config import MqttConfig

    other = mqtt.Connection(MqttConfig(host="127.0.0.1", port=broker.port, client_id="other"), topics, lambda: None)
    other.state(topics.availability, b"online")
    other.start()
    await asyncio.wait_for(other.connected.wait(), 60)
    await until("all is confirmed", lambda: not len(other.outgoing))
    found = await asyncio.to_thread(examined, tmp_path, broker.port)
    await other.stop()
    assert states(found)["alone"] == "warning"
    assert "says `online`" in found["broker.alone"].what


# ---- a download that was cut ----------------------------------------------------------------------------


RESUME = """\
import json, sys
from pathlib import Path
from edge_daemon.config import Config
from edge_daemon.doctor import model
from edge_daemon.doctor.subject import Account, Subject
from edge_daemon.models.catalogue import HALF_BILLION, Artefact, RemoteFile
state_dir = Path(sys.argv[1])
files = tuple(RemoteFile(*file) for file in json.loads(sys.argv[2]))
sources = {"a": {"type": "folder", "path": "/x"}}
config = Config.model_validate({"state_dir": state_dir, "model": {"name": "small"}, "sources": sources})
small = Artefact("small", "a test", files, "none", HALF_BILLION)
subject = Subject(state_dir, config, state_dir, Account("nobody", 65534, frozenset()), catalogue=(small,))
(found,) = model.look(subject)
print(json.dumps({**found.document(), "done": found.fix.do() if found.fix else None}))
"""


def test_a_download_that_was_cut_is_told_of_and_goes_on(tmp_path: Path) -> None:
    contents = {
        name: (MODEL_DIR / name).read_bytes() for name in ("model.safetensors", "tokenizer.json", "config.json")
    }
    files = [(REPOSITORY, COMMIT, name, len(data), None) for name, data in contents.items()]
    blobs = tmp_path / "hf/hub" / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"

    def run(endpoint: str) -> dict[str, Any]:
        argv = [sys.executable, "-c", RESUME, str(tmp_path / "state"), json.dumps(files)]
        surroundings = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1"}
        surroundings.pop("HF_HUB_CACHE", None)
        done = subprocess.run(argv, env=surroundings, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    with Hub() as hub:
        hub.answers.files = contents
        absent = run(hub.endpoint)
        assert (absent["state"], absent["fix"]) == ("problem", None)
        assert absent["command"].endswith("edge-daemon model pull small")
        blobs.mkdir(parents=True)
        weights = contents["model.safetensors"]
        (blobs / f"{hashlib.sha256(weights).hexdigest()}{PART}").write_bytes(weights[: 4 << 20])
        cut = run(hub.endpoint)
        assert "A download was interrupted after 4 of" in cut["meaning"]
        assert "small is in" in cut["done"]
        assert hub.gets()[0].headers["range"] == f"bytes={4 << 20}-", "not once more from the beginning"
    assert (tmp_path / "state/models/small/model.safetensors").exists()


# ---- the command ----------------------------------------------------------------------------------------

SECRETS = ("my-precious", "po-ta-toes", "frodo", "tok3n-of-power", "hf_0123456789abc")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path


def torch_that(board: Path, code: str) -> str:
    """For PYTHONPATH: another torch, which does this when it is imported."""
    place = board / "stand-in"
    place.mkdir()
    (place / "torch.py").write_text(f"{code}\n")
    return str(place)


def configured(board: Path, port: int, more: str = "") -> Path:
    path = board / "config.yaml"
    path.write_text(
        f"node: porch-pi\nstate_dir: {board / 'state'}\n"
        f"mqtt: {{host: 127.0.0.1, port: {port}, username: frodo, password: my-precious}}\n"
        f"sources:\n  inbox: {{type: folder, path: {board / 'inbox'}}}\n{more}"
    )
    return path


def doctor(board: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "edge_daemon", "doctor", *arguments]
    surroundings = (
        os.environ | {"HF_TOKEN": "hf_0123456789abc", "EDGE_DAEMON_STATE_DIR": str(board / "state")} | environment
    )
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=surroundings, timeout=120)


def test_all_is_well_with_a_caption(board: Path, broker: Broker) -> None:
    done = doctor(board, "-c", str(configured(board, broker.port)), "--json")
    document = json.loads(done.stdout)
    found = {finding["id"]: finding for finding in document["findings"]}
    assert (done.returncode, document["exit_code"]) == (0, 0), [f for f in found.values() if f["state"] == "problem"]
    assert found["torch"]["what"].startswith("torch 2.")
    assert found["caption"]["state"] == "ok"
    assert "s a picture in float32" in found["caption"]["what"]
    assert found["broker.alone"]["state"] == "ok"
    assert not (board / "state").exists(), "the doctor makes nothing"
    assert done.stderr == ""


def test_no_secret_leaves_it_and_the_report_has_no_names(board: Path) -> None:
    url = "rtsp://sam:po-ta-toes@127.0.0.1:1/live?t=tok3n-of-power"
    path = configured(board, free_port(), f'  cam: {{type: rtsp, url: "{url}"}}\n')
    # the last words of a broken library may hold anything
    broken = f"raise ImportError('my-precious {url} /home/samwise/lib token=hf_0123456789abc of bilbo')"
    report = board / "report.txt"
    options = ("--no-caption", "--report", str(report))
    done = doctor(board, "-c", str(path), *options, PYTHONPATH=torch_that(board, broken), USER="bilbo")
    assert done.returncode == 69
    assert "✗ torch" in done.stdout
    text = report.read_text()
    assert "torch cannot be used: ImportError: •••" in text
    assert "✗ broker.port" in text
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr + text
    for name in ("samwise", "bilbo"):
        assert name not in text


def test_a_torch_that_dies_and_a_configuration_that_is_wrong(board: Path) -> None:
    dies = torch_that(board, "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    path = configured(board, 1883, "modle: {}\n")
    done = doctor(board, "-c", str(path), PYTHONPATH=dies)
    assert done.returncode == 78
    unwrapped = " ".join(done.stdout.split())
    assert f"✗ config {path}:6:1: modle" in unwrapped
    assert "was ended by SIGILL" in unwrapped
    assert "✓ memory" in done.stdout, "what needs no configuration is looked at all the same"
    assert "– broker          needs a usable configuration" in done.stdout


def test_nothing_is_mended_unasked_and_all_of_it_with_yes(board: Path) -> None:
    path = configured(board, free_port(), "model: {threads: 64}\n")
    models = board / "state/models/.mine.edge-daemon-staging"
    models.mkdir(parents=True)
    (board / "state").chmod(0o777)
    before = path.read_text()
    quick = torch_that(board, "raise ImportError")
    unasked = doctor(board, "-c", str(path), "--no-caption", "--fix", PYTHONPATH=quick)
    assert unasked.stdout.count("not done: there is nobody to ask; --yes repairs without asking") == 3
    assert (path.read_text(), models.exists()) == (before, True)
    done = doctor(board, "-c", str(path), "--no-caption", "--fix", "--yes", PYTHONPATH=quick)
    assert done.stdout.count("  done: ") == 3
    once_more = done.stdout.partition("once more:")[2]
    assert all(f"✓ {id}" in once_more for id in ("threads", "state", "locks")), once_more
    assert path.read_text() == before.replace("threads: 64", "threads: auto")
    assert not models.exists()
    assert (board / "state").stat().st_mode & 0o777 == 0o775
    assert done.returncode == 69, "no broker is there"
    assert Store(board / "state").leftovers() == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    from edge_daemon import cli

    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    assert "--no-caption" in capsys.readouterr().out


def test_the_screen_of_the_readme_is_what_it_prints(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = re.search(r"```\n(✓ broker\.name.*?)```", readme, re.DOTALL)
    assert block is not None
    port = int(re.findall(r"127\.0\.0\.1:(\d+)", block[1])[0])
    found = examined(tmp_path, port)
    assert "\n".join(in_words(finding) for finding in found.values()) + "\n" == block[1]
