"""What happens when: drawn from a seed, the same on every machine. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

SOURCES = ("porch", "yard")


@dataclass(frozen=True)
class Kind:
    """Something that can be done to the daemon or around it."""

    name: str
    part: str
    """What it is done to; two deeds on one part do not overlap. `grabber` and `folder` are parts of a source."""
    shortest_s: float = 0.0
    longest_s: float = 0.0
    ends_daemon: bool = False
    ends_child: bool = False
    """The daemon starts the part again after a pause that doubles with every death."""
    once: bool = False
    """It may cost all that was done so far, to be done again."""


@dataclass(frozen=True)
class Deed:
    """One of them."""

    at_s: float
    """Since the daemon was ready for the first time."""
    kind: str
    part: str
    for_s: float
    """Until it is mended; 0 for a moment."""
    source: str
    """Empty where it is not about one source."""
    dice: int
    """For what else is drawn when it is done."""

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind}{f' of {self.source}' if self.source else ''}{lasting}"


KINDS = (
    Kind("kill the worker", "worker", ends_child=True),
    Kind("kill the grabber", "grabber", ends_child=True),
    Kind("kill the daemon", "daemon", ends_daemon=True),
    Kind("kill the broker", "broker", 0.3, 4.0),
    Kind("freeze the worker", "worker", 0.5, 3.0),
    Kind("freeze the worker too long", "worker", 8.0, 11.0, ends_child=True),
    Kind("freeze the grabber", "grabber", 0.5, 5.0),
    Kind("freeze the grabber too long", "grabber", 63.0, 70.0, ends_child=True),
    Kind("freeze the broker", "broker", 0.5, 3.0),
    Kind("freeze the broker too long", "broker", 9.0, 13.0),
    Kind("freeze the daemon", "daemon", 0.5, 5.0),
    Kind("starve of memory", "worker", 5.0, 10.0, ends_child=True),
    Kind("starve of processor time", "processor", 4.0, 10.0),
    Kind("fill the disk", "disk", 3.0, 9.0),
    Kind("refuse connections", "network", 1.0, 8.0),
    Kind("hold the network", "network", 1.0, 12.0),
    Kind("hold the answers", "network", 2.0, 8.0),
    Kind("delay the network", "network", 3.0, 10.0),
    Kind("break connections again and again", "network", 8.0, 30.0),
    Kind("tear a message", "network"),
    Kind("reset connections", "network"),
    Kind("make the broker forget", "broker", 0.3, 2.0),
    Kind("stop and start the daemon", "daemon", ends_daemon=True),
    Kind("damage the outbox", "daemon", ends_daemon=True, once=True),
    Kind("move the folder away", "folder", 1.0, 6.0),
)
LONG_S = 60.0
"""A deed that lasts longer has no place in a short run."""
SHORT_RUN_S = 360.0
LIVES_FROM = 0.6
"""After this share of the run no deed ends the daemon: leaks of memory show only in a long life."""
DEATHS = 4
"""At most so many of one child within..."""
DEATHS_IN_S = 900.0
"""...this time: the pauses before its next start add up to 15 s, and begin anew after 10 minutes of good life."""
QUIET_EVERY_S, QUIET_S = 45.0, 9.0
"""The daemon is left alone so often for so long: what was broken must mend by itself also between deeds."""
GAP_S, LONG_RUN_GAP_S = 4.0, 8.0
"""Between the beginnings of two deeds, on average."""


@dataclass
class _Memory:
    """What was planned so far, as far as the next deed depends on it."""

    free_from_s: dict[str, float] = field(default_factory=dict)
    deaths_s: dict[str, list[float]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def may(self, kind: Kind, part: str, at_s: float, run_s: float) -> bool:
        """Whether it has its place here."""
        if at_s < self.free_from_s.get(part, 0.0) or (kind.once and kind.name in self.done):
            return False
        if kind.shortest_s > LONG_S and (run_s < SHORT_RUN_S or at_s + kind.longest_s > run_s):
            return False
        if kind.ends_daemon and at_s > LIVES_FROM * run_s:
            return False
        recent = [s for s in self.deaths_s.get(part, []) if at_s - s < DEATHS_IN_S]
        return not kind.ends_child or len(recent) < DEATHS

    def note(self, kind: Kind, part: str, at_s: float, for_s: float) -> None:
        """It is done."""
        self.free_from_s[part] = at_s + for_s + 1.0
        self.done.add(kind.name)
        if kind.ends_child:
            self.deaths_s.setdefault(part, []).append(at_s)
        if kind.ends_daemon:
            self.deaths_s.clear()  # the next daemon counts anew


def plan(dice: random.Random, run_s: float, kinds: Sequence[Kind] = KINDS) -> list[Deed]:
    """Deeds in their order, for so many seconds; every kind that has a place comes up before one comes up again."""
    gap_s = GAP_S if run_s < SHORT_RUN_S else LONG_RUN_GAP_S
    memory, deeds, deck = _Memory(), [], list[Kind]()
    at_s, quiet_at_s = 2.0, QUIET_EVERY_S
    while at_s < run_s:
        if not deck:
            deck = dice.sample(kinds, len(kinds))
        source = dice.choice(SOURCES)
        for kind in deck:
            part = f"{kind.part} {source}" if kind.part in ("grabber", "folder") else kind.part
            if memory.may(kind, part, at_s, run_s):
                for_s = round(dice.uniform(kind.shortest_s, kind.longest_s), 1)
                memory.note(kind, part, at_s, for_s)
                of_source = source if part != kind.part else ""
                deeds.append(Deed(round(at_s, 1), kind.name, part, for_s, of_source, dice.getrandbits(32)))
                deck.remove(kind)
                break
        else:
            deck = []  # what is left has no place now
        at_s += min(max(dice.expovariate(1 / gap_s), 0.3), 3 * gap_s)
        if at_s > quiet_at_s:
            at_s, quiet_at_s = at_s + QUIET_S, at_s + QUIET_S + QUIET_EVERY_S
    return deeds
