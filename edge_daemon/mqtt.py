"""The connection to the broker: one link after the other, for ever.

Retained state (availability, health) is not queued: the latest of each topic is sent again on every connect. Knows
nothing of results: the publisher sends those. The broker may become another one while we run (`move`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from edge_daemon import machine, reasons
from edge_daemon.complaints import Complaints
from edge_daemon.dialect import NAMES, Dialect
from edge_daemon.errors import ConfigError, NotPublished, PublishDenied, PublishRefused
from edge_daemon.link import Link, Reason, Terms
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outgoing import Outgoing
from edge_daemon.retained import Retained
from edge_daemon.subscriptions import OnMessage, Subscriptions
from edge_daemon.suspicion import LONGEST_DELAY_S, SHORT_S
from edge_daemon.topics import OFFLINE, Publication, Topics
from edge_daemon.visit import Visit

RECONNECT_FIRST_S = 1
REFUSED_S = 3600.0
"""After so long a topic whose message ended connections is tried again: its owner may have changed its settings."""
DENIED_S = 60.0
"""The same for one that the broker has refused in words, which costs it nothing."""
log = logging.getLogger(__name__)


class Connection:
    """One client of one broker, for the life of the daemon. Use it from the event loop's thread only."""

    def __init__(self, config: MqttConfig, topics: Topics, on_change: Callable[[], None]) -> None:
        self.config = config
        self.topics = topics
        self.connected = asyncio.Event()
        self.sessions = 0
        """How often a broker has taken us: what was on its way in an earlier session must be sent again."""
        self.complaints = Complaints(on_change)
        self.retained = Retained(topics)
        self._loop = asyncio.get_running_loop()
        self._on_change = on_change
        self._subscriptions = Subscriptions()
        self.arrived = self._subscriptions.arrived
        self._wanted = config
        """Of the broker that we are to talk to; `config` is of the one that we do talk to."""
        self._begin_anew()
        self._visit: Visit | None = None
        self._attempts = 0
        """In a row that led to nothing."""
        self._at_once = False
        self._calm: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._stopping = self._taken_over = False

    def _begin_anew(self) -> None:
        """Nothing is known of the broker."""
        self.outgoing = Outgoing(self._send)
        self._suspicion = self.outgoing.suspicion
        self._dialect = Dialect(self.config.protocol)

    @property
    def problem(self) -> str:
        """What is wrong now."""
        return self.complaints.problem

    @property
    def client_id(self) -> str:
        """Our name at the broker."""
        return self.config.client_id or machine.client_id(self.topics.node)

    @property
    def protocol(self) -> str:
        """Which MQTT the broker and we speak now; nothing while there is no connection."""
        spoken = self._visit.link.version if self._visit and self.connected.is_set() else 0
        return NAMES.get(spoken, "")

    @property
    def warning(self) -> str:
        """What is dangerous in the configuration, though it works."""
        return reasons.UNVERIFIED if self.config.tls.enabled and not self.config.tls.verify else ""

    @property
    def address(self) -> str:
        """Of the broker."""
        return f"{self.config.host}:{self.config.port}"

    def start(self) -> None:
        """Connect in the background, for ever; a missing broker is not an error."""
        if self.warning:
            log.warning("%s", self.warning)
        self._attempt()

    def move(self, config: MqttConfig) -> None:
        """Talk to another broker from now on, or to this one in another way.

        What was published before is still confirmed, or given back: whoever sent it sends it again, to the new one.
        """
        if config == self._wanted:
            return
        self._wanted = config
        log.info("from now on the broker is %s:%d (after a reload)", config.host, config.port)
        if self._again is not None:  # there is no link now
            self._again.cancel()
            self._again = self._loop.call_later(0.0, self._attempt)
        elif self._visit is not None:
            self._part(self._visit)

    def _adopt(self) -> None:
        """Turn to the broker that we are to talk to."""
        self.config = self._wanted
        self._attempts, self._taken_over = 0, False
        self._begin_anew()
        self.retained.another_broker()
        self.complaints.another_broker()
        if self.warning:
            log.warning("%s", self.warning)

    def _attempt(self) -> None:
        self._again = None
        if self.config != self._wanted:
            self._adopt()
        will = Publication(self.topics.availability, OFFLINE, retain=True)
        link = Link(self.config, self.client_id, will, self._dialect.version, self)
        self._visit = Visit(link, self._dialect.patience_s)
        link.start()

    def state(self, topic: str, payload: bytes, qos: int = 1) -> None:
        """Set a retained topic; sent now if connected, and again on every connect."""
        message = self.retained.set(topic, payload, qos)
        if message is not None and self.connected.is_set() and self.retained.is_due(topic, time.monotonic()):
            self.publish(message)

    def repeat(self) -> None:
        """Send all retained topics once more: somebody who needs them has just come."""
        suspicious = self._suspicion.window == 1  # then one that surely arrives goes first, or nobody would be guilty
        due = self.retained.due(time.monotonic(), node_first=suspicious)
        for message in due if self.connected.is_set() else ():
            self.publish(message)

    def publish(self, message: Publication) -> asyncio.Future[None]:
        """Send; the future is done when the broker has confirmed, cancelled when there is no connection (any more).

        It fails with PublishRefused when the broker will never take this message, with PublishDenied when not now.
        """
        future = self.outgoing.add(message) if self.connected.is_set() else self._loop.create_future()
        if not self.connected.is_set():
            future.cancel()
        elif self._visit is not None and not self._visit.is_awaited:
            self._visit.await_answer()
        return future

    def _send(self, message: Publication) -> int:
        visit = self._visit
        assert visit is not None  # it is there while we are connected
        try:
            visit.terms.check(visit.link.size_bytes(message), self.config.max_packet_kib)
            return visit.link.publish(message)
        except ValueError as error:
            self.complaints.refuse(self.address, message, str(error))
            raise

    def subscribe(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Have every message of these topics (with `+` and `#`), now and on every connect, in the event loop.

        An error that `on_message` raises is a bug: it is logged, and nothing else comes of it.
        """
        self._subscriptions.add(topics, on_message)
        self._listen(topics, self.sessions)

    def _listen(self, topics: Sequence[str], session: int) -> None:
        if self._visit is not None and self.connected.is_set() and session == self.sessions:
            self._subscriptions.ask(self._visit.link, topics)

    async def stop(self) -> None:
        """Leave as is proper, and wait for it."""
        self._stopping = True
        for timer in (self._again, self._calm):
            if timer is not None:
                timer.cancel()
        if self._visit is not None:
            self._part(self._visit)
            await self._visit.gone()

    def _part(self, visit: Visit) -> None:
        """Say `offline`, and leave."""
        if not visit.is_parting:
            self._at_once = True
            topics = self.retained.availability() if self.connected.is_set() else ()
            visit.part([self.publish(Publication(topic, OFFLINE, retain=True)) for topic in topics])
            self.connected.clear()  # nothing else is sent; what is on its way may still be confirmed

    # ---- what the link tells -----------------------------------------------------------------------------

    @property
    def _here(self) -> Visit:
        """Whose link tells it."""
        assert self._visit is not None
        return self._visit

    def opened(self) -> None:
        """A connection is there, and the broker owes an answer."""
        visit = self._here
        visit.is_open = True
        visit.await_answer()

    def answered(self, reason: Reason, terms: Terms) -> None:
        """The broker takes us, or not."""
        visit = self._here
        visit.is_answered = True
        visit.answer_came()
        if visit.is_parting:  # it was just connecting
            return
        if reason.is_failure:
            if reason.code == reasons.VERSION and self._dialect.refused():
                self._at_once = True
                log.debug("the broker %s does not speak MQTT 5; using 3.1.1", self.address)
                return
            words = reasons.in_words(reason.code, has_login=self.config.username is not None)
            self.complaints.say(f"the broker {self.address} refuses us ({reason.name}): {words}")
            return
        self._attempts, visit.terms = 0, terms
        self.outgoing.most = terms.receive_maximum
        self._suspicion.connected(time.monotonic())
        if self._suspicion.short_ones < 2 and not self._taken_over:
            self._well()
        else:  # probably it is thrown out again: no news before that is known
            self._calm = self._loop.call_later(SHORT_S, self._well)
        self.sessions += 1
        self.connected.set()
        self._subscriptions.ask_for_all(visit.link)
        self.repeat()
        self._on_change()

    def _well(self) -> None:
        log.info("connected to the broker %s", self.address)
        self._taken_over = False
        self.complaints.well()

    def confirmed(self, number: int, reason: Reason) -> None:
        """The broker has a message, or does not take it."""
        self._here.answer_came()
        words = reasons.in_words(reason.code) if reason.is_failure else ""
        for_now = reason.code in reasons.FOR_NOW
        error: NotPublished | None = None
        if for_now:
            error = PublishDenied(words, everything=reason.code in reasons.QUOTA)
        elif words:
            error = PublishRefused(words)
        message = self.outgoing.confirmed(number, error)
        if message is not None and for_now and not message.once:
            self.complaints.deny(self.address, message.topic, f"({reason.name}): {words}")
            self._put_off(message.topic, DENIED_S)
        elif message is not None and words:
            self._leave_out(message, words)
        elif message is not None and self.complaints.is_last_allowed(message.topic):
            self._well()
        if self.outgoing.owed:
            self._here.await_answer()

    def subscribed(self, number: int, answers: Sequence[Reason]) -> None:
        """For every topic whether we may listen."""
        granted, topics, reason = self._subscriptions.answered(number, answers)
        if reason is not None:
            self.complaints.deafen(self.address, topics, f"({reason.name}): {reasons.in_words(reason.code)}")
            self._loop.call_later(DENIED_S, self._listen, topics, self.sessions)
        if self.complaints.is_last_heard(granted):
            self._well()

    def disconnected(self, reason: Reason, said: bool) -> None:
        """The connection is gone."""
        visit, was_connected = self._here, self.connected.is_set()
        answered, silence, alert = visit.is_answered, visit.silence, visit.link.alert
        self._reset()
        if visit.is_parting:
            self.outgoing.broke(hung_up=False, refusal="")
        elif was_connected and not silence and (said or reason.code not in (reasons.KEEPALIVE, reasons.MALFORMED)):
            self._closed(reason if said and reason.is_failure else None)
        elif not answered and alert is None and self._dialect.unanswered():
            self._at_once = True
        elif was_connected or silence:
            self.outgoing.broke(hung_up=False, refusal="")
            silence = silence or f"sent nothing for {self.config.keepalive_s} s (mqtt.keepalive_s)"
            what = "sent something that is not MQTT" if reason.code == reasons.MALFORMED else silence
            self.complaints.say(f"the broker {self.address} is gone: it {what}")
        elif alert is not None:
            self.complaints.say(f"the broker {self.address} cannot be reached: {reasons.unreachable(alert)}")
        elif not answered:
            which = reasons.WHICH_PORT[self.config.tls.enabled]
            self.complaints.say(f"what listens on {self.address} does not answer like a broker{which}")
        if was_connected:
            self._dialect.lost()

    def _closed(self, reason: Reason | None) -> None:
        """The broker has closed a connection that worked: it restarts, or does not take a message, or us."""
        refusal = f"each time it came, the broker closed the connection; {reasons.UNTAKEN}"
        broker = f"the broker {self.address}"
        self._taken_over = reason is not None and reason.code == reasons.TAKEN_OVER
        guilty = self.outgoing.broke(hung_up=True, refusal=refusal)
        if guilty is not None:
            self._leave_out(guilty, refusal)
        elif topic := self._suspicion.unwelcome:
            when = f"each time something is sent to {topic}"
            self.complaints.say(f"{broker} closes the connection {when}: {reasons.NO_ACCESS}")
        elif self._suspicion.flapping or self._taken_over:
            name = f"mqtt.client_id is {self.client_id!r} here"
            self.complaints.say(f"{broker} closes the connection again and again: {reasons.ANOTHER_CLIENT} ({name})")
        elif reason is not None:
            self.complaints.say(f"{broker} ended the connection ({reason.name}): {reasons.in_words(reason.code)}")
        else:
            self.complaints.say(f"{broker} is gone: it closed the connection")

    def ended(self, error: Exception | None) -> None:
        """The link is over, or there was none: begin again, unless it was the end."""
        if isinstance(error, OSError | ConfigError) or error is None:
            if self._here.is_open:
                self.disconnected(Reason(reasons.KEEPALIVE, ""), said=False)
        else:
            self._failed(error)
        if self._stopping:
            return
        if isinstance(error, ConfigError) and not self._here.is_parting:
            self.complaints.say(str(error))
        elif isinstance(error, OSError) and not self._here.is_parting:
            self._unreachable(error)
        first_s = 0.0 if self._at_once else min(RECONNECT_FIRST_S * 2.0**self._attempts, LONGEST_DELAY_S)
        delay_s = first_s and max(first_s, self._suspicion.delay_s) * random.uniform(0.5, 1.5)
        self._attempts = min(self._attempts + (not self._at_once), 10)
        self._at_once = False
        self._again = self._loop.call_later(delay_s, self._attempt)

    def _unreachable(self, error: OSError) -> None:
        self._suspicion.unreachable()
        self._dialect.away()
        self.retained.another_broker()  # it may come back with other settings
        self.complaints.say(f"the broker {self.address} cannot be reached: {reasons.unreachable(error)}")

    def _failed(self, error: Exception) -> None:
        """The network thread had an error, and begins again."""
        self.outgoing.broke(hung_up=False, refusal="")
        self._reset()
        words = f"{type(error).__name__}: {error}"
        problem = f"the connection to the broker {self.address} failed (internal error, please report it): {words}"
        if self.complaints.say(problem):
            log.debug("where it failed", exc_info=error)

    def _reset(self) -> None:
        """No connection is there any more."""
        self._here.over()
        if self._calm is not None:
            self._calm.cancel()
        self.connected.clear()
        self.complaints.disconnected()
        self._calm = None

    # ---- what the broker does not take --------------------------------------------------------------------

    def _leave_out(self, message: Publication, why: str) -> None:
        self.complaints.refuse(self.address, message, why)
        self._put_off(message.topic, REFUSED_S)

    def _put_off(self, topic: str, for_s: float) -> None:
        """Do not say a state again at once."""
        if self.retained.put_off(topic, time.monotonic() + for_s):
            self._loop.call_later(for_s + 0.01, self._say_again, topic)

    def _say_again(self, topic: str) -> None:
        """Also when it is another connection by now: the topic was left out of what that began with."""
        message = self.retained.get(topic)
        if message is not None and self.connected.is_set() and self.retained.is_due(topic, time.monotonic()):
            self.publish(message)
