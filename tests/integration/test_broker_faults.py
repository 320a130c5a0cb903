"""What a broker and the way to it can do to us: told once, in words that name the key, and survived."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from edge_daemon import mqtt, suspicion
from edge_daemon import visit as visiting
from edge_daemon.demo.broker import Broker
from edge_daemon.errors import PublishRefused
from edge_daemon.outbox import Outbox
from edge_daemon.publisher import Publisher
from edge_daemon.reasons import ANOTHER_CLIENT, NO_ACCESS, REASONS, UNREACHABLE, UNTAKEN
from edge_daemon.topics import Publication
from tests.integration.listening import CAPTION, EVENT, TOPICS, connection, mosquitto, retained, until, warnings

SECRET = "correct horse battery"
CONNACK, CONNECTED = 0x20, b"\x20\x02\x00\x00"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between two connections; the rest is as it is."""
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.02)
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_S", 0.05)
    monkeypatch.setattr(suspicion, "LONGEST_DELAY_S", 0.02)


@pytest.fixture(autouse=True)
def no_secret_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """At no level, whatever happens."""
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


# ---- a broker made for the test -------------------------------------------------------------------------

Behaviour = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One connection of a client to a broker that does what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        """Of this visit, from 0."""
        self.granted = b"\x01"
        """The answer to each topic that somebody wants to listen to."""
        self.hangs_up_at = ""
        """A message of this topic is not taken."""
        self.taken: list[str] = []
        """Topics of those that are."""
        self._reader = reader
        self._writer = writer

    async def packet(self) -> tuple[int, bytes]:
        """Type byte and content of the client's next packet."""
        kind, length, shift = (await self._reader.readexactly(1))[0], 0, 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            length |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                return kind, await self._reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def serve(self) -> None:
        """As a good broker would."""
        while True:
            kind, content = await self.packet()
            if kind >> 4 == 1:
                await self.say(CONNECTED)
            elif kind >> 4 == 3:
                end = 2 + int.from_bytes(content[:2])
                if (topic := content[2:end].decode()) == self.hangs_up_at:
                    return
                self.taken.append(topic)
                await self.say(b"\x40\x02" + content[end : end + 2])
            elif kind >> 4 == 8:
                await self.say(b"\x90\x05" + content[:2] + self.granted * len(TOPICS.incoming))
            elif kind >> 4 == 12:
                await self.say(b"\xd0\x00")


@asynccontextmanager
async def broker_that(behaves: Behaviour) -> AsyncIterator[int]:
    """Its port."""
    visits: list[asyncio.StreamWriter] = []

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            await behaves(Visit(reader, writer, len(visits) - 1))
        writer.close()

    server = await asyncio.start_server(visited, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in visits:
            writer.close()


# ---- it does not take us --------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(2, 133), (3, 136), (4, 134), (5, 135), (77, 128)])
async def test_each_refusal_has_its_own_words_and_is_told_once(
    code: int, reason: int, caplog: pytest.LogCaptureFixture
) -> None:
    """And when it takes us after all, nobody has to do anything."""
    takes_us = asyncio.Event()
    refusals = 0

    async def behave(visit: Visit) -> None:
        nonlocal refusals
        if takes_us.is_set():
            await visit.serve()
        await visit.packet()
        refusals += 1
        await visit.say(bytes([CONNACK, 2, 0, code]))

    async with broker_that(behave) as port, connection(port, username="cam", password=SecretStr(SECRET)) as ours:
        await until("it was tried again", lambda: refusals > 2)
        assert "refuses us" in ours.problem
        assert REASONS[reason] in ours.problem
        takes_us.set()
        await until("connected", lambda: not ours.problem)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("speaks_31", [True, False])
async def test_a_broker_of_an_older_protocol(speaks_31: bool) -> None:
    async def behave(visit: Visit) -> None:
        _, content = await visit.packet()
        level = content[2 + int.from_bytes(content[:2])]
        if level == 3 and speaks_31:
            await visit.say(CONNECTED)
            await visit.serve()
        await visit.say(bytes([CONNACK, 2, 0, 1]))

    async with broker_that(behave) as port, connection(port) as ours:
        await until("it is decided", lambda: ours.connected.is_set() or REASONS[132] in ours.problem)
        assert ours.connected.is_set() == speaks_31


async def test_what_we_may_not_listen_to_is_told_and_is_over_when_we_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same connection."""
    monkeypatch.setattr(mqtt, "DENIED_S", 0.2)
    visits: list[Visit] = []

    async def behave(visit: Visit) -> None:
        visit.granted = b"\x80"
        visits.append(visit)
        await visit.serve()

    async with broker_that(behave) as port, connection(port, protocol="3.1.1") as ours:
        ours.subscribe(TOPICS.incoming, lambda message: None)
        await until("it is told", lambda: f"does not let us subscribe to {TOPICS.request('+')}" in ours.problem)
        visits[0].granted = b"\x01"
        await until("all is well", lambda: not ours.problem)
        assert len(visits) == 1


# ---- it is silent ---------------------------------------------------------------------------------------


async def test_a_listener_that_never_answers_is_hung_up_on_and_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before mqtt.keepalive_s."""
    monkeypatch.setattr(visiting, "ANSWER_S", 0.4)
    visits = 0

    async def behave(visit: Visit) -> None:
        nonlocal visits
        visits += 1
        if visits > 3:
            await visit.serve()
        while await visit.packet():
            pass

    async with broker_that(behave) as port, connection(port, keepalive_s=3600) as ours:
        await until("it is told", lambda: "did not answer for 0 s" in ours.problem)
        await until("it answers at last", lambda: not ours.problem)
    assert len(warnings(caplog)) == 1


async def test_a_broker_that_confirms_nothing_is_left_and_asked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings, so the connection looks well."""
    monkeypatch.setattr(mqtt, "SHORT_S", 1.0)
    monkeypatch.setattr(visiting, "ANSWER_S", 0.4)

    async def behave(visit: Visit) -> None:
        if visit.number > 2:
            await visit.serve()
        await visit.packet()
        await visit.say(CONNECTED)
        while (await visit.packet())[0] >> 4 != 12:
            pass

    async with broker_that(behave) as port, connection(port, protocol="3.1.1") as ours:
        await until("it is told", lambda: any("confirmed no message for 0 s" in w for w in warnings(caplog)))
        await until("it is asked again", lambda: ours.sessions >= 4)
        await until("it confirms", lambda: not len(ours.outgoing) and not ours.problem)


async def test_a_machine_that_drops_what_we_send(caplog: pytest.LogCaptureFixture) -> None:
    """As behind a firewall: Linux drops the SYN when the queue of the listener is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        async with connection(port) as ours:
            await until("it was tried", lambda: "cannot be reached" in ours.problem)
            assert "no answer; is it switched on, is mqtt.host right" in ours.problem
        for filler in fillers:
            filler.close()
    assert len(warnings(caplog)) == 1


CHILD = """\
import asyncio, logging, sys
from edge_daemon import mqtt
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.topics import Topics
mqtt.LONGEST_DELAY_S = 1
async def main():
    connection = mqtt.Connection(MqttConfig(host=sys.argv[1], port=int(sys.argv[2])), Topics("a", "b"), lambda: None)
    connection.start()
    await asyncio.Event().wait()
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s", force=True)
asyncio.run(main())
"""


def in_namespaces(flags: str, prepare: str, *arguments: str) -> subprocess.Popen[str]:
    """A process with a network or a name service of its own, which runs CHILD."""
    argv = ["unshare", "--user", "--map-root-user", *flags.split(), "sh", "-c", f'{prepare} && exec "$@"', "sh"]
    if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    argv += [sys.executable, "-u", "-c", CHILD, *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_no_network() -> None:
    with in_namespaces("--net", "true", "192.0.2.1", "1883") as process:
        assert process.stdout is not None
        assert UNREACHABLE[101] in process.stdout.readline()
        process.kill()


def test_a_name_that_is_gone_and_comes_back(broker: Broker, tmp_path: Path) -> None:
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost\n")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")  # nobody listens on port 53
    mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {resolver} /etc/resolv.conf"
    with in_namespaces("--mount", mounts, "hub.example", str(broker.port)) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        first = next(lines)
        assert f"the broker hub.example:{broker.port} cannot be reached: " in first
        assert "no name server answers" in first or "check mqtt.host" in first
        hosts.write_text("127.0.0.1 localhost hub.example\n")
        assert next(lines) == f"connected to the broker hub.example:{broker.port}\n", "and nothing between"
        process.kill()


# ---- it throws us out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "why"), [("3.1.1", UNTAKEN), ("auto", "the broker accepts at most 2000 bytes")])
async def test_a_message_that_is_too_large_is_left_out_and_the_rest_arrives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str, why: str
) -> None:
    """With MQTT 5 the broker says how much it takes; without, it ends the connection."""
    with mosquitto(tmp_path, "max_packet_size 2000") as port:
        async with connection(port, protocol=protocol) as ours:
            await until("connected", ours.connected.is_set)
            left = {n: Publication(EVENT, b"x" * (3000 if n == 7 else n), retain=n == 19) for n in range(20)}
            while left:
                sent = {number: ours.publish(message) for number, message in left.items()}
                await asyncio.wait(sent.values())
                left = {n: left[n] for n, future in sent.items() if future.cancelled()}
                for number, future in sent.items():
                    if not future.cancelled() and (error := future.exception()):
                        assert isinstance(error, PublishRefused)
                        assert number == 7
                await until("connected", ours.connected.is_set)
            assert ours.complaints.refused == 1
            assert ours.complaints.last_refused.startswith(f"3000 bytes for {EVENT}: ")
            assert why in ours.complaints.last_refused
            assert (ours.sessions == 1) == (protocol == "auto")
            assert await asyncio.to_thread(retained, port, EVENT) == b"x" * 19
    told = [message for message in warnings(caplog) if "does not accept a message" in message]
    assert len(told) == 1


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
async def test_what_we_do_not_want_to_send_is_left_out_counted_and_told_once(
    broker: Broker, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """mqtt.max_packet_kib, whatever the broker takes."""
    async with connection(broker.port, protocol=protocol, max_packet_kib=4) as ours:
        await until("connected", ours.connected.is_set)
        sent = [ours.publish(Publication(EVENT, b"x" * (9000 if n == 3 else n), retain=n == 5)) for n in range(6)]
        for size in (5000, 6000, 7000):
            ours.state(TOPICS.health, b"x" * size)
        ours.state(TOPICS.health, b"{}")
        await asyncio.wait(sent)
        await until("all is confirmed", lambda: not len(ours.outgoing))
        assert [future.exception() is not None for future in sent] == [n == 3 for n in range(6)]
        assert (ours.complaints.refused, ours.sessions) == (4, 1)
        assert ours.complaints.last_refused == f"7000 bytes for {TOPICS.health}: mqtt.max_packet_kib allows 4 KiB"
        assert await asyncio.to_thread(retained, broker.port, EVENT) == b"xxxxx"
        assert await asyncio.to_thread(retained, broker.port, TOPICS.health) == b"{}"
    told = [message for message in warnings(caplog) if "mqtt.max_packet_kib" in message]
    assert [topic in message for message, topic in zip(told, (EVENT, TOPICS.health), strict=True)] == [True, True]


async def test_a_state_that_is_too_large_does_not_end_every_connection(tmp_path: Path) -> None:
    """And it is said again when the broker comes back, perhaps with other settings."""
    with mosquitto(tmp_path, "max_packet_size 2000") as port:
        async with connection(port, protocol="3.1.1") as ours:
            ours.state(TOPICS.health, b"x" * 3000)
            await until("it is found", lambda: ours.complaints.refused)
            await until("connected", ours.connected.is_set)
            sessions = ours.sessions
            for number in range(20):
                ours.state(TOPICS.health, b"x" * (2990 + number))
                await asyncio.wait_for(ours.publish(Publication(EVENT, b"result", retain=False)), 60)
            assert ours.sessions == sessions
            ours._unreachable(OSError())
            await asyncio.wait_for(ours.publish(Publication(EVENT, b"result", retain=False)), 60)
            ours.state(TOPICS.health, b"small")
            await until("it is said", lambda: not len(ours.outgoing))
            assert await asyncio.to_thread(retained, port, TOPICS.health) == b"small"


async def test_a_result_of_which_no_caption_is_taken_is_an_event_and_the_next_ones_follow(tmp_path: Path) -> None:
    """What came with the caption is given back with the connection; it must not be asked for ever."""
    visits: list[Visit] = []

    async def behave(visit: Visit) -> None:
        visits.append(visit)
        visit.hangs_up_at = CAPTION
        await visit.serve()

    outbox, written = Outbox(tmp_path / "outbox.db"), asyncio.Event()
    async with broker_that(behave) as port, connection(port, protocol="3.1.1") as ours:
        task = asyncio.create_task(Publisher(outbox, ours, written, lambda: None, 0.1).run())
        await until("connected", ours.connected.is_set)
        outbox.put("porch", [{"id": "r", "task": "caption", "caption": "?"}], None)
        outbox.put("yard", [{"id": "s", "task": "caption", "caption": "!"}], None)
        written.set()
        await until("all have arrived", lambda: not len(outbox) and not outbox.aside())
        task.cancel()
    outbox.close()
    assert EVENT in (taken := visits[-1].taken)
    assert TOPICS.of("yard", "caption") in taken
    assert ours.complaints.refused == 1


async def test_a_broker_that_hangs_up_at_everything_is_told_in_words() -> None:
    """As some do with who may not write."""

    async def behave(visit: Visit) -> None:
        await visit.packet()
        await visit.say(CONNECTED)
        await visit.packet()

    async with broker_that(behave) as port, connection(port) as ours:
        await until("it is told", lambda: NO_ACCESS in ours.problem)
        assert TOPICS.availability in ours.problem
        assert ours.complaints.refused == 0


async def test_two_with_one_name_are_told_so(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each throws the other out; when one leaves, the other is well."""
    monkeypatch.setattr(mqtt, "SHORT_S", 1.0)
    async with connection(broker.port) as ours:
        async with connection(broker.port):
            await until("it is told", lambda: ANOTHER_CLIENT in ours.problem)
            assert "mqtt.client_id is 'edge-daemon-test-" in ours.problem
            sessions = ours.sessions
            await until("some more turns", lambda: ours.sessions > sessions + 5)
            assert ANOTHER_CLIENT in ours.problem
        await until("it is over", lambda: ours.connected.is_set() and not ours.problem)
    assert len([message for message in warnings(caplog) if ANOTHER_CLIENT in message]) <= 2, "once each"
    assert len([r for r in caplog.records if r.message.startswith("connected to the broker")]) < 10


# ---- it sends what no broker sends ----------------------------------------------------------------------


def rubbish(chance: random.Random) -> bytes:
    """Bytes, or packets with what does not belong there."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randint(0, 200))
    content = chance.randbytes(chance.choice([0, 1, 2, 3, 4, 30]))
    return bytes([chance.randrange(256), len(content)]) + content


async def test_rubbish_ends_connections_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "SHORT_S", 0.5)
    chance = random.Random(5)
    rounds, done = 150, asyncio.Event()

    async def behave(visit: Visit) -> None:
        if visit.number >= rounds:
            done.set()
            await visit.serve()
        await visit.packet()
        if chance.random() < 0.7:
            await visit.say(CONNECTED)
        await visit.say(b"".join(rubbish(chance) for _ in range(chance.randint(1, 4))))

    async with broker_that(behave) as port, connection(port) as ours:
        await until("all was said", done.is_set)
        await until("it is well", lambda: not ours.problem)
        assert len(os.listdir("/proc/self/fd")) < rounds / 2, "descriptors do not leak"
    assert len(warnings(caplog)) < 40
