"""The stages of the memory watchdog: what is given up when memory goes, in which order, and taken back when it returns.

Pure: readings and times are passed in. Down, one stage a look, and straight to the end in an emergency; up, one stage
after each calm time. The worker may have `memory.budget` of the moment; what it could do within that is `memory.fit`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

from edge_daemon import memory
from edge_daemon.errors import BudgetError
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES, Budget, Fit, Needs
from edge_daemon.readings import Reading
from edge_daemon.units import MIB

STEP_S = 1.0
"""Between two steps down: long enough to see what the last one gave."""
CALM_S = 3.0
"""Between two steps up: from `unloaded` to captions there are three, and results shall be there within 30 s of memory,
the worker's start included."""
LONGEST_CALM_S = 60.0
RELAPSE_S = 60.0
"""A step down so soon after a step up doubles the calm time: a board whose memory comes and goes must not load a model
from its SD card again and again."""
MARGIN_BYTES = RESERVE_BYTES // 4
"""So much has to be missing before a step down: a worker that was started where it just fits must not be paused because
a grabber takes 20 MiB more. The reserves have room for it, and needs are upper estimates. So much more than is needed,
and a step up comes after one calm time; with less it takes PATIENCE of them."""
PATIENCE = 2
SOME_PERCENT, FULL_PERCENT = 20.0, 5.0
"""Memory pressure above which a board is short of memory, whatever MemAvailable says. 20 % is what Android's low memory
killer takes for a device with little memory (lmkd, DEF_PARTIAL_STALL_LOWRAM, 200 ms of 1000). Of `full`, in which
nothing at all goes on, it bears 70 % before it kills; we only ask for less, and do so at a twentieth."""
EMERGENCY = 2
"""Less than this part of a reserve left is an emergency. earlyoom as well asks at one mark (10 %) and kills at half of
it."""
TRIFLE_POSITIONS = 16
"""A shorter cap than this much is not worth a message: a few MiB, which the reserve has."""
GAIN_POSITIONS = 32
"""A longer cap is, from about 25 words on."""


class Stage(IntEnum):
    """In this order; `name` in small letters is what health says."""

    OK = 0
    CAPPED = 1
    """The KV cache is shorter than the model's context, or than the owner wants it."""
    RELEASED = 2
    """Freed memory is handed back after every picture, the vision encoder with it."""
    PAUSED = 3
    """No caption begins."""
    RECYCLED = 4
    """The worker has ended; a fresh one starts if it fits."""
    UNLOADED = 5
    """There is no worker until memory returns."""


IN_WORDS = {
    Stage.OK: "enough memory: captions of full length",
    Stage.CAPPED: "memory is low: the KV cache is capped, long answers end early",
    Stage.RELEASED: "memory is low: caches are given back after every picture, which then takes longer",
    Stage.PAUSED: "not enough free memory to make captions: pictures wait",
    Stage.RECYCLED: "not enough free memory to make captions: the model is loaded again if it fits",
    Stage.UNLOADED: "not enough free memory for the model: it is unloaded until there is more; pictures wait",
}


@dataclass(frozen=True)
class View:
    """What is known at one look."""

    reading: Reading
    limit: Budget
    """What the worker may have."""
    needs: Needs
    wanted: int | None
    """KV positions that the owner wants at most."""
    positions: int
    """KV positions that hold now."""
    busy: bool = False
    """Whether a caption is being made."""
    less: Needs | None = None
    """What a fresh worker could do with, where that is less."""

    @property
    def there(self) -> bool:
        """Whether there is a worker."""
        return self.reading.worker_bytes is not None

    @property
    def full_positions(self) -> int:
        """As many as could ever be."""
        most = self.needs.max_positions
        return max(min(self.wanted or most, most), self.needs.smallest_positions)

    @property
    def strained(self) -> bool:
        """Whether processes wait for memory."""
        pressure = self.reading.pressure
        return pressure is not None and (pressure.some > SOME_PERCENT or pressure.full > FULL_PERCENT)

    @property
    def emergency(self) -> bool:
        """Whether the kernel may kill at any moment, or let nobody go on."""
        level = self.reading.level
        in_cgroup = level is not None and level.room_bytes < CGROUP_RESERVE_BYTES // EMERGENCY
        return in_cgroup or self.reading.available_bytes < RESERVE_BYTES // EMERGENCY

    def fit(self, margin_bytes: int = 0) -> Fit | BudgetError:
        """How the worker would run within what it may have, less a margin; or why it cannot."""
        limit = replace(self.limit, limit_bytes=max(0, self.limit.limit_bytes - margin_bytes))
        try:
            return memory.fit(limit, self.needs, self.wanted)
        except BudgetError as error:
            return error

    @property
    def fresh_fits(self) -> bool:
        """Whether a fresh worker could caption within what this one can only wait in."""
        if self.less is None or self.busy or self.strained or self.stage() != Stage.PAUSED:
            return False
        return isinstance(replace(self, needs=self.less).fit(MARGIN_BYTES), Fit)

    def stage(self, margin_bytes: int = 0) -> Stage:
        """The stage that sizes alone call for, with `margin_bytes` to spare.

        A margin below 0 does not let an idle worker use up a reserve.
        """
        found = self.fit(margin_bytes)
        if isinstance(found, Fit):
            if found.releases_vision:
                return Stage.RELEASED
            return Stage.OK if found.positions >= self.full_positions else Stage.CAPPED
        held_bytes = self.reading.worker_bytes
        keeps = held_bytes is not None and held_bytes + max(0, margin_bytes) <= self.limit.limit_bytes
        return Stage.PAUSED if keeps else Stage.UNLOADED

    def allowed(self, stage: Stage, margin_bytes: int = 0) -> int:
        """KV positions of a stage."""
        smallest = self.needs.smallest_positions
        if stage == Stage.OK:
            return self.full_positions
        if stage >= Stage.PAUSED:
            return smallest
        needs = replace(self.needs, releases_vision=self.needs.releases_vision or stage == Stage.RELEASED)
        limit = replace(self.limit, limit_bytes=max(0, self.limit.limit_bytes - margin_bytes))
        try:
            positions = memory.kv_positions(limit, needs, self.wanted)
        except BudgetError:
            return smallest
        return min(positions, self.needs.useful_positions) if self.strained else positions


@dataclass(frozen=True)
class Plan:
    """What is to hold until the next look."""

    stage: Stage
    positions: int
    releases_vision: bool
    worker: Literal["keep", "start", "end", "end at once"]
    """`end` between two captions."""
    reason: str
    """Why this stage, with numbers."""


class Stages:
    """Where we are. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.reason = ""
        self.since_s = 0.0
        self._calm_s = CALM_S
        self._calm_since_s: float | None = None
        self._raised_at_s: float | None = None
        self._to_end = False
        """Whether a worker that was there when it was to be recycled is still there."""

    def look(self, view: View, now_s: float) -> Plan:
        """Decide; to be called about once a second, and more often where memory is short."""
        self._to_end &= view.there
        after = self._next(view, now_s)
        if after != self.stage:
            self._enter(after, view, now_s)
        return Plan(after, self._positions(view, now_s), after >= Stage.RELEASED, self._worker(view), self.reason)

    def _next(self, view: View, now_s: float) -> Stage:
        """The stage from now on."""
        target, before = _target(view, self.stage), self.stage
        if before is None:  # a worker was started within the limits of that moment
            return min(target, Stage.RELEASED) if view.there else target
        if view.emergency and view.reading.worker_bytes:
            return Stage.UNLOADED
        if target > before:
            soon = now_s - self.since_s < STEP_S
            waits = soon or self._to_end or (before == Stage.PAUSED and view.busy)
            return before if waits else Stage(before + 1)
        if before == Stage.PAUSED and now_s - self.since_s >= LONGEST_CALM_S and view.fresh_fits:
            return Stage.RECYCLED  # rather than wait on: what is short for so long may stay so
        better = target < before
        longer = view.allowed(before, MARGIN_BYTES) >= view.positions + GAIN_POSITIONS
        if view.strained or self._to_end or not (better or longer):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        roomy = view.stage(MARGIN_BYTES) < before
        return Stage(before - 1) if better and self._calm(now_s, 1 if roomy else PATIENCE) else before

    def _calm(self, now_s: float, patience: int = 1) -> bool:
        """Whether for long enough there has been more than this stage needs."""
        return self._calm_since_s is not None and now_s - self._calm_since_s >= patience * self._calm_s

    def _enter(self, stage: Stage, view: View, now_s: float) -> None:
        """Note when and why; a relapse makes us more careful."""
        if self.stage is not None and stage < self.stage:
            self._raised_at_s = now_s
        elif self._raised_at_s is not None:
            relapse = now_s - self._raised_at_s < RELAPSE_S
            self._calm_s = min(2 * self._calm_s, LONGEST_CALM_S) if relapse else CALM_S
            self._raised_at_s = None
        self._to_end = stage == Stage.RECYCLED and self.stage == Stage.PAUSED and view.there
        self.stage, self.since_s, self._calm_since_s = stage, now_s, None
        self.reason = _why(view)

    def _positions(self, view: View, now_s: float) -> int:
        """The cap: shorter at once, longer after a calm time and where it is worthwhile."""
        assert self.stage is not None
        allowed, roomy = view.allowed(self.stage), view.allowed(self.stage, MARGIN_BYTES)
        if self.stage == Stage.OK or allowed == view.needs.smallest_positions:
            return allowed
        if allowed <= view.positions - TRIFLE_POSITIONS:
            return allowed
        return roomy if self._calm(now_s) and roomy >= view.positions + GAIN_POSITIONS else view.positions

    def _worker(self, view: View) -> Literal["keep", "start", "end", "end at once"]:
        """What is to be done with it."""
        if self.stage == Stage.UNLOADED and view.there:
            return "end at once" if view.emergency else "end"
        if self.stage == Stage.RECYCLED:
            if self._to_end:
                return "end"
            if not view.there and isinstance(view.fit(), Fit):
                return "start"
        return "keep"


def _target(view: View, before: Stage | None) -> Stage:
    """Where sizes and pressure would have it. Pressure alone never unloads a model: reading it again costs more."""
    by_size = view.stage()
    if before is not None and by_size > before:
        by_size = max(before, view.stage(-MARGIN_BYTES))
    return max(by_size, Stage(min(by_size + 1, Stage.PAUSED))) if view.strained else by_size


def _why(view: View) -> str:
    """The numbers of a moment."""
    reading = view.reading
    held = (
        "no model is loaded" if reading.worker_bytes is None else f"the model uses {reading.worker_bytes / MIB:.0f} MiB"
    )
    words = [f"{held}; it may use {view.limit.limit_bytes / MIB:.0f} ({view.limit.reason})"]
    words.append(f"a short caption needs {view.needs.at(view.needs.smallest_positions) / MIB:.0f} at its peak")
    words.append(f"{reading.available_bytes / MIB:.0f} MiB are available on the board")
    if reading.level is not None:
        words.append(f"{reading.level.room_bytes / MIB:.0f} of the cgroup's {reading.level.limit_bytes / MIB:.0f}")
    if view.strained and reading.pressure is not None:
        words.append(f"processes waited for memory {reading.pressure.some:.0f} % of the last 10 s")
    return "; ".join(words)
