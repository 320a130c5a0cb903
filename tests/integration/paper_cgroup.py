"""A memory cgroup of paper: a test says what its limit is and what is taken of it; the worker in it is real."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from edge_daemon.readings import Files


class PaperFiles(Files):
    """In a cgroup of this test's own. Make it with `PaperFiles.made`."""

    @classmethod
    def made(cls, root: Path, limit_bytes: int, used_bytes: int) -> Self:
        """Below `root`, as version 1 has it."""
        files = cls(cgroups=root)
        files._level.mkdir(parents=True)
        (files._level / "memory.limit_in_bytes").write_text(str(limit_bytes))
        files.use(used_bytes)
        return files

    def use(self, used_bytes: int) -> None:
        """So much is taken from now on."""
        (self._level / "memory.usage_in_bytes").write_text(str(used_bytes))

    @property
    def membership(self) -> str:
        return "4:memory:/a"

    @property
    def _level(self) -> Path:
        return self.cgroups / "memory/a"
