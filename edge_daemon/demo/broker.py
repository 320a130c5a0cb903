"""A broker of our own on a free loopback port: mosquitto, or a pure-Python one where it cannot be had.

For the demo and the tests; the service itself uses the broker that its owner runs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from edge_daemon.errors import UnavailableError

START_S = 20.0
STOP_S = 10.0
MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {directory}/
autosave_interval 1
"""
EMBEDDED = """\
import asyncio, amqtt.broker
async def main():
    broker = amqtt.broker.Broker({{"listeners": {{"default": {{"type": "tcp", "bind": "127.0.0.1:{port}"}}}},
        "plugins": {{"amqtt.plugins.authentication.AnonymousAuthPlugin": {{"allow_anonymous": True}}}}}})
    await broker.start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Broker:
    """One broker process; it keeps its port and its messages over restarts."""

    def __init__(self, directory: Path, *, embedded: bool = False) -> None:
        """Choose a program and a port; `embedded` asks for the Python broker even where mosquitto is.

        Raises UnavailableError when there is no broker.
        """
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._mosquitto = None if embedded else find_mosquitto()
        if self._mosquitto is None and importlib.util.find_spec("amqtt") is None:
            raise UnavailableError(
                "there is no MQTT broker here: sudo apt install mosquitto, or pip install 'edge-daemon[demo]'"
            )

    @property
    def name(self) -> str:
        """Which broker this is, for people."""
        return "mosquitto" if self._mosquitto else "amqtt, an embedded Python broker in mosquitto's place"

    @property
    def protocol(self) -> str:
        """For `mqtt.protocol`: amqtt says nothing to MQTT 5, and it takes 5 s to notice that."""
        return "auto" if self._mosquitto else "3.1.1"

    def start(self) -> None:
        """Start and wait until it listens. Raises UnavailableError when it does not."""
        if self._mosquitto:
            conf = self._directory / "mosquitto.conf"
            # as root, mosquitto would change to a user that may not write here
            user = "root" if os.geteuid() == 0 else "mosquitto"
            conf.write_text(MOSQUITTO_CONF.format(port=self.port, directory=self._directory, user=user))
            argv = [self._mosquitto, "-c", str(conf)]
        else:
            argv = [sys.executable, "-P", "-c", EMBEDDED.format(port=self.port)]
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._wait_until_listening()

    def stop(self, *, kill: bool = False) -> None:
        """End it, by SIGTERM or by SIGKILL."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _wait_until_listening(self) -> None:
        assert self._process is not None
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        log = (self._directory / "broker.log").read_text(errors="replace")
        raise UnavailableError(f"the broker did not start: {log[-500:]}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def find_mosquitto() -> str | None:
    """The program, also where Debian keeps it out of a user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
