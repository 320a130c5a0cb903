"""The network between daemon and broker, in our hands: it passes, holds, delays, tears, resets and refuses.

It is also the witness: what the daemon published and what the broker confirmed is seen here, whatever becomes of
subscribers and of the broker's memory.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from tests.chaos.packets import Publish, Tap

CHUNK_BYTES = 1 << 16
CONNECT_S = 5.0


class Proxy:
    """One port that leads to the broker's. Use it from the event loop's thread only."""

    def __init__(
        self,
        port: int,
        broker_port: int,
        on_published: Callable[[Publish], None],
        on_confirmed: Callable[[Publish], None],
    ) -> None:
        self.port = port
        self.delay_s = 0.0
        self.life_s: Callable[[], float] | None = None
        """After how many seconds a new connection breaks; None: it does not."""
        self.tear = False
        """The next bytes of the client arrive by half, and the connection ends."""
        self.malformed: list[str] = []
        self.connections = 0
        """How often the daemon has come."""
        self._broker_port = broker_port
        self._on_published = on_published
        self._on_confirmed = on_confirmed
        self._passing = {True: asyncio.Event(), False: asyncio.Event()}
        """By whether it comes from the client."""
        self.release()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Take connections."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=CHUNK_BYTES)

    async def refuse(self) -> None:
        """Take no more connections, and end those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def hold(self, *, answers_only: bool = False) -> None:
        """Nothing passes, or no answer, and nobody is told: as behind a router that is off."""
        self._passing[False].clear()
        if not answers_only:
            self._passing[True].clear()

    def release(self) -> None:
        """What was held passes."""
        for passing in self._passing.values():
            passing.set()

    def reset(self) -> None:
        """End all connections with RST."""
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(to_client)
        to_broker = None
        try:
            async with asyncio.timeout(CONNECT_S):
                broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
            self._writers.add(to_broker)
            async with asyncio.timeout(self.life_s() if self.life_s else None):
                await self._both(client, to_broker, broker, to_client)
        except (OSError, TimeoutError):
            pass
        finally:
            for writer in filter(None, (to_client, to_broker)):
                self._writers.discard(writer)
                _reset(writer)

    async def _both(
        self,
        client: asyncio.StreamReader,
        to_broker: asyncio.StreamWriter,
        broker: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes both ways until either side ends."""
        tap = Tap()
        ways = [
            asyncio.create_task(self._pass(tap, client, to_broker, from_client=True)),
            asyncio.create_task(self._pass(tap, broker, to_client, from_client=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()

    async def _pass(
        self, tap: Tap, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        passing = self._passing[from_client]
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                self._hear(tap, data, from_client=from_client)
                await passing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.tear and from_client:
                    self.tear = False
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
            await passing.wait()  # an end of the connection does not pass either

    def _hear(self, tap: Tap, data: bytes, *, from_client: bool) -> None:
        (tap.from_client if from_client else tap.from_broker)(data)
        if tap.malformed:
            self.malformed.append(tap.malformed)
            tap.malformed = ""
        for message in tap.published:
            self._on_published(message)
        for message in tap.confirmed:
            self._on_confirmed(message)
        tap.published.clear()
        tap.confirmed.clear()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST (linger 0) instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
