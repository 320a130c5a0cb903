"""The real daemon as systemd would keep it: started again whenever it ends, listened to, looked at."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.chaos.evidence import Line, Sample
from tests.chaos.pictures import NODE, QUESTION

TOKEN = "EDGE_DAEMON_CHAOS"
WATCHDOG_S = 120
"""As the unit says."""
RESTART_S = 1.0
"""The unit says 10 s; less here, because a run is short."""
STOP_S = 60.0
TICK_S, STALL_S = 0.1, 1.5
SAMPLE_S = 0.5
FILLER = "filler"
"""A file of ours in the state directory, which does not count."""
_LINE = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(.*)", re.DOTALL)


def configuration(port: int, state: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Deadlines as short as they may be set, so that they are met within a run."""
    common = {"type": "folder", "settle_s": 0.2, "rescan_s": 2}
    sources = {name: {**common, "path": str(path)} for name, path in folders.items()}
    sources["yard"]["questions"] = [{"id": "count", "ask": QUESTION}]
    return {
        "node": NODE,
        "state_dir": str(state),
        "mqtt": {"host": "127.0.0.1", "port": port, "keepalive_s": 5},
        "model": {"threads": 1, "silence_timeout_s": 6, "start_timeout_s": 60, "stop_grace_s": 10},
        "sources": sources,
    }


async def until(probe: Callable[[], object], timeout_s: float) -> bool:
    """Wait for something that will come. Only time in which we run counts: the machine may sleep."""
    for _ in range(round(timeout_s / TICK_S)):
        if probe():
            return True
        await asyncio.sleep(TICK_S)
    return bool(probe())


@dataclass
class Service:
    """One configuration's daemon, life after life."""

    directory: Path
    configured: dict[str, Any]
    clock: Callable[[], float]
    on_start: Callable[[int], None] = lambda pid: None
    ended: list[tuple[float, str]] = field(default_factory=list)
    fed: list[tuple[float, str]] = field(default_factory=list)
    journal: list[Line] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    pid: int = 0
    """0 while there is none."""

    def __post_init__(self) -> None:
        self.token = f"{TOKEN}={self.directory}"
        self.state = Path(self.configured["state_dir"])
        self._folders = {name: source["path"] for name, source in self.configured["sources"].items()}
        self._log = self.directory / "daemon.log"
        self._config = self.directory / "config.yaml"
        self._config.write_text(yaml.safe_dump(self.configured))
        self._wanted = True
        self._asked: str = ""  # "killed" or "stopped": by us, so that it is no news
        self._gone = asyncio.Event()
        self._may_start = asyncio.Event()
        self._may_start.set()

    async def keep(self) -> None:
        """Start it, and again whenever it ends, until `stop`."""
        while self._wanted:
            told = len(self.fed)
            process = await self._start()
            code = await process.wait()
            self.pid = 0
            asked, self._asked = self._asked, ""
            as_asked = {("killed", -signal.SIGKILL), ("stopped", 0)}
            if len(self.fed) == told:  # it had just begun, and does not listen to signals yet
                as_asked.add(("stopped", -signal.SIGTERM))
            self.fed.append((self.clock(), "gone"))
            if (asked, code) not in as_asked:
                how = f"exit code {code}" + (f" when it was to be {asked}" if asked else "")
                self.ended.append((self.clock(), how))
                await asyncio.sleep(RESTART_S)
            self._gone.set()
            await self._may_start.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        self._gone.clear()
        argv = [sys.executable, "-m", "edge_daemon", "run", "-c", str(self._config)]
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    TOKEN: str(self.directory),
                    "NOTIFY_SOCKET": str(self.directory / "notify"),
                    "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000),
                },
            )
        self.pid = process.pid
        self.on_start(process.pid)
        return process

    async def kill(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """SIGKILL; it starts again at once, or when that is done."""
        self._may_start.clear()
        await self._end("killed", signal.SIGKILL)
        meanwhile()
        self._may_start.set()

    async def stop(self, *, again: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
        """SIGTERM; it starts again if it shall."""
        self._wanted = again
        self._may_start.clear()
        await self._end("stopped", signal.SIGTERM)
        meanwhile()
        self._may_start.set()

    async def _end(self, asked: str, number: signal.Signals) -> None:
        pid = self.pid
        if not pid:
            return
        self._asked = asked
        self.signal(pid, number)
        if not await until(self._gone.is_set, STOP_S):
            self.ended.append((self.clock(), f"not {asked} within {STOP_S:.0f} s"))
            self.signal(pid, signal.SIGKILL)
            await self._gone.wait()

    @staticmethod
    def signal(pid: int, number: signal.Signals) -> None:
        """To a process that may have gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    # ---- what is seen of it ---------------------------------------------------------------------------

    def processes(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """It and all that descends from it, living or left behind: they have our token in their environment."""
        token = self.token.encode()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with suppress(OSError, psutil.Error):
                environment = Path(entry.path, "environ").read_bytes()
                if token in environment.split(b"\0"):
                    process = psutil.Process(int(entry.name))
                    yield process, process.cmdline()

    def child(self, module: str, source: str = "") -> psutil.Process | None:
        """One of its children that runs a module, of that source if one is named."""
        for process, argv in self.processes():
            if module in argv and (not source or f'"{self._folders[source]}"' in argv[-1]):
                return process
        return None

    async def watch(self) -> None:
        """Take samples, read the log and hear what systemd is told, for ever."""
        offset, rest = 0, b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(self.directory / "notify"))
            ear.setblocking(False)
            beside = [asyncio.create_task(self._listen(ear)), asyncio.create_task(self._sense_stalls())]
            try:
                while True:
                    offset, rest = self._read_log(offset, rest)
                    self.samples.append(self.sample())
                    await asyncio.sleep(SAMPLE_S)
            finally:
                for task in beside:
                    task.cancel()
                self._read_log(offset, rest)

    async def _listen(self, ear: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            words = (await loop.sock_recv(ear, 65536)).decode(errors="replace")
            self.fed += [(self.clock(), line) for line in words.splitlines() if not line.startswith("STATUS")]

    async def _sense_stalls(self) -> None:
        while True:
            before_s = self.clock()
            await asyncio.sleep(TICK_S)
            if (now_s := self.clock()) - before_s > STALL_S:
                self.stalls.append((before_s, now_s))

    def _read_log(self, offset: int, rest: bytes) -> tuple[int, bytes]:
        """New lines into the journal; where to go on, and what is no whole line yet."""
        if not self._log.exists():
            return offset, rest
        with self._log.open("rb") as file:
            file.seek(offset)
            data = file.read()
        *lines, last = (rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            found = _LINE.fullmatch(text)
            self.journal.append(Line(self.clock(), *(found.groups() if found else ("", text))))
        return offset + len(data), last

    def sample(self) -> Sample:
        """Everything that is its own, now."""
        anonymous_bytes = descriptors = workers = 0
        grabbers = dict.fromkeys(self._folders, 0)
        for process, argv in self.processes():
            workers += "edge_daemon.worker" in argv
            for source, folder in self._folders.items():
                grabbers[source] += "edge_daemon.grabber" in argv and f'"{folder}"' in argv[-1]
            if process.pid == self.pid:
                with suppress(psutil.Error, OSError):
                    descriptors = process.num_fds()
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    anonymous_bytes = int(status.partition("RssAnon:")[2].split()[0]) << 10
        return Sample(self.clock(), self.pid, anonymous_bytes, descriptors, workers, grabbers, self._state_bytes())

    def _state_bytes(self) -> int:
        total = 0
        for path in self.state.rglob("*"):
            with suppress(OSError):
                total += path.stat().st_size if path.name != FILLER and path.is_file() else 0
        return total
