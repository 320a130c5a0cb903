"""Words to systemd: READY, STATUS, WATCHDOG, STOPPING.

systemd-python says them where it is installed (it must be compiled); otherwise the datagram itself, as
sd_notify(3) documents it. Without $NOTIFY_SOCKET nothing is said. Never raises: a service must not die
because nobody listens.
"""

from __future__ import annotations

import logging
import os
import socket

SEND_S = 1.0
"""A systemd that does not read holds nobody up for longer."""
log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Send lines such as READY=1 or STATUS=watching; True when somebody was told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    try:
        from systemd import daemon  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        return _send(address, state)
    try:
        return bool(daemon.notify(state))
    except OSError as error:
        log.debug("systemd could not be told %r: %s", state, error)
        return False


def _send(address: str, state: str) -> bool:
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_S)
            sender.connect(address)
            sender.sendall(state.encode(errors="replace"))
    except OSError as error:
        log.debug("systemd could not be told %r: %s", state, error)
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Half of systemd's WatchdogSec, the rhythm that sd_watchdog_enabled(3) recommends; None without one."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
