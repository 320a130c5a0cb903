"""SIGHUP (`systemctl reload`): the configuration is read again, as the command `reload` over MQTT does it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from edge_daemon import notify
from edge_daemon.errors import CommandError

log = logging.getLogger(__name__)


async def reload_on(asked: asyncio.Event, reload: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Reload each time it is asked for, and tell systemd when that is done (sd_notify(3), RELOADING=1)."""
    while True:
        await asked.wait()
        asked.clear()
        notify.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            outcome = await reload()
            log.info("the configuration was reloaded: %s", _in_words(outcome))
        except CommandError as error:
            log.error("%s", error)
        notify.notify("READY=1")


def _in_words(outcome: dict[str, Any]) -> str:
    """What holds now, and what needs more."""
    applied = ", ".join(outcome["applied"])
    words = f"these keys are now in effect: {applied}" if applied else "nothing has changed"
    if outcome["overridden"]:
        words += f"; overridden by what was set over MQTT: {', '.join(outcome['overridden'])}"
    if outcome["needs_restart"]:
        words += f"; after a restart: {', '.join(outcome['needs_restart'])}"
    return words
