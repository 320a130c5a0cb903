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
        self.tear = False
        """The next bytes of the client arrive by half, and the connection ends."""
        self.malformed: list[str] = []
        self.connections = 0
        """How often the daemon has come."""
        self._broker_port = broker_port
        self._on_published = on_published
        self._on_confirmed = on_confirmed
        self._passing = asyncio.Event()
        self._passing.set()
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

    def hold(self) -> None:
        """Nothing passes, and nobody is told: as behind a router that is off."""
        self._passing.clear()

    def release(self) -> None:
        """What was held passes."""
        self._passing.set()

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
            asyncio.create_task(self._pass(client, to_broker, lambda data: self._heard(tap, data, from_client=True))),
            asyncio.create_task(self._pass(broker, to_client, lambda data: self._heard(tap, data, from_client=False))),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Callable[[bytes], bool]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                from_client = heard(data)
                await self._passing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.tear and from_client:
                    self.tear = False
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
            await self._passing.wait()  # an end of the connection does not pass either

    def _heard(self, tap: Tap, data: bytes, *, from_client: bool) -> bool:
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
        return from_client


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST (linger 0) instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
