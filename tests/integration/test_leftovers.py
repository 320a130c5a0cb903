"""What nobody wishes any more is taken off the broker, whenever it became so; the rest stays."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_daemon import publisher as publishing
from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.leftovers import Leftovers
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outbox import Outbox
from edge_daemon.topics import Publication
from tests.integration.listening import TOPICS, Listener, connection, mosquitto, retained, until
from tests.integration.service import BASE, Heard, Service, Subscriber, running, subscribed, wait_for
from tests.integration.test_mqtt import say

GATE, IMAGE = TOPICS.of("porch", "answer/gate"), TOPICS.image("porch")
ALL = TOPICS.retained("porch", ["gate"], caption=True, image=True)
DISCOVERY = "homeassistant/device/+/config"


# ---- the service ----------------------------------------------------------------------------------------


def kept(port: int) -> set[str]:
    """The retained topics of sources."""
    with subscribed(port) as newcomer:
        newcomer.catch_up()
        found = {m.topic.removeprefix(f"{BASE}/") for m in newcomer.messages if m.retain}
    return {topic for topic in found if "/" in topic}


def entities(port: int) -> set[str]:
    """The keys that Home Assistant is told of."""
    found: dict[str, Any] = json.loads(retained(port, DISCOVERY) or b'{"components": {}}')
    return set(found["components"])


def off(heard: Subscriber, topic: str) -> Heard | None:
    """The message that takes a topic off the broker."""
    return next((m for m in heard.on(topic) if not m.payload), None)


def change(service: Service, **source: Any) -> None:
    """Other keys of the source in the file."""
    document = yaml.safe_load(service.config.read_text())
    document["sources"]["inbox"] |= source
    service.config.write_text(yaml.safe_dump(document))


def test_what_is_set_reloaded_or_gone_at_the_next_start(broker: Broker, tmp_path: Path) -> None:
    questions = [{"id": name, "ask": "How many shapes are there?"} for name in ("one", "two", "three")]
    source = {"questions": questions, "image": {"enabled": True}}
    service = Service(tmp_path, broker.port, source=source)
    ((picture, _),) = sample_pictures(tmp_path / "samples", 1, seed=3)
    picture.rename(service.inbox / picture.name)
    with subscribed(broker.port) as heard, running(service):
        wait_for("all is said", lambda: heard.on("inbox/answer/three") and heard.on("inbox/caption/text"))
        wait_for("Home Assistant knows of the image", lambda: "inbox.image.image" in entities(broker.port))
        say(broker.port, f"{BASE}/request/set", json.dumps({"source": "inbox", "questions": questions[1:]}).encode())
        wait_for("what was set", lambda: off(heard, "inbox/answer/one"))
        change(service, image={"enabled": False})
        say(broker.port, f"{BASE}/request/reload", b"{}")
        wait_for("what was reloaded", lambda: off(heard, "inbox/image"))
        assert "inbox.image.image" not in entities(broker.port), "it goes with its topic, and before it"
        change(service, image={"enabled": True})
        say(broker.port, f"{BASE}/request/reload", b"{}")
        wait_for("and it comes back", lambda: "inbox.image.image" in entities(broker.port))
        say(broker.port, f"{BASE}/inbox/trigger", b"?")
        wait_for("with a picture", lambda: heard.on("inbox/image")[-1].payload)
        assert kept(broker.port) == {
            *("inbox/availability", "inbox/enabled/state", "inbox/caption", "inbox/caption/text", "inbox/image"),
            *("inbox/answer/two", "inbox/answer/three"),
        }
        others = [{**questions[1], "ask": "How many circles are there?"}, {**questions[2], "for_frames": 1}]
        say(broker.port, f"{BASE}/request/set", json.dumps({"source": "inbox", "questions": others}).encode())
        wait_for("what is asked otherwise", lambda: off(heard, "inbox/answer/two"))
        assert not off(heard, "inbox/answer/three")
        assert service.end() == 0
    document = yaml.safe_load(service.config.read_text())
    document["sources"] = {"porch": document["sources"].pop("inbox")}
    service.config.write_text(yaml.safe_dump(document))
    with subscribed(broker.port) as heard, running(service):
        wait_for("the source is gone", lambda: off(heard, "inbox/image") and off(heard, "inbox/availability"))
        wait_for("the other one is there", lambda: heard.on("porch/availability"))
        assert {topic.partition("/")[0] for topic in kept(broker.port)} == {"porch"}
        assert service.end() == 0


# ---- the parts ------------------------------------------------------------------------------------------


def leftovers(ours: Connection, directory: Path, wished: list[str]) -> Leftovers:
    return Leftovers(ours, directory / "retained.json", lambda: dict.fromkeys(wished, ""))


def remembered(ours: Connection, directory: Path) -> set[str]:
    return set(json.loads((directory / "retained.json").read_text())[ours.address])


async def test_results_of_what_is_gone_are_events_and_nothing_else(
    broker: Broker, tmp_path: Path, outbox: Outbox, listener: Listener
) -> None:
    """Those that waited for the broker, and those that were in work."""
    outbox.put("porch", [{"id": "old", "task": "gate", "answer": "Yes."}], None)
    async with connection(broker.port) as ours:
        leftovers(ours, tmp_path, TOPICS.retained("porch", ["other"], caption=True, image=False))
        ours.state(IMAGE, b"\xff\xd8")
        written = asyncio.Event()
        task = asyncio.create_task(publishing.Publisher(outbox, ours, written, lambda: None, 0.1).run())
        await until("the old one", listener.events)
        outbox.put("porch", [{"id": "new", "task": "gate", "answer": "No."}], None)
        outbox.put("porch", [{"id": "other", "task": "other", "answer": "No."}], None)
        written.set()
        await until("all", lambda: not len(outbox))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    listener.catch_up()
    assert [event["id"] for event in listener.events()] == ["old", "new", "other"]
    assert listener.on(GATE) == listener.on(IMAGE) == []
    assert listener.on(TOPICS.of("porch", "answer/other"))


async def test_what_the_broker_did_not_confirm_is_taken_off_later(broker: Broker, tmp_path: Path) -> None:
    wished = list(ALL)
    async with connection(broker.port) as ours:
        made = leftovers(ours, tmp_path, wished)
        await until("connected", ours.connected.is_set)
        await ours.publish(Publication(GATE, b"{}", retain=True))
        wished.remove(GATE)
        made.note()
        broker.stop(kill=True)
        await made.take_off()
        assert GATE in remembered(ours, tmp_path)
    broker.start()
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        await leftovers(ours, tmp_path, wished).take_off()
        assert remembered(ours, tmp_path) == set(wished)
    assert retained(broker.port, GATE) is None


async def test_each_broker_has_its_own(broker: Broker, tmp_path: Path) -> None:
    """Back at an earlier one, what was left there is taken off; nothing of another node ever is."""
    wished = list(ALL)
    (tmp_path / "second").mkdir()
    with mosquitto(tmp_path / "second", "") as second:
        async with connection(second) as ours:
            leftovers(ours, tmp_path, wished)
            await until("connected", ours.connected.is_set)
            await ours.publish(Publication(GATE, b"{}", retain=True))
        wished.remove(GATE)
        file = tmp_path / "retained.json"
        known = json.loads(file.read_text())
        known[f"127.0.0.1:{second}"]["edge-daemon/another/porch/caption"] = ""
        file.write_text(json.dumps(known))
        say(second, "edge-daemon/another/porch/caption", b"{}", "-r")
        async with connection(broker.port) as ours:
            await until("connected", ours.connected.is_set)
            await leftovers(ours, tmp_path, wished).take_off()
            assert retained(second, GATE) == b"{}"
        async with connection(second) as ours:
            await until("connected", ours.connected.is_set)
            await leftovers(ours, tmp_path, wished).take_off()
        assert retained(second, GATE) is None
        assert retained(second, "edge-daemon/another/porch/caption") == b"{}"


async def marked(port: int, directory: Path, marks: dict[str, str]) -> dict[str, str]:
    """A life with these topics and what they are about; what it remembers at its end."""

    def on_change() -> None:
        made.note()

    file = directory / "retained.json"
    ours = Connection(MqttConfig(host="127.0.0.1", port=port), TOPICS, on_change)
    made = Leftovers(ours, file, lambda: marks)
    ours.start()
    await until("connected", ours.connected.is_set)
    await until("all is confirmed", lambda: not len(ours.outgoing))
    await ours.stop()
    found: dict[str, str] = json.loads(file.read_text())[ours.address]
    return found


async def test_the_answer_to_another_question_is_taken_off_once(broker: Broker, tmp_path: Path) -> None:
    listener = Listener(broker.port)
    other = TOPICS.of("porch", "answer/other")
    (tmp_path / "retained.json").write_text(json.dumps({f"127.0.0.1:{broker.port}": [GATE, other]}))
    for topic in (GATE, other):
        say(broker.port, topic, b"{}", "-r")
    open_, closed = {GATE: "open?", other: "same"}, {GATE: "closed?", other: "same"}
    assert await marked(broker.port, tmp_path, open_) == open_, "what a list of an earlier version has stays"
    assert retained(broker.port, GATE) == b"{}"
    assert await marked(broker.port, tmp_path, closed) == closed
    assert await marked(broker.port, tmp_path, closed) == closed
    listener.catch_up()
    assert listener.on(GATE) == [b"{}", b""]
    assert listener.on(other) == [b"{}"]
    at = [topic for topic, _, _ in listener.heard]
    assert at.index(GATE, at.index(GATE) + 1) > at.index(TOPICS.availability)
    listener.stop()


async def test_home_assistants_message_on_an_earlier_topic_is_taken_off(broker: Broker, tmp_path: Path) -> None:
    """But that of another node never, as when the state directory was copied with all that is in it."""
    old, new, theirs = (f"homeassistant/device/{name}/config" for name in ("old", "new", "theirs"))
    for topic in (old, new, theirs):
        say(broker.port, topic, b"{}", "-r")
    await marked(broker.port, tmp_path, {old: TOPICS.availability, theirs: "edge-daemon/another/availability"})
    assert await marked(broker.port, tmp_path, {new: TOPICS.availability}) == {new: TOPICS.availability}
    assert [retained(broker.port, topic) for topic in (old, new, theirs)] == [None, b"{}", b"{}"]


@pytest.mark.parametrize("rubbish", [b"{", b"[1]", b'{"a": 5}', b"\xff"])
async def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "retained.json").write_bytes(rubbish)
    ours = Connection(MqttConfig(), TOPICS, lambda: None)
    leftovers(ours, tmp_path, ALL)
    assert remembered(ours, tmp_path) == set(ALL)


async def test_a_disk_that_is_full_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wished = list(ALL)
    ours = Connection(MqttConfig(), TOPICS, lambda: None)
    made = leftovers(ours, tmp_path / "missing", wished)
    assert caplog.text.count("cannot be written") == 1
    wished.append("more")
    made.note()
    assert caplog.text.count("cannot be written") == 1


async def test_what_could_not_be_written_is_written_when_the_disk_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Connection(MqttConfig(), TOPICS, lambda: None)
    state = tmp_path / "stick"
    made = leftovers(ours, state, ALL)
    state.mkdir()
    made.note()
    assert remembered(ours, state) == set(ALL)
    shutil.rmtree(state)
    made.note()
    assert caplog.text.count("cannot be written") == 1
