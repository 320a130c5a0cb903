"""What was seen during a run: plain data, which the checks judge. Times are seconds since the harness began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Expected:
    """A result that must come: one task of one good picture that was put, whole, into a folder."""

    source: str
    name: str
    truth: str = ""
    """The caption, where it is known."""


@dataclass(frozen=True)
class Event:
    """A result as it passed on its way to the broker."""

    at_s: float
    id: str
    source: str
    task: str
    seq: int
    file: str
    words: str
    finish_reason: str
    replayed: bool
    body: str
    """A digest of everything in it but `replayed`."""


@dataclass(frozen=True)
class Sample:
    """The processes of the daemon and what they hold, at one moment."""

    at_s: float
    pid: int
    """The daemon's; 0 while there is none."""
    anonymous_bytes: int
    """What it alone holds in memory: without the program's own pages, which come and go with memory pressure."""
    descriptors: int
    workers: int
    grabbers: Mapping[str, int]
    """By source."""
    state_bytes: int
    """The files in the state directory."""


@dataclass(frozen=True)
class Line:
    """One line of the journal."""

    at_s: float
    level: str
    """As the daemon wrote it; empty for what has none, such as a traceback."""
    text: str


@dataclass(frozen=True)
class Done:
    """A deed that was done."""

    kind: str
    at_s: float
    until_s: float
    words: str

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} – {self.until_s:7.1f} s  {self.kind}: {self.words}"


@dataclass(frozen=True)
class Evidence:
    """Everything."""

    sources: tuple[str, ...] = ()
    expected: Mapping[str, Expected] = field(default_factory=dict)
    """By the id of the result."""
    hostile: Mapping[str, str] = field(default_factory=dict)
    """What the journal must say of each bad file, and its name."""
    published: tuple[Event, ...] = ()
    confirmed: tuple[Event, ...] = ()
    heard: frozenset[str] = frozenset()
    """Ids that the subscriber got."""
    deaf: tuple[tuple[float, float], ...] = ()
    """When the broker died, and when the subscriber was its subscriber again."""
    malformed: tuple[str, ...] = ()
    retained: Mapping[str, str] = field(default_factory=dict)
    """What a newcomer heard before the last stop, by topic below the base."""
    retained_after: Mapping[str, str] = field(default_factory=dict)
    """And after it."""
    samples: tuple[Sample, ...] = ()
    descriptors_at_first: int = 0
    descriptors_at_last: int = 0
    left: tuple[str, ...] = ()
    """Processes that were there after a clean stop."""
    ended: tuple[tuple[float, str], ...] = ()
    """When the daemon ended though nobody had asked it to, or otherwise than it was asked to."""
    journal: tuple[Line, ...] = ()
    fed: tuple[tuple[float, str], ...] = ()
    """What the daemon told systemd, and when."""
    deeds: tuple[Done, ...] = ()
    forgotten: tuple[tuple[float, float], ...] = ()
    """From when until when results were made that the daemon could not remember: the disk was full when it ended, or
    its outbox was damaged. Those come once more, with the same ids and new numbers."""
    stalls: tuple[tuple[float, float], ...] = ()
    """When the harness itself did not run, because the machine was busy or asleep: the daemon did not run either."""
