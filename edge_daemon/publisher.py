"""The publisher: drains the outbox into the connection.

Results leave the outbox when the broker has confirmed (PUBACK) every message they became. One whose event it will
never take is passed over, and the next ones are sent. So is one that it does not take for now, as its access list or a
quota says; but that one is sent again, when the time has come or the next broker has taken us, and never dropped: when
many wait so, the others wait with them. When only a retained topic is not allowed, the event has arrived: the result
leaves the outbox, and what the topic should hold is said again from memory, unless something newer has been by then.

What was kept when the broker took us is a backlog. Its results are events, in order and marked `replayed`, at a
bounded rate beside the live ones. They are no news: an automation that listens to a retained topic must not see
hours of old captions pass by. So a retained topic gets the newest of the backlog once, before the replay, and
after that only what is live; it never goes back. A result of what is gone by now is an event and nothing else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from edge_daemon.book import Entry
from edge_daemon.errors import PublishDenied
from edge_daemon.mqtt import DENIED_S, Connection
from edge_daemon.outbox import Outbox
from edge_daemon.results import published
from edge_daemon.topics import Publication, publications

BATCH = 20
"""Results on their way at once, live ones and as many of the backlog."""
DENIED = 50
"""Results that are passed over for now: until DENIED_S later."""
REPLAY_PER_S = 50.0
"""Results of the backlog: a day of one every ten seconds takes three minutes."""


class Publisher:
    """One outbox, one connection."""

    def __init__(
        self,
        outbox: Outbox,
        connection: Connection,
        written: asyncio.Event,
        beat: Callable[[], None],
        beat_s: float,
    ) -> None:
        """`written` wakes it; `beat` shows progress, at least every `beat_s`."""
        self._outbox = outbox
        self._connection = connection
        self._written = written
        self._beat = beat
        self._beat_s = beat_s
        self._session = 0
        self._backlog_row = 0
        """The last row that was there when the broker took us."""
        self._replay_at_s = 0.0
        self._denied: list[Entry] = []
        """What is passed over for now."""
        self._unsaid: dict[str, Entry] = {}
        """By retained topic, what the broker did not take for now."""
        self._untaken: set[int] = set()
        """Rows of what no retained topic will ever get; their events are another matter."""
        self._hold = False
        self._again_at_s = math.inf
        """When to try again what was denied."""

    async def run(self) -> None:
        """Publish for ever."""
        while True:
            self._beat()
            self._outbox.tend()
            if not self._connection.connected.is_set():
                await _wait(self._connection.connected, self._beat_s)
            elif self._session != self._connection.sessions or time.monotonic() >= self._again_at_s:
                await self._begin()
            elif self._hold or not await self._send_some():
                await _wait(self._written, self._beat_s)
                self._written.clear()

    async def _begin(self) -> None:
        """A broker has taken us, or may take more: whatever is there by now is a replay, whatever the clock says."""
        self._outbox.take_up(self._denied)
        self._denied, self._hold, self._again_at_s = [], False, math.inf
        self._session, self._backlog_row = self._connection.sessions, self._outbox.last_row()
        newest = self._outbox.newest()
        self._untaken.intersection_update(e.row for e in newest)
        newest = [e for e in newest if e.row not in self._untaken]
        batch = [(e, [m for m in self._messages(e) if m.retain]) for e in newest]
        newer = {m.topic for _, messages in batch for m in messages}
        unsaid = [(topic, e) for topic, e in self._unsaid.items() if topic not in newer]
        batch += [(e, [m for m in self._messages(e) if m.topic == topic]) for topic, e in unsaid]
        await self._send([(e, messages) for e, messages in batch if messages], confirmed=lambda entries: None)

    async def _send_some(self) -> bool:
        """Live results, and of the backlog when it is time; whether there was anything."""
        live = self._outbox.head(BATCH, behind=self._backlog_row)
        left_s = self._replay_at_s - time.monotonic()
        old = self._outbox.head(BATCH, up_to=self._backlog_row)
        if old and not live and left_s > 0:
            await _wait(self._written, min(left_s, self._beat_s))
            self._written.clear()
            return True
        if old and left_s > 0:
            old = []
        elif old:
            self._replay_at_s = time.monotonic() + len(old) / REPLAY_PER_S
        batch = [(e, self._messages(e)) for e in live]
        batch += [(e, [m for m in self._messages(e) if not m.retain]) for e in old]
        await self._send(batch, self._outbox.delete)
        return bool(batch)

    def _messages(self, entry: Entry) -> list[Publication]:
        result = published(entry.body, entry.row <= self._backlog_row, entry.made, self._outbox.clock())
        made = publications(self._connection.topics, entry.source, result)
        return [m for m in made if not m.retain or self._connection.retained.may(m.topic)]

    async def _send(
        self, batch: list[tuple[Entry, list[Publication]]], confirmed: Callable[[list[Entry]], None]
    ) -> None:
        """Send it, and hand over what is confirmed, in order, until all is or the connection breaks."""
        sent = [(e, messages, [self._connection.publish(m) for m in messages]) for e, messages in batch]
        done: list[Entry] = []
        for entry, messages, confirmations in sent:
            while not all(c.done() for c in confirmations):
                if done:  # as many as are confirmed by now, at once: each time is a write to the disk
                    confirmed(done)
                    done = []
                await asyncio.wait(confirmations, timeout=self._beat_s)
                self._beat()
            refusals = [*map(_refusal, confirmations)]  # the connection has told them
            broke = any(c.cancelled() for c in confirmations) and not any(refusals)
            if broke or confirmations[0].cancelled():  # the connection broke: once more from here
                break
            self._note_unsaid(entry, messages, refusals)
            first, is_event = refusals[0], not messages[0].retain  # else it is one of `_begin`'s
            if first is None:
                done.append(entry)
            elif isinstance(first, PublishDenied):
                self._deny(entry, first, is_event=is_event)
            elif is_event:
                self._outbox.pass_over(entry)
            else:
                self._untaken.add(entry.row)
        if done:
            confirmed(done)

    def _note_unsaid(self, entry: Entry, messages: list[Publication], refusals: list[BaseException | None]) -> None:
        for message, refusal in zip(messages, refusals, strict=True):
            if isinstance(refusal, PublishDenied) and message.retain:
                self._unsaid[message.topic] = entry
                self._again_at_s = min(self._again_at_s, time.monotonic() + DENIED_S)
            else:
                self._unsaid.pop(message.topic, None)

    def _deny(self, entry: Entry, refusal: PublishDenied, *, is_event: bool) -> None:
        """Send it again later; the others need not wait for it."""
        self._again_at_s = min(self._again_at_s, time.monotonic() + DENIED_S)
        if refusal.everything or len(self._denied) >= DENIED:
            self._hold = True
        elif is_event:
            self._outbox.pass_over(entry)
            self._denied.append(entry)


def _refusal(confirmation: asyncio.Future[None]) -> BaseException | None:
    """Why the broker does not take this message."""
    return None if confirmation.cancelled() else confirmation.exception()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
