"""Things of our own that can be filled and starved without harm to the machine: a small disk, a small memory."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

DISK_MIB = 32
MEMORY_BYTES = 640 << 20
"""The daemon, its two grabbers and the worker of the demo model take about 350 MiB."""
INSIDE = "EDGE_DAEMON_CHAOS_INSIDE"
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
PAGE_BYTES = 4096


class Missing(Exception):
    """What the machine does not let us do, and why."""


def enter(argv: list[str]) -> None:
    """Run this program again in namespaces of its own: mounts and processes end with it. Returns where that is denied.

    It is then the first process there, so that whatever it started is killed when it ends, however it ends.
    """
    if os.environ.get(INSIDE):
        return
    options = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    options += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    with suppress(FileNotFoundError):
        if subprocess.run(["unshare", *options, "true"], capture_output=True, check=False).returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp("unshare", ["unshare", *options, "--", sys.executable, "-m", "tests.chaos", *argv])


class Disk:
    """A tmpfs in the place of a directory."""

    def __init__(self, directory: Path, filler: str) -> None:
        """Mount it. Raises Missing."""
        if not os.environ.get(INSIDE):
            raise Missing("a small disk needs a mount namespace: root, or user namespaces")
        argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "chaos", str(directory)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"a small disk cannot be mounted: {done.stderr.strip()}")
        self._file = directory / filler

    def fill(self) -> None:
        """Leave no byte."""
        with self._file.open("wb", buffering=0) as file:
            for size in (1 << 20, PAGE_BYTES):
                with suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def close(self) -> None:
        """Unmount it, so that the directory can be removed."""
        subprocess.run(["umount", "--lazy", str(self._file.parent)], check=False)

    def empty(self) -> None:
        """Give all of it back."""
        self._file.unlink(missing_ok=True)


class Memory:
    """A memory cgroup below ours."""

    def __init__(self, name: str) -> None:
        """Make it. Raises Missing."""
        mine = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        first = "memory" in mine
        self._path = (V1 if first else V2) / mine["memory" if first else ""].lstrip("/") / f"chaos-{name}"
        self._usage = self._path / ("memory.usage_in_bytes" if first else "memory.current")
        try:
            self._path.mkdir()
            (self._path / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(MEMORY_BYTES))
        except OSError as error:
            self.remove()
            raise Missing(f"a small memory needs a memory cgroup of our own: {error}") from error

    def take_in(self, pid: int) -> None:
        """A process, and all that it will start."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def left_bytes(self) -> int:
        """What can still be taken, caches not counted."""
        return MEMORY_BYTES - int(self._usage.read_text())

    def oom_kills(self) -> int:
        """How often the kernel has killed in here. Raises OSError or KeyError where it does not tell."""
        old = self._path / "memory.oom_control"
        told = (old if old.exists() else self._path / "memory.events").read_text()
        return int(dict(line.split() for line in told.splitlines())["oom_kill"])

    def remove(self) -> None:
        """When all its processes have gone."""
        with suppress(OSError):
            self._path.rmdir()
