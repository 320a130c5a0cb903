"""The connection to the broker: one link after the other, for ever.

Retained state (availability, health) is not queued: the latest of each topic is sent again on every connect. Knows
nothing of results: the publisher sends those.

Whatever is wrong is told once, in words that say what to change, and stands in `problem` until it is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from edge_daemon import machine, reasons
from edge_daemon.dialect import Dialect
from edge_daemon.errors import ConfigError, PublishDenied, PublishRefused
from edge_daemon.link import Link, Reason, Terms
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outgoing import Outgoing
from edge_daemon.subscriptions import OnMessage, Subscriptions
from edge_daemon.suspicion import LONGEST_DELAY_S, SHORT_S
from edge_daemon.topics import JSON, OFFLINE, ONLINE, Publication, Topics

RECONNECT_FIRST_S = 1
ANSWER_S = 30.0
"""A broker that owes an answer (to CONNECT, to messages) and gives none for so long is hung up on.

paho's own deadline is keepalive_s, up to an hour, and knows nothing of messages that are never confirmed."""
REFUSED_S = 3600.0
"""After so long a topic whose message ended connections is tried again: its owner may have changed its settings."""
DENIED_S = 60.0
"""The same for one that the broker has refused in words, which costs it nothing."""
CONFIRM_S = 3.0
"""How long a clean goodbye may take."""
VERSION, MALFORMED, KEEPALIVE, TAKEN_OVER = 132, 130, 141, 142
"""Reason codes; MALFORMED and KEEPALIVE are made up by paho where the broker has not said them."""
log = logging.getLogger(__name__)


class Connection:
    """One client of one broker, for the life of the daemon. Use it from the event loop's thread only."""

    def __init__(self, config: MqttConfig, topics: Topics, on_change: Callable[[], None]) -> None:
        self.config = config
        self.topics = topics
        self.connected = asyncio.Event()
        self.sessions = 0
        """How often a broker has taken us: what was on its way in an earlier session must be sent again."""
        self.problem = "not connected yet"
        self._told: set[str] = set()
        """Problems that stand in the log since all was well."""
        self.refused = 0
        """Messages that the broker will never take."""
        self.last_refused = ""
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._subscriptions = Subscriptions()
        self.arrived = self._subscriptions.arrived
        self._state = {topics.availability: Publication(topics.availability, ONLINE, retain=True)}
        self._refused_until_s: dict[str, float] = {}
        """Retained topics that the broker does not take."""
        self._denied: set[str] = set()
        """Topics whose last message it has refused in words."""
        self.outgoing = Outgoing(self._send)
        self._suspicion = self.outgoing.suspicion
        self._dialect = Dialect(config.protocol)
        self._terms = Terms()
        self._link: Link | None = None
        self._attempts = 0
        """In a row that led to nothing."""
        self._at_once = False
        self._timer: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._stopping = False
        self._open = self._answered = self._taken_over = False
        self._hung_up_for = ""

    @property
    def client_id(self) -> str:
        """Our name at the broker."""
        return self.config.client_id or f"edge-daemon-{self.topics.node}-{machine.digits(self.topics.node)}"

    @property
    def protocol(self) -> str:
        """Which MQTT the broker and we speak now; nothing while there is no connection."""
        spoken = self._link.version if self._link and self.connected.is_set() else 0
        return {5: "5", 4: "3.1.1"}.get(spoken, "")

    @property
    def warning(self) -> str:
        """What is dangerous in the configuration, though it works."""
        return reasons.UNVERIFIED if self.config.tls.enabled and not self.config.tls.verify else ""

    def start(self) -> None:
        """Connect in the background, for ever; a missing broker is not an error."""
        if self.warning:
            log.warning("%s", self.warning)
        self._attempt()

    def _attempt(self) -> None:
        will = Publication(self.topics.availability, OFFLINE, retain=True)
        self._link = Link(self.config, self.client_id, will, self._dialect.version, self)
        self._link.start()

    def state(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Set a retained topic; sent now if connected, and again on every connect."""
        content_type = JSON if payload.startswith(b"{") else ""
        message = Publication(topic, payload, retain=True, qos=qos, content_type=content_type)
        if self._state.get(topic) != message:
            self._state[topic] = message
            self._publish_state(message)

    def repeat(self) -> None:
        """Send all retained topics once more: somebody who needs them has just come."""
        for message in self._state.values():
            self._publish_state(message)

    def _publish_state(self, message: Publication) -> None:
        if self.connected.is_set() and time.monotonic() >= self._refused_until_s.get(message.topic, 0.0):
            self.publish(message)

    def publish(self, message: Publication) -> asyncio.Future[None]:
        """Send; the future is done when the broker has confirmed, cancelled when there is no connection (any more).

        It fails with PublishRefused when the broker will never take this message, with PublishDenied when not now.
        """
        future = self.outgoing.add(message) if self.connected.is_set() else self._loop.create_future()
        if not self.connected.is_set():
            future.cancel()
        elif self._timer is None:
            self._await_answer()
        return future

    def _send(self, message: Publication) -> int:
        link = self._link
        assert link is not None  # it is there while we are connected
        try:
            self._terms.check(link.size_bytes(message), self.config.max_packet_kib)
            return link.publish(message)
        except ValueError as error:
            self._note_refusal(message, str(error))
            raise

    def subscribe(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Have every message of these topics (with `+` and `#`), now and on every connect, in the event loop.

        An error that `on_message` raises is a bug: it is logged, and nothing else comes of it.
        """
        self._subscriptions.add(topics, on_message)
        self._listen(topics, self.sessions)

    def _listen(self, topics: Sequence[str], session: int) -> None:
        if self._link is not None and self.connected.is_set() and session == self.sessions:
            self._subscriptions.ask(self._link, topics)

    async def stop(self) -> None:
        """Say `offline`, wait a moment for the broker to confirm, and leave cleanly: the will stays unsent."""
        if self.connected.is_set():
            goodbyes = [self.publish(Publication(t, OFFLINE, retain=True)) for t in self._goodbye_topics()]
            await asyncio.wait(goodbyes, timeout=CONFIRM_S)
        self._stopping = True
        for timer in (self._timer, self._again, self._calm):
            if timer is not None:
                timer.cancel()
        if self._link is not None:
            self._link.leave()
            if not self._answered or not await self._link.gone(CONFIRM_S):
                self._link.hang_up()
                await self._link.gone(CONFIRM_S)

    def _goodbye_topics(self) -> list[str]:
        """Availability of the sources first, of the node last."""
        sources = [t for t in self._state if t.endswith("/availability") and t != self.topics.availability]
        return [*sources, self.topics.availability]

    # ---- what the link tells -----------------------------------------------------------------------------

    def opened(self) -> None:
        """A connection is there, and the broker owes an answer."""
        self._open = True
        self._await_answer()

    def answered(self, reason: Reason, terms: Terms) -> None:
        """The broker takes us, or not."""
        self._answered = True
        self._stop_timer()
        if self._link is None or self._stopping:  # it was just connecting when `stop` was called
            if self._link is not None:
                self._link.leave()
            return
        if reason.is_failure:
            if reason.code == VERSION and self._dialect.refused():
                self._at_once = True
                log.debug("the broker %s does not speak MQTT 5; now with 3.1.1", self._address)
                return
            words = reasons.in_words(reason.code, has_login=self.config.username is not None)
            self._say(f"the broker {self._address} refuses us ({reason.name}): {words}")
            return
        self._attempts, self._terms = 0, terms
        self.outgoing.most = terms.receive_maximum
        self._suspicion.connected(time.monotonic())
        if self._suspicion.short_ones < 2 and not self._taken_over:
            self._well()
        else:  # probably it is thrown out again: no news before that is known
            self._calm = self._loop.call_later(SHORT_S, self._well)
        self.sessions += 1
        self.connected.set()
        self._subscriptions.ask_for_all(self._link)
        self.repeat()
        self._on_change()

    def _well(self) -> None:
        log.info("connected to the broker %s", self._address)
        self.problem, self._taken_over = "", False
        self._told.clear()
        self._on_change()

    def confirmed(self, number: int, reason: Reason) -> None:
        """The broker has a message, or does not take it."""
        self._stop_timer()
        words = reasons.in_words(reason.code) if reason.is_failure else ""
        for_now, error = reason.code in reasons.FOR_NOW, PublishRefused(words) if words else None
        if for_now:
            error = PublishDenied(words, everything=reason.code in reasons.QUOTA)
        message = self.outgoing.confirmed(number, error)
        if message is not None and for_now:
            self._deny(message.topic, f"({reason.name}): {words}")
        elif message is not None and words:
            self._note_refusal(message, words)
            self._put_off(message.topic, REFUSED_S)
        elif message is not None and message.topic in self._denied:
            self._denied.discard(message.topic)
            if not self._denied:
                self._well()
        if self.outgoing.owed:
            self._await_answer()

    def subscribed(self, number: int, answers: Sequence[Reason]) -> None:
        """For every topic whether we may listen."""
        topics, reason = self._subscriptions.refused(number, answers)
        if reason is not None:
            words = f"({reason.name}): {reasons.in_words(reason.code)}"
            problem = f"the broker {self._address} does not let us listen to {', '.join(topics)} {words}"
            self._say(problem, "nothing from there is heard")
            self._loop.call_later(DENIED_S, self._listen, topics, self.sessions)

    def disconnected(self, reason: Reason, said: bool) -> None:
        """The connection is gone."""
        was_connected, answered, hung_up_for = self.connected.is_set(), self._answered, self._hung_up_for
        alert, tls = self._link.alert if self._link else None, self.config.tls.enabled
        self._reset()
        if self._stopping:
            self.outgoing.broke(hung_up=False, refusal="")
        elif was_connected and not hung_up_for and (said or reason.code not in (KEEPALIVE, MALFORMED)):
            self._closed(reason if said and reason.is_failure else None)
        elif not answered and alert is None and self._dialect.unanswered():
            self._at_once = True
        elif was_connected or hung_up_for:
            self.outgoing.broke(hung_up=False, refusal="")
            silence = hung_up_for or f"said nothing for {self.config.keepalive_s} s (mqtt.keepalive_s)"
            what = "sent what is no MQTT" if reason.code == MALFORMED else silence
            self._say(f"the broker {self._address} is gone: it {what}")
        elif alert is not None:
            self._say(f"the broker {self._address} cannot be reached: {reasons.unreachable(alert)}")
        elif not answered:
            self._say(f"what listens on {self._address} does not answer as a broker does{reasons.WHICH_PORT[tls]}")
        if was_connected:
            self._dialect.lost()

    def _closed(self, reason: Reason | None) -> None:
        """The broker has closed a connection that worked: it restarts, or does not take a message, or us."""
        refusal = f"each time it came, the broker closed the connection; {reasons.UNTAKEN}"
        broker = f"the broker {self._address}"
        self._taken_over = reason is not None and reason.code == TAKEN_OVER
        guilty = self.outgoing.broke(hung_up=True, refusal=refusal)
        if guilty is not None:
            self._note_refusal(guilty, refusal)
            self._put_off(guilty.topic, REFUSED_S)
        elif topic := self._suspicion.unwelcome:
            self._say(f"{broker} closes the connection each time something is sent to {topic}: {reasons.NO_ACCESS}")
        elif self._suspicion.flapping or self._taken_over:
            name = f"mqtt.client_id is {self.client_id!r} here"
            self._say(f"{broker} closes the connection again and again: {reasons.ANOTHER_CLIENT} ({name})")
        elif reason is not None:
            self._say(f"{broker} ended the connection ({reason.name}): {reasons.in_words(reason.code)}")
        else:
            self._say(f"{broker} is gone: it closed the connection")

    def ended(self, error: Exception | None) -> None:
        """The link is over, or there was none: begin again, unless it was the end."""
        if isinstance(error, OSError | ConfigError) or error is None:
            if self._open:
                self.disconnected(Reason(KEEPALIVE, ""), said=False)
        else:
            self._failed(error)
        if self._stopping:
            return
        if isinstance(error, ConfigError):
            self._say(str(error))
        elif isinstance(error, OSError):
            self._unreachable(error)
        first_s = 0.0 if self._at_once else min(RECONNECT_FIRST_S * 2.0**self._attempts, LONGEST_DELAY_S)
        delay_s = first_s and max(first_s, self._suspicion.delay_s) * random.uniform(0.5, 1.5)
        self._attempts = min(self._attempts + (not self._at_once), 10)
        self._at_once = False
        self._again = self._loop.call_later(delay_s, self._attempt)

    def _unreachable(self, error: OSError) -> None:
        self._suspicion.unreachable()
        self._dialect.away()
        self._refused_until_s.clear()  # it may come back with other settings
        self._say(f"the broker {self._address} cannot be reached: {reasons.unreachable(error)}")

    def _failed(self, error: Exception) -> None:
        """The network thread had an error, and begins again."""
        self.outgoing.broke(hung_up=False, refusal="")
        self._reset()
        words = f"{type(error).__name__}: {error}"
        if self._say(f"the connection to the broker {self._address} failed in itself, a bug to report: {words}"):
            log.debug("where it failed", exc_info=error)

    def _reset(self) -> None:
        """No connection is there any more."""
        self._stop_timer()
        if self._calm is not None:
            self._calm.cancel()
        self.connected.clear()
        self._denied.clear()
        self._open, self._answered, self._hung_up_for, self._calm = False, False, "", None

    # ---- what the broker does not take --------------------------------------------------------------------

    def _note_refusal(self, message: Publication, why: str) -> None:
        """Tell of a message that will not arrive."""
        self.refused += 1
        self.last_refused = f"{len(message.payload)} bytes for {message.topic}: {why}"
        log.warning("the broker %s does not take a message and it is left out: %s", self._address, self.last_refused)
        self._on_change()

    def _deny(self, topic: str, why: str) -> None:
        """The broker does not take what is for a topic, but may so later: told once for all topics."""
        first, count = not self._denied, len(self._denied | {topic})
        self._denied.add(topic)
        self._put_off(topic, DENIED_S)
        others = f" and {count - 1} other topics" if count > 1 else ""
        problem = f"the broker {self._address} does not take what is for {topic}{others} {why}"
        if first:
            self._say(problem)
        else:
            self.problem = problem

    def _put_off(self, topic: str, for_s: float) -> None:
        """Do not say a state again at once."""
        if topic in self._state:
            self._refused_until_s[topic] = time.monotonic() + for_s
            self._loop.call_later(for_s + 0.01, self._say_again, topic, self.sessions)

    def _say_again(self, topic: str, session: int) -> None:
        if session == self.sessions:
            self._publish_state(self._state[topic])

    # ---- a broker that owes an answer ---------------------------------------------------------------------

    def _await_answer(self) -> None:
        """Hang up unless the broker answers in time."""
        self._stop_timer()
        within_s = ANSWER_S if self._answered else min(ANSWER_S, self._dialect.patience_s)
        self._timer = self._loop.call_later(within_s, self._hang_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        what = "confirmed no message" if self._answered else "did not answer"
        self._hung_up_for = f"{what} for {ANSWER_S:.0f} s"
        self._timer = None
        if self._link is not None:
            self._link.hang_up()

    def _say(self, problem: str, meanwhile: str = "results are kept meanwhile") -> bool:
        """Log a problem when it is news; results wait in the outbox meanwhile. Several may come in turn."""
        news = problem not in self._told
        if news:
            log.warning("%s; %s", problem, meanwhile)
            self._told.add(problem)
        if problem != self.problem:
            self.problem = problem
            self._on_change()
        return news

    @property
    def _address(self) -> str:
        return f"{self.config.host}:{self.config.port}"
