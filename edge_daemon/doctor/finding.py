"""What the doctor says: one finding a line, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_daemon.exit_codes import CONFIG, OK, UNAVAILABLE

State = Literal["ok", "warning", "problem", "skipped"]
CONFIG_ID = "config"


@dataclass(frozen=True)
class Fix:
    """Something that `--fix` may do."""

    will: str
    """What it does, as the end of the sentence "This will …"."""
    undo: str
    """How it is undone, or that it cannot be."""
    do: Callable[[], str]
    """Does it and says what was done. Raises OSError or an error of ours."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    id: str
    """A word, with a point before the part of a group: `broker.login`."""
    state: State
    what: str
    meaning: str = ""
    """Why it matters; for what is not ok."""
    command: str = ""
    """What mends it."""
    fix: Fix | None = field(default=None, compare=False)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        fix = None if self.fix is None else {"will": self.fix.will, "undo": self.fix.undo}
        return {
            "id": self.id,
            "state": self.state,
            "what": self.what,
            "meaning": self.meaning,
            "command": self.command,
            "fix": fix,
        }


def ok(id: str, what: str) -> Finding:
    """All is well."""
    return Finding(id, "ok", what)


def warning(id: str, what: str, meaning: str, command: str = "", fix: Fix | None = None) -> Finding:
    """It works, but."""
    return Finding(id, "warning", what, meaning, command, fix)


def problem(id: str, what: str, meaning: str, command: str = "", fix: Fix | None = None) -> Finding:
    """The service cannot do its work like this."""
    return Finding(id, "problem", what, meaning, command, fix)


def skipped(id: str, why: str) -> Finding:
    """Not looked at, and why."""
    return Finding(id, "skipped", why)


def exit_code(findings: Iterable[Finding]) -> int:
    """78 when the configuration is wrong, 69 for any other problem, else 0."""
    wrong = {finding.id for finding in findings if finding.state == "problem"}
    if CONFIG_ID in wrong:
        return CONFIG
    return UNAVAILABLE if wrong else OK
