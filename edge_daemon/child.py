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
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from edge_daemon import messages, wire
from edge_daemon.errors import ChildBootError, ChildDied, ChildTimeout, WireError
from edge_daemon.token_bucket import TokenBucket

KEPT_LINES = 20
LINE_BYTES = 2000
"""Of a longer line the end is shown: a traceback's last line says what it was."""
LINES_AT_ONCE, LINES_PER_MINUTE = 200, 60.0
"""What a child may say on stderr: a traceback or two, then little; it must not fill the journal."""
REAP_S = 10.0
"""A process that was sent SIGKILL and is still there after so long hangs in the kernel."""
EXPLAINED = {
    "SIGKILL": "perhaps out of memory",
    "SIGILL": "a program made for a newer processor",
    "SIGPROF": "its processor time for one picture was used up: decode_timeout_s",
    "SIGTRAP": "a library gave up, usually because memory ran out",
}
"""What a signal that ended a child is likely to mean."""
log = logging.getLogger(__name__)


class Child:
    """A running child. Make it with `Child.start`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._allowance = TokenBucket(LINES_AT_ONCE, LINES_PER_MINUTE)
        self._unshown = 0
        self._buried = False
        self._hangs = False
        self._stderr = asyncio.create_task(self._follow_stderr(), name=f"{name} stderr")

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> Child:
        """Start `argv` in its own session, so that a Ctrl-C at the terminal reaches only the daemon.

        `environment` is added to ours, but where ours says something else; it has our `descriptors` open as well.
        Raises ChildBootError when it cannot be started: its program is not there, or the machine has no memory, process
        or file descriptor left.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=wire.MAX_HEADER_BYTES,
                start_new_session=True,
                env={**(environment or {}), **os.environ},
                pass_fds=descriptors,
            )
        except OSError as error:
            raise ChildBootError(f"the {name} cannot be started: {error}") from error
        return cls(name, process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the negative number of the signal that ended it; None while it lives."""
        return self._process.returncode

    async def send(self, item: Any, deadline_s: float) -> None:
        """Send one message. Raises ChildDied, or ChildTimeout when the child does not take it."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(deadline_s):
                self._process.stdin.write(wire.encode(messages.pack(item)))
                await self._process.stdin.drain()
        except TimeoutError:
            await self._give_up(f"accepted no message for {deadline_s:.0f} s")
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
            await self._give_up(f"sent nothing for {deadline_s:.0f} s")
        except WireError as error:
            if self._process.stdout.at_eof():  # it died in the middle of a message
                return await self._dead()
            await self.kill()
            raise ChildDied(f"the {self.name} sent something that is not a message: {error}") from error
        return await self._dead()

    async def stop(self, grace_s: float) -> None:
        """Close its stdin, which asks it to leave; kill it when it has not left after the grace."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._hangs:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            if grace_s:  # else nobody has waited for it
                log.warning("the %s did not end within %.0f s and is killed", self.name, grace_s)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to its whole session, and reap; what it has started goes with it, even when it has gone already."""
        if not self._buried or self._process.returncode is None:
            self._buried = True  # once it is reaped its number may be another's: not twice
            with suppress(ProcessLookupError, PermissionError):
                self._kill_session()
        await asyncio.wait([self._stderr], timeout=1.0)
        self._stderr.cancel()
        self._close_pipes()
        try:
            async with asyncio.timeout(REAP_S):
                await self._process.wait()
        except TimeoutError:
            self._hangs = True
            log.error("the %s (pid %d) cannot be killed; it is stuck in the kernel", self.name, self.pid)

    def _kill_session(self) -> None:
        if hasattr(os, "killpg"):
            os.killpg(self.pid, signal.SIGKILL)
        else:  # Windows knows no sessions
            self._process.kill()

    def _close_pipes(self) -> None:
        """Close our ends, whatever is unread and whoever else holds the other ones: asyncio waits for that."""
        transport = self._process._transport  # type: ignore[attr-defined]
        for number in (0, 1, 2):
            pipe = transport.get_pipe_transport(number)
            if number == 0 and pipe.get_write_buffer_size():
                pipe.abort()  # `close` would wait until somebody reads that
            else:
                pipe.close()

    async def _give_up(self, what: str) -> None:
        await self.kill()
        raise ChildTimeout(f"the {self.name} {what} and was killed")

    async def _dead(self) -> Any:
        """Reap a child whose pipe is broken or at its end, and say how it died."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._process.wait()
        lives = self._process.returncode is None
        await self.kill()
        if lives:
            raise ChildDied(f"the {self.name} closed its pipe and was killed")
        words = f"; its last words: {self._last_lines[-1]}" if self._last_lines else ""
        returncode = self._process.returncode
        raise ChildDied(f"the {self.name} {exit_in_words(returncode)}{words}", returncode)

    async def _follow_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        while chunk := await self._process.stderr.read(1 << 13):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._heard(line)
            rest = rest[-LINE_BYTES:]
            await asyncio.sleep(0)  # who babbles must not keep the daemon from everything else
        self._heard(rest)

    def _heard(self, line: bytes) -> None:
        """One line of its stderr."""
        text = line[-LINE_BYTES:].decode(errors="replace").rstrip()
        if not text:
            return
        self._last_lines.append(text)
        if self._allowance.take(time.monotonic()) > 0.0:
            self._unshown += 1
            return
        if self._unshown:
            log.info("%s: (%d lines are not shown)", self.name, self._unshown)
            self._unshown = 0
        log.info("%s: %s", self.name, text)


def exit_in_words(returncode: int | None) -> str:
    """What an exit status means."""
    if returncode is None:
        return "does not react"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    why = EXPLAINED.get(name)
    return f"was ended by {name}" + (f" ({why})" if why else "")
