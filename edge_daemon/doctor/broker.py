"""The broker, step by step: name, port, TLS, login, what we may listen to and write, how large, and who else is us.

With the connection of the service itself (`link`), but for the steps before it. Writes to `response/doctor` alone,
where nobody waits for anything, and retains nothing. While the service runs here it calls itself by another name, as
else each would throw the other out.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from edge_daemon import machine, reasons, tls
from edge_daemon.config import Config
from edge_daemon.dialect import NAMES, V5, V311
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject
from edge_daemon.errors import ConfigError
from edge_daemon.link import Link, Reason, Terms
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.topics import Incoming, Publication, Topics, home_assistant_status
from edge_daemon.units import KIB

STEP_S = 8.0
"""For each answer; a broker in the house takes milliseconds."""
ANSWER_S = 5.0
SOON_DAYS = 14
RESULT_BYTES = 16 * KIB
"""More than a result ever has."""
ANSWER = b'{"status": "ok", "data": {}}'
"""What is sent to try it: an answer like others, to nobody's question (configs/response.schema.json)."""
ACCESS = "compare the broker's access list with configs/mosquitto/acl"
OWN_NAMES = "give each machine a node and mqtt.client_id of its own; after copying a card also a new /etc/machine-id"


def look(subject: Subject) -> Iterator[Finding]:
    """One step after the other, until one fails."""
    if subject.config is None:
        yield skipped("broker", "needs a usable configuration")
        return
    config = subject.config.mqtt
    steps: Sequence[Callable[[MqttConfig], Finding]] = (name, port, *((encryption,) if config.tls.enabled else ()))
    for step in steps:
        finding = step(config)
        yield finding
        if finding.state == "problem":
            yield skipped("broker.login", "cannot be tried before that")
            return
    yield from asyncio.run(talk(subject.config, subject.service_pid, subject.alone_s))


def name(config: MqttConfig) -> Finding:
    """Whether its name is known."""
    start_s = time.monotonic()
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        what = f"{config.host}: {reasons.unreachable(error)}"
        return problem("broker.name", what, "Results wait on disk until then.", f"getent hosts {config.host}")
    addresses = ", ".join(sorted({str(address[4][0]) for address in found}))
    took_s = time.monotonic() - start_s
    if took_s > STEP_S / 2:
        meaning = "Every attempt to connect is delayed by this."
        return warning("broker.name", f"{config.host} took {took_s:.0f} s to resolve", meaning, "resolvectl status")
    return ok("broker.name", f"{config.host} is {addresses}")


def port(config: MqttConfig) -> Finding:
    """Whether something listens."""
    try:
        socket.create_connection((config.host, config.port), STEP_S).close()
    except OSError as error:
        what = f"{config.host}:{config.port} cannot be reached: {reasons.unreachable(error)}"
        mends = "systemctl status mosquitto; ss -ltn"
        return problem("broker.port", what, "Results wait on disk until then.", mends)
    return ok("broker.port", f"{config.host}:{config.port} answers")


def encryption(config: MqttConfig) -> Finding:
    """The handshake, and how long the broker's certificate still holds."""
    meaning = "Without it there is no connection: results wait on disk until then."
    mends = f"openssl s_client -connect {config.host}:{config.port} </dev/null"
    try:
        context = tls.context(config.tls, lambda error: None)
        with (
            socket.create_connection((config.host, config.port), STEP_S) as raw,
            context.wrap_socket(raw, server_hostname=config.host) as wrapped,
        ):
            certificate, version = wrapped.getpeercert() or {}, wrapped.version()
    except ConfigError as error:
        return problem("broker.tls", str(error), meaning, f"sudo ls -l {config.tls.ca_file or config.tls.cert_file}")
    except OSError as error:
        return problem("broker.tls", reasons.unreachable(error), meaning, mends)
    if not config.tls.verify:
        return warning("broker.tls", f"{version}, unverified", f"{reasons.UNVERIFIED}.", "set mqtt.tls.ca_file")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    what = f"{version}, certificate good until {ends:%Y-%m-%d}"
    if days < SOON_DAYS:
        meaning = f"It ends in {days} days; after that there is no connection."
        return warning("broker.tls", what, meaning, "renew the broker's certificate")
    return ok("broker.tls", what)


async def talk(config: Config, service_pid: int | None, alone_s: float) -> list[Finding]:
    """Everything after the connection."""
    topics = Topics(config.mqtt.base_topic, config.node)
    own = config.mqtt.client_id or machine.client_id(topics.node)
    guest = service_pid is not None
    client_id = f"{own}-doctor" if guest else own
    wanted = {"5": (V5,), "3.1.1": (V311,)}.get(config.mqtt.protocol, (V5, V311))
    for version in wanted:
        visitor = Visitor()
        link = Link(config.mqtt, client_id, _quiet_will(topics), version, visitor)
        link.start()
        if await visitor.is_answered(ANSWER_S):
            break
        await _leave(link)
        if visitor.answer is not None and visitor.answer.code != reasons.VERSION:
            return [refused(config.mqtt, visitor)]
    else:
        return [refused(config.mqtt, visitor)]
    start_s = time.monotonic()
    try:
        found = [logged_in(config.mqtt, version, guest)]
        found += await listening(config, topics, link, visitor)
        found += await writing(config, topics, link, visitor)
        await visitor.wait(lambda: visitor.over, 0.0 if guest else alone_s - (time.monotonic() - start_s))
        found.append(alone(client_id, guest, visitor))
        return found
    finally:
        await _leave(link)


def _quiet_will(topics: Topics) -> Publication:
    """A will that says nothing, should we end without a goodbye."""
    return Publication(topics.response("doctor"), b"", retain=False)


async def _leave(link: Link) -> None:
    link.leave()
    if not await link.gone(1.5):
        link.hang_up()
        await link.gone(2.0)


def refused(config: MqttConfig, visitor: Visitor) -> Finding:
    """No connection, and why."""
    meaning = "Nothing is published, and results wait on disk, until this is fixed."
    if visitor.answer is not None:
        words = reasons.in_words(visitor.answer.code, has_login=config.username is not None)
        what = f"the broker refuses us ({visitor.answer.name}): {words}"
        return problem("broker.login", what, meaning, "sudo journalctl -u mosquitto -n 20")
    if isinstance(visitor.error, ConfigError):
        return problem("broker.login", str(visitor.error), meaning, "edge-daemon check-config")
    if isinstance(visitor.error, OSError):
        return problem("broker.login", reasons.unreachable(visitor.error), meaning, "systemctl status mosquitto")
    what = f"what listens there does not answer like a broker{reasons.WHICH_PORT[config.tls.enabled]}"
    return problem("broker.login", what, meaning, "ss -ltnp; check mqtt.port and mqtt.transport")


def logged_in(config: MqttConfig, version: int, guest: bool) -> Finding:
    """It takes us."""
    who = "with a login" if config.username is not None else "without a login"
    as_guest = ", under another client id, as the service runs" if guest else ""
    return ok("broker.login", f"taken {who}, MQTT {NAMES[version]}{as_guest}")


async def listening(config: Config, topics: Topics, link: Link, visitor: Visitor) -> list[Finding]:
    """What the service subscribes to."""
    wanted = [*topics.incoming]
    if config.homeassistant.enabled:
        wanted.append(home_assistant_status(config.homeassistant.prefix))
    asked = [*wanted, topics.availability]  # the last for `alone`; without the right to read it nothing comes
    link.subscribe(asked)
    if not await visitor.wait(lambda: visitor.granted or visitor.over, STEP_S) or visitor.over:
        return [_hung_up("broker.listen", "we subscribe to commands", visitor)]
    answers = zip(wanted, visitor.granted, strict=False)
    refusals = [(topic, reason) for topic, reason in answers if reason.is_failure]
    if not refusals:
        return [ok("broker.listen", f"may subscribe to {', '.join(wanted)}")]
    listed, reason = ", ".join(topic for topic, _ in refusals), refusals[0][1]
    meaning = "Commands, switches and Home Assistant's restarts are not noticed; captions are published all the same."
    words = reasons.in_words(reason.code)
    return [warning("broker.listen", f"may not subscribe to {listed} ({reason.name}): {words}", meaning, ACCESS)]


async def writing(config: Config, topics: Topics, link: Link, visitor: Visitor) -> list[Finding]:
    """A small message, then one as large as there can be."""
    small = await _sent(topics, link, visitor, 0)
    if small is None:
        return [_hung_up("broker.write", "we publish", visitor)]
    if small.is_failure:
        words = reasons.in_words(small.code, has_login=config.mqtt.username is not None)
        what = f"may not write to {topics.response('doctor')} ({small.name}): {words}"
        return [problem("broker.write", what, "No caption would reach anybody.", ACCESS)]
    blind = "; MQTT 3.1.1 does not say whether that is allowed" if link.version == V311 else ""
    written = f"may write to {topics.response('doctor')}; whether it may write elsewhere shows with the first result"
    found = [ok("broker.write", written + blind)]
    size_bytes = max([RESULT_BYTES, *(s.image.max_kib * KIB for s in config.sources.values() if s.image.enabled)])
    what = f"a message of {size_bytes // KIB} KiB"
    meaning = "Larger results or images never arrive; they are set aside."
    try:
        visitor.terms.check(size_bytes, config.mqtt.max_packet_kib)
    except ValueError as error:
        mends = "raise it, or lower image.max_kib of the sources"
        return [*found, problem("broker.size", f"{what} is not accepted: {error}", meaning, mends)]
    large = await _sent(topics, link, visitor, size_bytes)
    if large is None or large.is_failure:
        why = reasons.TOO_LARGE if large is None else reasons.in_words(large.code)
        mends = "raise max_packet_size there"
        return [*found, problem("broker.size", f"{what} is not accepted: {why}", meaning, mends)]
    return [*found, ok("broker.size", f"{what} is accepted")]


async def _sent(topics: Topics, link: Link, visitor: Visitor, size_bytes: int) -> Reason | None:
    """What the broker says to it; None when it hangs up, or says nothing."""
    number = link.publish(Publication(topics.response("doctor"), b" " * size_bytes + ANSWER, retain=False))
    await visitor.wait(lambda: number in visitor.confirmations or visitor.over, STEP_S)
    return visitor.confirmations.get(number)


def _hung_up(id: str, when: str, visitor: Visitor) -> Finding:
    if visitor.said is not None and visitor.said.code == reasons.TAKEN_OVER:
        return problem("broker.alone", reasons.ANOTHER_CLIENT, "Each throws the other out, for ever.", OWN_NAMES)
    did = "closes the connection" if visitor.over else f"sends nothing for {STEP_S:.0f} s"
    meaning = "Perhaps its access list makes it close connections, or another client has our name."
    return problem(id, f"the broker {did} when {when}", meaning, "sudo journalctl -u mosquitto -n 20")


def alone(client_id: str, guest: bool, visitor: Visitor) -> Finding:
    """Whether another client has our name, or our topics."""
    meaning = "Each throws the other out, and their results mix."
    if visitor.over:
        return problem("broker.alone", f"{reasons.ANOTHER_CLIENT} ({client_id})", meaning, OWN_NAMES)
    if guest:
        return skipped("broker.alone", "the service is connected with our name, and reports such a conflict itself")
    if visitor.availability == b"online":
        what = "something else says `online` on our topic for availability, and the service does not run here"
        return warning("broker.alone", what, f"Another machine has the same node. {meaning}", OWN_NAMES)
    return ok("broker.alone", f"no other client is called {client_id}")


class Visitor:
    """Hears what happens on a link, as the service's connection does."""

    def __init__(self) -> None:
        self.answer: Reason | None = None
        self.terms = Terms()
        self.granted: Sequence[Reason] = ()
        self.confirmations: dict[int, Reason] = {}
        self.availability = b""
        self.said: Reason | None = None
        """Why the broker ended it, if it said so."""
        self.over = False
        self.error: Exception | None = None
        self._news = asyncio.Event()

    async def wait(self, probe: Callable[[], object], timeout_s: float) -> bool:
        """Until something is so; whether it came to that."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                while not probe():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return bool(probe())
        return True

    async def is_answered(self, within_s: float) -> bool:
        """Whether the broker takes us."""
        await self.wait(lambda: self.answer or self.over, within_s)
        return self.answer is not None and not self.answer.is_failure

    def opened(self) -> None:
        """A connection is there."""

    def answered(self, reason: Reason, terms: Terms) -> None:
        """The broker takes us, or not."""
        self.answer, self.terms = reason, terms
        self._news.set()

    def confirmed(self, number: int, reason: Reason) -> None:
        """It has a message, or does not take it."""
        self.confirmations[number] = reason
        self._news.set()

    def subscribed(self, number: int, reasons: Sequence[Reason]) -> None:
        """For every topic whether we may listen."""
        self.granted = reasons
        self._news.set()

    def arrived(self, message: Incoming) -> None:
        """Of all that comes, what is said of our own availability counts; commands are left to the service."""
        if message.topic.endswith("/availability"):
            self.availability = message.payload

    def disconnected(self, reason: Reason, said: bool) -> None:
        """The connection is gone."""
        self.said = reason if said else None
        self.over = True
        self._news.set()

    def ended(self, error: Exception | None) -> None:
        """Nothing more will come."""
        self.error, self.over = error, True
        self._news.set()
