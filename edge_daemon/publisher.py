"""The publisher: drains the outbox into the connection.

Results leave the outbox when the broker has confirmed (PUBACK) every message they became.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge_daemon.mqtt import Connection
from edge_daemon.outbox import Entry, Outbox
from edge_daemon.topics import Publication, publications

BATCH = 20
"""Results on their way at once; a long backlog is replayed at the broker's pace."""


async def publish_results(
    outbox: Outbox, written: asyncio.Event, connection: Connection, beat: Callable[[], None], beat_s: float
) -> None:
    """Drain the outbox into the connection, in order, for ever. `written` wakes it; `beat` shows progress."""
    session = backlog_row = 0
    while True:
        beat()
        if connection.sessions != session:  # whatever is there by now is a replay, whatever the clock says
            session, backlog_row = connection.sessions, outbox.last_row()
        entries = outbox.head(BATCH) if connection.connected.is_set() else []
        if not entries:
            await _wait(written if connection.connected.is_set() else connection.connected, beat_s)
            written.clear()
            continue
        sent = [(entry, [connection.publish(m) for m in _messages(connection, entry, backlog_row)]) for entry in entries]
        for entry, confirmations in sent:
            while not all(c.done() for c in confirmations):
                await asyncio.wait(confirmations, timeout=beat_s)
                beat()
            if any(c.cancelled() for c in confirmations):
                break  # the connection broke: once more from here
            outbox.delete(entry.row)


def _messages(connection: Connection, entry: Entry, backlog_row: int) -> list[Publication]:
    return publications(connection.topics, entry.source, {**entry.body, "replayed": entry.row <= backlog_row})


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
