"""Findings as people read them: a line each, and below it what is to be done. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable

from edge_daemon.doctor.finding import Finding, State

MARKS: dict[State, str] = {"ok": "✓", "warning": "!", "problem": "✗", "skipped": "–"}
PLAIN: dict[State, str] = {"ok": "ok", "warning": "! ", "problem": "X ", "skipped": "- "}
"""For a terminal that knows no others."""
COUNTED: tuple[State, ...] = ("problem", "warning")
ID_WIDTH = 15
INDENT = " " * 4


def in_words(finding: Finding, width: int = 100, marks: dict[State, str] = MARKS) -> str:
    """One finding."""
    lines = _wrapped(f"{marks[finding.state]} {finding.id:<{ID_WIDTH}} ", finding.what, width)
    if finding.state in ("warning", "problem"):
        lines += _wrapped(INDENT, finding.meaning, width) if finding.meaning else []
        lines += [f"{INDENT}→ {finding.command}" if marks is MARKS else f"{INDENT}-> {finding.command}"] * bool(
            finding.command
        )
    return "\n".join(lines)


def _wrapped(first: str, text: str, width: int) -> list[str]:
    """Wrapped; lines of their own, paths, addresses and topics stay."""
    wrapped: list[str] = []
    for line in text.splitlines() or [""]:
        indent = " " * len(first) if wrapped else first
        wrapped += textwrap.wrap(
            line,
            width,
            initial_indent=indent,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [indent.rstrip()]
    return wrapped


def summary(findings: Iterable[Finding]) -> str:
    """The last line."""
    counts = Counter(finding.state for finding in findings)
    told = [f"{counts[state]} {state}{'s' * (counts[state] != 1)}" for state in COUNTED]
    skipped = f", {counts['skipped']} not checked" if counts["skipped"] else ""
    return f"{', '.join(told)}, {counts['ok']} ok{skipped}"


def marks_for(encoding: str | None) -> dict[State, str]:
    """What can be shown."""
    try:
        "✓✗–→".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return MARKS
