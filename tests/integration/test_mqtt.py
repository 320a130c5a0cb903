"""The connection at a real mosquitto that is stopped, killed, frozen, replaced or closed to us."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from edge_daemon import dialect, link
from edge_daemon.demo.broker import Broker, find_mosquitto, free_port
from edge_daemon.reasons import NO_LOGIN, REASONS
from edge_daemon.topics import LARGEST_INCOMING_BYTES, Incoming, Publication
from edge_daemon.visit import ANSWER_S
from tests.conftest import missing
from tests.integration.listening import (
    SOURCE_STATE,
    TOPICS,
    Listener,
    connection,
    count_calls,
    frozen,
    mosquitto,
    retained,
    until,
    warnings,
)

# ---- being there ----------------------------------------------------------------------------------------


async def test_who_connects_says_so_when_all_else_is_said(broker: Broker, listener: Listener) -> None:
    """Or a listener puts together what a killed service had said of its sources, and that it is here again."""
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        await until("both are online", lambda: len(listener.heard) == 2)
        assert listener.heard == [(SOURCE_STATE, b"online", False), (TOPICS.availability, b"online", False)]
        assert ours.problem == ""
        assert retained(broker.port, TOPICS.availability) == b"online"


async def test_who_leaves_says_so_last_and_the_will_stays_unsent(broker: Broker, listener: Listener) -> None:
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        ours.state(TOPICS.health, b"{}")
        await until("all is said", lambda: len(listener.heard) == 3)
    await until("the goodbyes arrive", lambda: len(listener.heard) >= 5)
    listener.catch_up()  # a will would have come by now
    assert listener.heard[3:] == [(SOURCE_STATE, b"offline", False), (TOPICS.availability, b"offline", False)]
    assert retained(broker.port, TOPICS.availability) == b"offline"


CHILD = """\
import asyncio, sys
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.mqtt import Connection
from edge_daemon.topics import Topics
async def main():
    connection = Connection(MqttConfig(host="127.0.0.1", port=int(sys.argv[1])), Topics("edge-daemon", "test"), print)
    connection.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_who_is_killed_leaves_a_will(broker: Broker, listener: Listener) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(broker.port), stdout=subprocess.DEVNULL
    )
    await until("the child is online", lambda: listener.on(TOPICS.availability) == [b"online"])
    child.kill()
    await child.wait()
    await until("its will is read", lambda: listener.on(TOPICS.availability) == [b"online", b"offline"])
    assert retained(broker.port, TOPICS.availability) == b"offline"


async def test_state_is_said_again_to_a_broker_that_forgot_everything(broker: Broker, tmp_path: Path) -> None:
    async with connection(broker.port) as ours:
        ours.state(SOURCE_STATE, b"online")
        ours.state(TOPICS.health, b"before")
        await until("connected", ours.connected.is_set)
        broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        ours.state(TOPICS.health, b"meanwhile")
        ours.state(TOPICS.health, b"latest")
        (tmp_path / "broker" / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        await until("connected again", ours.connected.is_set)
        await until("all is confirmed", lambda: not len(ours.outgoing))
        assert retained(broker.port, TOPICS.availability) == b"online"
        assert retained(broker.port, SOURCE_STATE) == b"online"
        assert retained(broker.port, TOPICS.health) == b"latest"


async def test_state_that_did_not_arrive_does_not_overtake_what_came_later(broker: Broker) -> None:
    """Sent to a broker that no longer reads; then the broker is replaced."""
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            ours.state(TOPICS.health, b"old")
            broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        ours.state(TOPICS.health, b"new")
        broker.start()
        watcher = Listener(broker.port)
        await until("it is said", lambda: watcher.on(TOPICS.health))
        await until("all is confirmed", lambda: not len(ours.outgoing))
        assert set(watcher.on(TOPICS.health)) == {b"new"}
        assert retained(broker.port, TOPICS.health) == b"new"
        watcher.stop()


async def test_the_same_state_is_not_said_twice(broker: Broker, listener: Listener) -> None:
    async with connection(broker.port) as ours:
        await until("connected", lambda: len(listener.heard) == 1)
        for payload in (b"a", b"a", b"b", b"b", b"a"):
            ours.state(TOPICS.health, payload)
        await until("the last is heard", lambda: len(listener.on(TOPICS.health)) == 3)
    assert listener.on(TOPICS.health) == [b"a", b"b", b"a"]


# ---- what can be wrong ----------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[int]:
    """The port of a mosquitto that wants a password."""
    passwords = shutil.which("mosquitto_passwd")
    if passwords is None:
        missing("mosquitto")
    subprocess.run([passwords, "-b", "-c", str(tmp_path / "passwords"), "cam", "right"], check=True)
    os.chmod(tmp_path / "passwords", 0o600)
    with mosquitto(tmp_path, f"allow_anonymous false\npassword_file {tmp_path}/passwords") as port:
        yield port


@pytest.mark.parametrize(
    "login",
    [{}, {"username": "cam"}, {"username": "cam", "password": SecretStr("wrong")}],
    ids=["none", "name", "wrong"],
)
async def test_a_broker_that_refuses_us_is_told_once(
    guarded: int, caplog: pytest.LogCaptureFixture, login: dict[str, Any]
) -> None:
    async with connection(guarded, **login) as ours:
        await until("it was refused", lambda: "refuses" in ours.problem)
        refusals = count_calls(ours, "ended")
        await until("it was tried again", lambda: refusals)
        assert not ours.connected.is_set()
        words = REASONS[135] if login else NO_LOGIN
        assert ours.problem == f"the broker 127.0.0.1:{guarded} refuses us (Not authorized): {words}"
    assert all(key in words for key in ("mqtt.username", "mqtt.password"))
    assert warnings(caplog) == [f"{ours.problem}; results are kept meanwhile"]


async def test_the_right_password_opens(guarded: int, caplog: pytest.LogCaptureFixture) -> None:
    async with connection(guarded, username="cam", password=SecretStr("right")) as ours:
        await until("connected", ours.connected.is_set)
    assert warnings(caplog) == []


async def test_what_is_sent_without_a_connection_is_given_back_at_once(broker: Broker) -> None:
    """And no later broker owes an answer to it."""
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        assert ours.publish(Publication(TOPICS.health, b"late", retain=True)).cancelled()
        assert not len(ours.outgoing)
        broker.start()
        await until("connected again", ours.connected.is_set)
        await until("all is confirmed", lambda: not len(ours.outgoing))
        assert retained(broker.port, TOPICS.health) is None


async def test_nobody_listens_and_then_somebody_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if find_mosquitto() is None:
        missing("mosquitto")
    caplog.set_level(logging.INFO)
    broker = Broker(tmp_path)
    async with connection(broker.port) as ours:
        await until("it was tried", lambda: "cannot be reached: nothing listens there" in ours.problem)
        failures = count_calls(ours, "ended")
        await until("it was tried again", lambda: failures)
        with broker:
            await until("connected", ours.connected.is_set)
            assert ours.problem == ""
        await until("the loss is noticed", lambda: not ours.connected.is_set())
    assert [message.partition(":")[0] for message in warnings(caplog)] == ["the broker 127.0.0.1"] * 2
    assert "cannot be reached" in warnings(caplog)[0]
    assert "is gone" in warnings(caplog)[1]


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46"])
async def test_another_service_on_that_port_is_told_once(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It hangs up, speaks HTTP, or wants TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(100)
            writer.write(greeting)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connection(port) as ours:
        await until("it was tried", lambda: "does not answer" in ours.problem)
        ends = count_calls(ours, "ended")
        await until("it was tried again", lambda: ends)
    assert warnings(caplog) == [
        f"what listens on 127.0.0.1:{port} does not answer like a broker (perhaps this is the port "
        "for TLS, and mqtt.tls is missing?); results are kept meanwhile"
    ]


async def test_a_network_thread_that_ended_begins_again(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        assert ours._visit is not None
        ours._visit.link.leave()  # as only `stop` may
        await until("connected again", lambda: ours.sessions == 2 and not ours.problem)


async def test_an_error_in_the_network_thread_is_told_once_and_ends_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one of our callbacks: paho ends its loop at the first."""
    raised: list[int] = []

    def broken(_: Any) -> link.Terms:
        raised.append(1)
        raise ZeroDivisionError("in a callback")

    right = link._terms
    monkeypatch.setattr(link, "_terms", broken)
    async with connection(broker.port) as ours:
        await until("it was tried again and again", lambda: len(raised) >= 2)
        assert "ZeroDivisionError: in a callback" in ours.problem
        monkeypatch.setattr(link, "_terms", right)
        await until("connected", ours.connected.is_set)
    assert len([message for message in warnings(caplog) if "please report it" in message]) == 1


async def test_stopping_does_not_wait_for_a_broker_that_is_not_there() -> None:
    async with connection(free_port()) as ours:
        await until("it was tried", lambda: "cannot be reached" in ours.problem)
        async with asyncio.timeout(ANSWER_S / 2):
            await ours.stop()


async def test_stopping_does_not_wait_for_a_frozen_broker(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        with frozen(broker):
            async with asyncio.timeout(ANSWER_S / 2):
                await ours.stop()


async def test_reconnects_leave_no_descriptor_open(broker: Broker) -> None:
    async with connection(broker.port) as ours:
        await until("connected", ours.connected.is_set)
        gc.collect()  # of what tests before this one left open
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            broker.stop(kill=True)
            await until("the loss is noticed", lambda: not ours.connected.is_set())
            broker.start()
            await until("connected again", ours.connected.is_set)
        gc.collect()
        await until("none is left open", lambda: len(os.listdir("/proc/self/fd")) <= before)


# ---- what comes from the broker --------------------------------------------------------------------------


def say(port: int, topic: str, payload: bytes, *options: str) -> None:
    argv = [str(shutil.which("mosquitto_pub")), "-p", str(port), "-t", topic, "-s", "-q", "1", *options]
    subprocess.run(argv, input=payload, check=True)


async def test_what_is_subscribed_arrives_after_every_connect_and_nothing_else(broker: Broker) -> None:
    arrived: list[Incoming] = []
    await asyncio.to_thread(say, broker.port, "edge-daemon/test/request/kept", b"old", "-r")
    async with connection(broker.port) as ours:
        ours.subscribe(TOPICS.incoming, arrived.append)
        await until("what was kept has arrived", lambda: len(arrived) == 1)
        ours.subscribe(["homeassistant/status"], arrived.append)
        broker.stop(kill=True)
        await until("the loss is noticed", lambda: not ours.connected.is_set())
        broker.start()
        await until("connected again", ours.connected.is_set)
        await until("all is confirmed", lambda: not len(ours.outgoing))
        arrived.clear()
        for topic in ("edge-daemon/test/event", "homeassistant/status", "edge-daemon/test/porch/enabled/set"):
            await asyncio.to_thread(say, broker.port, topic, b"\xff\x00")
        await until("both have arrived", lambda: len(arrived) == 2)
    assert [(message.topic, message.payload, message.retain) for message in arrived] == [
        ("homeassistant/status", b"\xff\x00", False),
        ("edge-daemon/test/porch/enabled/set", b"\xff\x00", False),
    ]


async def test_what_is_larger_than_any_command_is_not_sent_to_us(broker: Broker) -> None:
    sizes: list[int] = []
    large = bytes(LARGEST_INCOMING_BYTES + link.AROUND_INCOMING_BYTES)
    await asyncio.to_thread(say, broker.port, TOPICS.request("ask"), large, "-r")  # it would come with every connect
    async with connection(broker.port) as ours:
        ours.subscribe(TOPICS.incoming, lambda message: sizes.append(len(message.payload)))
        await until("all is confirmed", lambda: ours.connected.is_set() and not len(ours.outgoing))
        await asyncio.to_thread(say, broker.port, TOPICS.request("ask"), large)
        await asyncio.to_thread(say, broker.port, TOPICS.request("ask"), b"small")
        await until("one has arrived", lambda: sizes)
        assert (sizes, ours.sessions) == ([5], 1)


async def test_what_comes_is_cut_off_and_an_error_at_one_hurts_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def on_message(message: Incoming) -> None:
        sizes.append(len(message.payload))
        raise ZeroDivisionError

    async with connection(broker.port) as ours:
        ours.subscribe(TOPICS.incoming, on_message)
        await until("all is confirmed", lambda: ours.connected.is_set() and not len(ours.outgoing))
        for size in (LARGEST_INCOMING_BYTES + 1, *range(1, 11)):
            await asyncio.to_thread(say, broker.port, TOPICS.request("ask"), bytes(size))
        await until("all have arrived", lambda: len(sizes) == 11)
        assert ours.sessions == 1
    assert sizes == [LARGEST_INCOMING_BYTES, *range(1, 11)]
    assert sum("please report it" in record.message for record in caplog.records) == 11


# ---- MQTT 5, and brokers that do not speak it ------------------------------------------------------------


async def test_a_broker_that_speaks_no_mqtt_5_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As amqtt does, which waits for more, and so do we, but not for long."""
    monkeypatch.setattr(dialect, "PATIENCE_S", 1.0)
    with Broker(tmp_path, embedded=True) as broker:
        async with connection(broker.port) as ours:
            await until("connected", ours.connected.is_set)
            assert ours.protocol == "3.1.1"
            await until("all is confirmed", lambda: not len(ours.outgoing))
    assert warnings(caplog) == []


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
async def test_the_protocol_that_is_wanted(broker: Broker, protocol: str) -> None:
    async with connection(broker.port, protocol=protocol) as ours:
        assert ours.protocol == ""
        await until("connected", ours.connected.is_set)
        assert ours.protocol == {"auto": "5"}.get(protocol, protocol)


async def test_a_request_and_its_answer_with_mqtt_5(broker: Broker) -> None:
    arrived: list[Incoming] = []
    async with connection(broker.port) as ours:
        ours.subscribe(TOPICS.incoming, arrived.append)
        await until("all is confirmed", lambda: ours.connected.is_set() and not len(ours.outgoing))
        argv = ["mosquitto_rr", "-V", "5", "-p", str(broker.port), "-t", TOPICS.request("stats"), "-e", "replies/me"]
        asking = await asyncio.create_subprocess_exec(
            *argv, "-m", "?", "-D", "publish", "correlation-data", "abc", "-W", "60", stdout=subprocess.PIPE
        )
        await until("it is asked", lambda: arrived)
        asked = arrived[0]
        assert (asked.response_topic, asked.correlation, asked.retain) == ("replies/me", b"abc", False)
        await ours.publish(Publication(asked.response_topic, b"well", retain=False, correlation=asked.correlation))
        assert (await asking.communicate())[0] == b"well\n"
