"""Who may do what at the broker: the example of configs/mosquitto, and what happens while it allows us too little."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from edge_daemon import discovery, mqtt, publisher, topics
from edge_daemon.demo.broker import find_mosquitto, free_port
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import PublishDenied
from edge_daemon.leftovers import Leftovers
from edge_daemon.outbox import Outbox
from edge_daemon.reasons import REASONS
from edge_daemon.topics import Publication, Topics
from tests.conftest import missing
from tests.integration.authority import Authority
from tests.integration.listening import (
    CAPTION,
    EVENT,
    TOPICS,
    Listener,
    connection,
    count_calls,
    mosquitto,
    retained,
    until,
)
from tests.integration.service import BASE, Service, running, wait_for

EXAMPLE = Path(__file__).parents[2] / "configs/mosquitto"
ANSWER = TOPICS.of("porch", "answer/open")
PICTURE = bytes.fromhex("ffd8")
NODE = "edge-daemon/porch-pi"
RESULT = {"id": "r1", "task": "caption", "caption": "A red circle."}


# ---- the example ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guarded:
    """A mosquitto with the settings of the example."""

    port: int
    ca_file: Path

    def client(self, program: str, user: str, *options: str) -> list[str]:
        """The command line of one of mosquitto's clients."""
        login = ["-u", user, "-P", f"{user}-secret"] if user else []
        return [program, "-h", "localhost", "-p", str(self.port), "--cafile", str(self.ca_file), *login, *options]

    def hears(self, user: str, topic: str, *options: str) -> bytes:
        """The next message of a topic, or nothing."""
        argv = self.client("mosquitto_sub", user, "-t", topic, "-C", "1", *options)
        return subprocess.run(argv, capture_output=True, check=False).stdout

    def says(self, user: str, topic: str, payload: str, *options: str) -> str:
        """What the broker has against it."""
        argv = self.client("mosquitto_pub", user, "-V", "5", "-q", "1", "-t", topic, "-m", payload, *options)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


@contextmanager
def guarded(directory: Path) -> Iterator[Guarded]:
    """mosquitto.conf and acl are used as they are, but for the port and the places of files."""
    program, passwords = find_mosquitto(), shutil.which("mosquitto_passwd")
    if program is None or passwords is None:
        missing("mosquitto")
    (directory / "passwords").touch(0o600)
    for user in ("porch", "homeassistant", "display"):
        subprocess.run([passwords, "-b", directory / "passwords", user, f"{user}-secret"], check=True)
    authority, port = Authority(directory), free_port()
    authority.sign("broker", "DNS:localhost")
    shutil.copy(EXAMPLE / "acl", directory / "acl")
    settings = (EXAMPLE / "mosquitto.conf").read_text().replace("listener 8883", f"listener {port} 127.0.0.1")
    settings = re.sub(
        r"^(\w+) /(?:etc|var/lib)/mosquitto/(?:certs/)?", rf"\1 {directory}/", settings, flags=re.MULTILINE
    )
    assert "/etc/mosquitto" not in re.sub("(?m)^#.*", "", settings)
    (directory / "mosquitto.conf").write_text(settings + ("user root\n" if os.geteuid() == 0 else ""))
    with subprocess.Popen([program, "-c", directory / "mosquitto.conf"], stderr=subprocess.DEVNULL) as process:
        made = Guarded(port, authority.file)
        wait_for("the broker is there", lambda: not made.says("porch", f"{NODE}/availability", "offline"))
        yield made
        process.terminate()


def test_the_example_lets_everything_work_and_nobody_else_in(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    with guarded(tmp_path / "broker") as broker:
        service = Service(tmp_path, broker.port)
        config = yaml.safe_load(
            (EXAMPLE / "edge-daemon.yaml").read_text().replace("!env EDGE_DAEMON_MQTT_PASSWORD", "x")
        )
        (tmp_path / "password").write_text("porch-secret\n")
        config["mqtt"] |= {"host": "localhost", "port": broker.port}
        config["mqtt"]["tls"]["ca_file"] = str(broker.ca_file)
        config["sources"]["inbox"] |= {"path": str(service.inbox), "settle_s": 0.2, "image": {"enabled": True}}
        config |= {"state_dir": str(tmp_path / "state")}
        text = yaml.safe_dump(config).replace("password: x", "password: !file password")
        service.config.write_text(text)
        gone = leave_something(broker, tmp_path / "state")
        with running(service):
            assert broker.hears("homeassistant", f"{NODE}/availability", "-W", "60") == b"online\n"
            sample_pictures(service.inbox, 1, seed=3)
            result = json.loads(broker.hears("homeassistant", f"{NODE}/inbox/caption", "-W", "60"))
            assert result["node"] == "porch-pi"
            see_who_may_what(broker)
            wait_for("what is gone is taken off", lambda: all(topic in service.log() for topic in gone))
            health = json.loads(broker.hears("homeassistant", f"{NODE}/health", "-W", "60"))
            assert health["mqtt"] | {"queued": 0} == {
                "problem": "",
                "protocol": "5",
                "warning": "",
                "queued": 0,
                "refused": 0,
                "last_refused": "",
            }
            assert service.end() == 0
        assert b"offline" in broker.hears("display", f"{NODE}/availability", "-W", "60")
        assert "does not" not in service.log()


def leave_something(broker: Guarded, state_dir: Path) -> list[str]:
    """A source that was there before: all that the broker keeps of it."""
    gone = Topics("edge-daemon", "porch-pi").retained("shed", ["gate"], caption=True, image=True)
    for topic in gone:
        assert not broker.says("porch", topic, "{}", "-r")
    state_dir.mkdir()
    (state_dir / "retained.json").write_text(json.dumps({f"localhost:{broker.port}": gone}))
    return gone


def see_who_may_what(broker: Guarded) -> None:
    assert broker.hears("display", f"{NODE}/inbox/caption", "-W", "30")
    assert broker.hears("homeassistant", f"{NODE}/inbox/image", "-W", "30").startswith(PICTURE)
    assert "origin" in json.loads(broker.hears("homeassistant", "homeassistant/device/+/config", "-W", "30"))
    argv = broker.client("mosquitto_rr", "homeassistant", "-t", f"{NODE}/request/stats", "-e", f"{NODE}/response/stats")
    answer = json.loads(subprocess.run([*argv, "-n", "-W", "30"], capture_output=True, check=True).stdout)
    assert answer["status"] == "ok"
    for topic in ("request/stats", "inbox/trigger", "inbox/enabled/set", "inbox/caption"):
        assert "Not authorized" in broker.says("display", f"{NODE}/{topic}", "OFF"), topic
    assert "Not authorized" in broker.says("homeassistant", f"{NODE}/inbox/caption", "forged")
    watch = broker.client("mosquitto_sub", "display", "-t", "#", "-W", "2", "-F", "%t")
    seen = set(subprocess.run(watch, capture_output=True, text=True, check=False).stdout.split())
    assert seen == {
        f"{NODE}/{t}" for t in ("availability", "inbox/availability", "inbox/caption", "inbox/caption/text")
    }
    assert "ot authori" in broker.says("", f"{NODE}/request/stats", "{}")


# ---- what the broker does not allow us -------------------------------------------------------------------


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Path]]:
    """The port of a broker with an access list, and the list."""
    monkeypatch.setattr(mqtt, "DENIED_S", 0.3)
    monkeypatch.setattr(publisher, "DENIED_S", 0.3)
    file = tmp_path / "acl"
    file.write_text(f"topic read #\ntopic write {TOPICS.availability}\n")
    file.chmod(0o600)
    with mosquitto(tmp_path, f"acl_file {file}") as port:
        yield port, file


def allow(file: Path, but: str = "") -> None:
    """Mend the list, and have the broker read it; nobody is disconnected."""
    file.write_text("topic readwrite #\n" + (f"topic deny {but}\n" if but else ""))
    for child in psutil.Process().children():
        if child.name() == "mosquitto":
            child.send_signal(signal.SIGHUP)


async def test_what_is_not_allowed_is_told_and_sent_when_it_is(access: tuple[int, Path], tmp_path: Path) -> None:
    """Nothing is lost, and nothing goes round and round."""
    port, file = access
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.put("porch", [RESULT, {**RESULT, "id": "r2"}], None)
    async with connection(port) as ours:
        ours.state(TOPICS.health, b"{}")
        beats: list[None] = []
        ours_publisher = publisher.Publisher(outbox, ours, asyncio.Event(), lambda: beats.append(None), 0.1)
        task = asyncio.create_task(ours_publisher.run())
        await until("it is told", lambda: REASONS[135] in ours.problem and outbox.aside() == 2)
        assert EVENT in ours.problem or TOPICS.health in ours.problem
        with pytest.raises(PublishDenied):
            await ours.publish(Publication(EVENT, b"", retain=False))
        count = len(beats)
        await asyncio.sleep(0.5)
        assert len(beats) - count < 60, "it does not go round and round"
        assert (ours.sessions, ours.complaints.refused, outbox.dropped("refused")) == (1, 0, 0)
        allow(file)
        await until("all have arrived", lambda: not len(outbox) and not outbox.aside())
        await until("all is well", lambda: not ours.problem)
        await until("the state has arrived", lambda: not len(ours.outgoing))
        assert ours.sessions == 1, "without a new connection"
        task.cancel()
    assert await asyncio.to_thread(retained, port, TOPICS.health) == b"{}"
    last = json.loads(retained(port, TOPICS.of("porch", "caption")) or b"{}")
    assert (last["id"], last["replayed"]) == ("r2", True)
    outbox.close()


async def test_a_state_that_was_not_allowed_is_said_to_a_broker_that_has_restarted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects before the time has come to say it again."""
    monkeypatch.setattr(mqtt, "DENIED_S", 3.0)
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.05)
    file, port = tmp_path / "acl", free_port()
    file.write_text("topic read #\n")
    file.chmod(0o600)
    async with connection(port) as ours:
        with mosquitto(tmp_path, f"acl_file {file}", port):
            await until("it is told", lambda: REASONS[135] in ours.problem and TOPICS.availability in ours.problem)
            file.write_text("topic readwrite #\n")
        with mosquitto(tmp_path, f"acl_file {file}", port):
            await until("connected again", lambda: ours.sessions == 2)
            await until("it is said", lambda: retained(port, TOPICS.availability) == b"online")


async def test_many_results_that_are_not_allowed_are_kept(
    access: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "DENIED", 3)
    port, file = access
    outbox = Outbox(tmp_path / "outbox.db")
    for number in range(30):
        outbox.put("porch", [{**RESULT, "id": f"r{number}"}], None)
    async with connection(port) as ours:
        task = asyncio.create_task(publisher.Publisher(outbox, ours, asyncio.Event(), lambda: None, 0.1).run())
        await until("it is told", lambda: REASONS[135] in ours.problem and outbox.aside() == 3)
        again = count_calls(outbox, "take_up")
        await until("it is tried again", lambda: len(again) > 1)
        assert (len(outbox) + outbox.aside(), outbox.aside() <= 3) == (30, True)
        allow(file)
        await until("all have arrived", lambda: not len(outbox) and not outbox.aside())
        task.cancel()
    outbox.close()


async def test_a_retained_topic_that_is_not_allowed_gets_its_newest_when_it_is(
    access: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events do not wait for it, and are sent once."""
    monkeypatch.setattr(publisher, "DENIED", 1)
    port, file = access
    allow(file, but=CAPTION)
    outbox, written = Outbox(tmp_path / "outbox.db"), asyncio.Event()
    listener = Listener(port)
    for number in range(3):
        outbox.put("porch", [{**RESULT, "id": f"old {number}"}], None)
    async with connection(port) as ours:
        task = asyncio.create_task(publisher.Publisher(outbox, ours, written, lambda: None, 0.1).run())
        await until("the backlog has arrived", lambda: not len(outbox) and not outbox.aside())
        for number in range(3):
            outbox.put("porch", [{**RESULT, "id": f"new {number}"}], None)
        written.set()
        await until("all have arrived", lambda: not len(outbox) and not outbox.aside())
        again = count_calls(outbox, "take_up")
        await until("it is tried again", lambda: len(again) > 1)
        listener.catch_up()
        assert CAPTION in ours.problem
        events = [event["id"] for event in listener.events()]
        assert events == [f"{age} {number}" for age in ("old", "new") for number in range(3)]
        allow(file)
        await until("all is well", lambda: not ours.problem)
        await until("it has arrived", lambda: listener.on(CAPTION))
        assert len(listener.events()) == len(events)
        allow(file, but=ANSWER)
        said = Publication(ANSWER, b"", retain=False)
        while None in await asyncio.gather(ours.publish(said), return_exceptions=True):
            pass  # until the broker has read it
        outbox.put(
            "porch", [{**RESULT, "id": "newest"}, {"id": "a", "task": "open", "question": "?", "answer": "no"}], None
        )
        written.set()
        await until("it is not allowed", lambda: ANSWER in ours.problem)
        await asyncio.sleep(0.7)
        task.cancel()
    listener.catch_up()
    assert [json.loads(payload)["id"] for payload in listener.on(CAPTION)] == ["new 2", "newest"], "it never goes back"
    listener.stop()
    outbox.close()


async def test_what_was_not_allowed_is_not_said_over_what_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.05)
    file, port = tmp_path / "acl", free_port()
    file.write_text(f"topic readwrite #\ntopic deny {CAPTION}\n")
    file.chmod(0o600)
    outbox, written = Outbox(tmp_path / "outbox.db"), asyncio.Event()
    async with connection(port) as ours:
        task = asyncio.create_task(publisher.Publisher(outbox, ours, written, lambda: None, 0.1).run())
        with mosquitto(tmp_path, f"acl_file {file}", port):
            await until("connected", ours.connected.is_set)
            outbox.put("porch", [{**RESULT, "id": "old"}], None)
            written.set()
            await until("it is told", lambda: CAPTION in ours.problem and not len(outbox))
            file.write_text("topic readwrite #\n")
        outbox.put("porch", [{**RESULT, "id": "new"}], None)
        with mosquitto(tmp_path, f"acl_file {file}", port):
            await until("it has arrived", lambda: not len(outbox))
            held = await asyncio.to_thread(retained, port, CAPTION)
            assert json.loads(held or b"{}")["id"] == "new"
        task.cancel()
    outbox.close()


async def test_home_assistant_is_told_and_what_is_gone_is_taken_off_when_that_is_allowed(
    access: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "DENIED_S", 0.3)
    monkeypatch.setattr(discovery, "EARLIER_S", 0.1)
    port, file = access
    known = tmp_path / "retained.json"
    known.write_text(json.dumps({f"127.0.0.1:{port}": [TOPICS.image("porch")]}))
    async with connection(port) as ours:
        told = discovery.Discovery(
            ours, "homeassistant", "device", lambda: {"components": {}}, Leftovers(ours, known, dict).take_off
        )
        task = asyncio.create_task(told.run())
        await until("connected", ours.connected.is_set)
        told.refresh()
        await until("both are told", lambda: "and 1 more" in ours.problem)
        allow(file)
        await until("all is well", lambda: not ours.problem)
        await until("it is taken off", lambda: TOPICS.image("porch") not in known.read_text())
        task.cancel()
    assert json.loads(retained(port, topics.discovery("homeassistant", "device")) or b"") == {"components": {}}


async def test_the_answer_to_another_question_that_may_not_be_taken_off_is_remembered(
    access: tuple[int, Path], tmp_path: Path
) -> None:
    port, _ = access
    known, address = tmp_path / "retained.json", f"127.0.0.1:{port}"
    known.write_text(json.dumps({address: {ANSWER: "Is it open?"}}))
    async with connection(port) as ours:
        made = Leftovers(ours, known, lambda: {ANSWER: "Is it closed?"})
        await until("connected", ours.connected.is_set)
        made.note()
        await until("it was refused", lambda: "not authorized" in ours.problem.lower())
        assert json.loads(known.read_text()) == {address: {ANSWER: "Is it open?"}}, "it may be there still"


def test_an_answer_that_is_not_allowed_where_it_is_wanted_is_left_out(tmp_path: Path) -> None:
    """Nobody sends it again: it is no problem that lasts."""
    file = tmp_path / "acl"
    file.write_text("topic readwrite edge-daemon/#\ntopic readwrite homeassistant/#\n")
    file.chmod(0o600)
    with mosquitto(tmp_path, f"acl_file {file}") as port, running(service := Service(tmp_path, port)):
        wait_for("it is there", lambda: retained(port, f"{BASE}/health"))
        argv = ["mosquitto_pub", "-V", "5", "-p", str(port), "-t", f"{BASE}/request/stats", "-m", "{}"]
        subprocess.run([*argv, "-D", "publish", "response-topic", "elsewhere/me"], check=True)
        wait_for("it is told", lambda: "elsewhere/me: it does not allow this" in service.log())

        def health() -> dict[str, Any] | None:
            found: dict[str, Any] = json.loads(retained(port, f"{BASE}/health") or b"{}")["mqtt"]
            return found if found["refused"] else None

        found = wait_for("it is in health", health)
        assert (found["problem"], found["refused"]) == ("", 1)
        assert service.end() == 0


async def test_what_mqtt_5_says_beside_a_result(broker_port: int, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    argv = ["mosquitto_sub", "-V", "5", "-p", str(broker_port), "-t", EVENT, "-C", "1", "-W", "60", "-F", "%C|%E|%P"]
    async with connection(broker_port) as ours:
        await until("connected", ours.connected.is_set)
        ours_publisher = publisher.Publisher(outbox, ours, asyncio.Event(), lambda: None, 0.1)
        task = asyncio.create_task(ours_publisher.run())
        await until("there is no backlog", lambda: ours_publisher._session == 1)
        listener = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
        while listener.returncode is None:
            outbox.put("porch", [{**RESULT, "schema": 1, "model": "demo"}], None)
            await asyncio.wait([asyncio.create_task(listener.wait())], timeout=0.3)
        task.cancel()
    assert listener.stdout is not None
    assert (await listener.stdout.read()).decode().strip() == (
        "application/json|604800|schema:1 model:demo replayed:false"
    )
    outbox.close()


@pytest.fixture
def broker_port(tmp_path: Path) -> Iterator[int]:
    with mosquitto(tmp_path, "") as port:
        yield port
