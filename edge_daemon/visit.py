"""One visit at a broker, from the attempt to its end: how far it has come, and whether the broker owes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from edge_daemon.link import Link, Terms

ANSWER_S = 30.0
"""A broker that owes an answer (to CONNECT, to messages) and gives none for so long is hung up on.

paho's own deadline is keepalive_s, up to an hour, and knows nothing of messages that are never confirmed."""
CONFIRM_S = 3.0
"""How long a clean goodbye may take, and so long again until the link is gone."""


class Visit:
    """Use it from the event loop's thread only."""

    def __init__(self, link: Link, patience_s: float) -> None:
        """`patience_s` is for the first answer, if it is shorter than ANSWER_S."""
        self.link = link
        self.terms = Terms()
        """What the broker takes."""
        self.is_open = False
        """There is a connection."""
        self.is_answered = False
        """The broker has taken us, or refused."""
        self.is_parting = False
        self.silence = ""
        """What the broker did not do, and for how long, if we hung up on it for that."""
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether the broker owes an answer."""
        return self._timer is not None

    def await_answer(self) -> None:
        """Hang up unless the broker answers in time."""
        self.answer_came()
        within_s = ANSWER_S if self.is_answered else min(ANSWER_S, self._patience_s)
        self._timer = self._loop.call_later(within_s, self._hang_up, within_s)

    def answer_came(self) -> None:
        """The broker owes nothing now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self, within_s: float) -> None:
        what = "confirmed no message" if self.is_answered else "did not answer"
        self.silence = f"{what} for {within_s:.0f} s"
        self._timer = None
        self.link.hang_up()

    def part(self, goodbyes: Sequence[asyncio.Future[None]]) -> None:
        """Leave when the broker has confirmed the goodbyes, so that the will stays unsent; without any, at once."""
        self.is_parting = True
        if not goodbyes:
            self.link.leave()
            self.link.hang_up()
            return
        asyncio.gather(*goodbyes, return_exceptions=True).add_done_callback(lambda _: self.link.leave())
        self._loop.call_later(CONFIRM_S, self.link.leave)

    async def gone(self) -> None:
        """Wait for its end, which `part` has begun."""
        if not await self.link.gone(2 * CONFIRM_S):
            self.link.hang_up()
            await self.link.gone(CONFIRM_S)

    def over(self) -> None:
        """There is no connection any more."""
        self.answer_came()
        self.is_open = self.is_answered = False
