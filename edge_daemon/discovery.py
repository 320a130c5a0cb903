"""When Home Assistant is told what there is (homeassistant.py says what): on every connect, and when it has started.

The broker keeps the message of earlier lives. It is waited for first, because it names what has to be removed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from edge_daemon.errors import PublishDenied
from edge_daemon.homeassistant import messages
from edge_daemon.mqtt import DENIED_S, Connection
from edge_daemon.topics import JSON, ONLINE, Incoming, Publication, discovery, home_assistant_status

EARLIER_S = 2.0
"""The broker sends what it has kept at once after the subscription; a busy one has this long for it."""
LONGEST_DELAY_S = 5.0
"""When Home Assistant starts, all devices are told so at the same moment; they answer one after the other."""
log = logging.getLogger(__name__)


class Discovery:
    """The discovery message of this device."""

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        device_id: str,
        describe: Callable[[], dict[str, Any] | None],
        afterwards: Callable[[], Awaitable[bool]],
    ) -> None:
        """`describe` gives the message as it should be now; None: what Home Assistant was told is taken back.

        `afterwards` is called when it knows what is gone; it says whether the broker allowed all of it.
        """
        self._connection = connection
        self._topic = discovery(prefix, device_id)
        self._status = home_assistant_status(prefix)
        self._describe = describe
        self._afterwards = afterwards
        self._earlier = (0, b"")
        """What the broker keeps, as far as we have heard, and in which session that was."""
        self._refused: bytes | None = None
        """What it will never take. Remembered because a refusal wakes this loop; without it we would resend the same
        message for ever."""
        self._session = 0
        self._delay_s = 0.0
        self._told = False
        self._wake = asyncio.Event()
        connection.subscribe([self._topic, self._status], self._on_message)

    def refresh(self) -> None:
        """Tell again what there is, when there is somebody to tell: something has changed, or a broker took us."""
        self._wake.set()

    def _on_message(self, message: Incoming) -> None:
        if message.topic == self._topic:
            self._earlier = self._connection.sessions, message.payload
        elif message.payload == ONLINE:
            self._delay_s = random.uniform(0.5, LONGEST_DELAY_S)
            self._wake.set()

    async def run(self) -> None:
        """Tell it for ever."""
        allowed = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if allowed else DENIED_S):
                    await self._wake.wait()
            self._wake.clear()
            allowed = True
            if not self._connection.connected.is_set():
                continue
            is_new = self._session != self._connection.sessions
            if is_new:
                self._session, self._refused = self._connection.sessions, None
            delay_s, self._delay_s = self._delay_s, 0.0
            await asyncio.sleep(max(delay_s, EARLIER_S if is_new else 0.0))
            allowed = await self._tell()
            allowed &= await self._afterwards()
            if delay_s:
                self._connection.repeat()

    async def _tell(self) -> bool:
        """Publish, one message after the other; whether the broker allows it for now.

        Should the connection break meanwhile, the next one begins anew.
        """
        wanted, (session, earlier) = self._describe(), self._earlier
        for payload in messages(wanted, earlier if session == self._session else b""):
            if payload == self._refused:
                return True
            sent = self._connection.publish(Publication(self._topic, payload, retain=True, content_type=JSON))
            await asyncio.wait([sent])
            if sent.cancelled():
                return True
            if error := sent.exception():
                denied = isinstance(error, PublishDenied)
                self._refused = None if denied else payload
                return not denied
        if wanted is not None:
            level = logging.DEBUG if self._told else logging.INFO
            log.log(level, "Home Assistant discovery was sent on %s", self._topic)
            self._told = True
        return True
