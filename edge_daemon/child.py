"""Parent side of any child process: start, send, receive with a deadline, stop.

A child is a fresh interpreter (`python -m …`), never a fork. Its stdin and stdout carry messages, its
stderr goes to the log line by line, and the last lines are kept as the reason of its death. Every wait
has a deadline that ends in SIGKILL. Knows nothing of what the messages mean or of when to start again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from edge_daemon import messages, wire
from edge_daemon.errors import ChildDied, ChildTimeout, WireError

KEPT_LINES = 20
REAP_S = 10.0
"""A process that was sent SIGKILL and is still there after so long hangs in the kernel."""
log = logging.getLogger(__name__)


class Child:
    """A running child. Make it with `Child.start`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._stderr = asyncio.create_task(self._follow_stderr(), name=f"{name} stderr")

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start `argv` in its own session, so that a Ctrl-C at the terminal reaches only the daemon.

        `environment` is added to ours, but where ours says something else.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=wire.MAX_HEADER_BYTES,
            start_new_session=True,
            env={**(environment or {}), **os.environ},
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def send(self, item: Any, deadline_s: float) -> None:
        """Send one message. Raises ChildDied, or ChildTimeout when the child does not take it."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(deadline_s):
                self._process.stdin.write(wire.encode(messages.pack(item)))
                await self._process.stdin.drain()
        except TimeoutError:
            await self._give_up(f"took no message for {deadline_s:.0f} s")
        except OSError:
            await self._dead()

    async def receive(self, deadline_s: float) -> Any:
        """The next message. Raises ChildTimeout (the child is killed) or ChildDied.

        A malformed message is a death as well: what follows on the stream cannot be trusted.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(deadline_s):
                message = await wire.read_async(self._process.stdout)
            if message is not None:
                return messages.unpack(message)
        except TimeoutError:
            await self._give_up(f"said nothing for {deadline_s:.0f} s")
        except WireError as error:
            await self.kill()
            raise ChildDied(f"the {self.name} sent something that is no message: {error}") from error
        return await self._dead()

    async def stop(self, grace_s: float) -> None:
        """Close its stdin, which asks it to leave; kill it when it has not left after the grace."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            log.warning("the %s did not leave within %.0f s and is killed", self.name, grace_s)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to its whole session, and reap; nothing happens if it has gone already."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            try:
                async with asyncio.timeout(REAP_S):
                    await self._read_to_the_end()
                    await self._process.wait()
            except TimeoutError:
                log.error("the %s (pid %d) cannot be killed; it hangs in the kernel", self.name, self.pid)
        await asyncio.wait([self._stderr], timeout=1.0)
        self._stderr.cancel()

    async def _read_to_the_end(self) -> None:
        """Throw away what nobody has read: asyncio ends its wait only when every pipe has ended, and closes it then."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(wire.MAX_HEADER_BYTES):
            pass

    async def _give_up(self, what: str) -> None:
        await self.kill()
        raise ChildTimeout(f"the {self.name} {what} and was killed")

    async def _dead(self) -> Any:
        """Reap a child whose pipe is broken or at its end, and say how it died."""
        try:
            async with asyncio.timeout(1.0):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise ChildDied(f"the {self.name} closed its pipe and was killed") from None
        await self.kill()
        words = f"; its last words: {self._last_lines[-1]}" if self._last_lines else ""
        raise ChildDied(f"the {self.name} {exit_in_words(self._process.returncode)}{words}")

    async def _follow_stderr(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # a line longer than the stream's limit; asyncio has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._last_lines.append(text)
                log.info("%s: %s", self.name, text)


def exit_in_words(returncode: int | None) -> str:
    """What an exit status means."""
    if returncode is None:
        return "does not react"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    why = {"SIGKILL": " (perhaps out of memory)", "SIGILL": " (a program made for a newer processor)"}.get(name, "")
    return f"was ended by {name}{why}"
