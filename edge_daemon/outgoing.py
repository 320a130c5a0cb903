"""Messages on their way to the broker: so many at once, and each comes to be confirmed, refused or given back.

Knows nothing of sockets: `send` is called for what may go, and who owns the connection tells what became of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge_daemon.errors import NotPublished, PublishRefused
from edge_daemon.suspicion import WINDOW, Suspicion
from edge_daemon.topics import Publication


@dataclass(frozen=True)
class Pending:
    """One message, and who waits for it."""

    message: Publication
    future: asyncio.Future[None]

    def refuse(self, why: NotPublished) -> None:
        """It will not arrive. Whoever does not wait for it need not hear of it."""
        if not self.future.done():
            self.future.set_exception(why)
            self.future.exception()


class Outgoing:
    """The messages of one connection. Use it from the event loop's thread only."""

    def __init__(self, send: Callable[[Publication], int]) -> None:
        """`send` gives the number that the broker will confirm; it raises ValueError for what MQTT cannot hold."""
        self.suspicion = Suspicion()
        self.most = WINDOW
        """How many the broker wants on their way at once."""
        self._send = send
        self._waiting: deque[Pending] = deque()
        self._sent: dict[int, Pending] = {}

    def __len__(self) -> int:
        """Messages that are neither confirmed nor refused."""
        return len(self._waiting) + len(self._sent)

    def add(self, message: Publication) -> asyncio.Future[None]:
        """Send it when it may go."""
        pending = Pending(message, asyncio.get_running_loop().create_future())
        self._waiting.append(pending)
        self._go()
        return pending.future

    def confirmed(self, number: int, refusal: NotPublished | None) -> Publication | None:
        """The broker has answered, which message it was; `refusal` is why it does not take it."""
        pending = self._sent.pop(number, None)
        if pending is not None:
            self.suspicion.confirmed(pending.message.topic)
            if refusal is not None:
                pending.refuse(refusal)
            elif not pending.future.done():
                pending.future.set_result(None)
        self._go()
        return pending.message if pending else None

    def broke(self, *, hung_up: bool, refusal: str) -> Publication | None:
        """The connection has ended: all are given back, but for the message that ended it, if that is known now.

        `hung_up` says that the broker did it; `refusal` is what is then said of that message.
        """
        guilty = None
        if hung_up:
            guilty = self.suspicion.hung_up([p.message.topic for p in self._sent.values()], time.monotonic())
        else:
            self.suspicion.lost(time.monotonic())
        all_of_them = [*self._sent.values(), *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        if guilty is not None:
            all_of_them[0].refuse(PublishRefused(refusal))
        for pending in all_of_them:
            pending.future.cancel()
        return all_of_them[0].message if guilty is not None else None

    @property
    def owed(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._sent)

    def _go(self) -> None:
        while self._waiting and len(self._sent) < min(self.suspicion.window, self.most):
            pending = self._waiting.popleft()
            if pending.future.done():  # nobody waits for it any more
                continue
            try:
                self._sent[self._send(pending.message)] = pending
            except ValueError as error:
                pending.refuse(PublishRefused(str(error)))
            else:
                self.suspicion.sent(time.monotonic())
