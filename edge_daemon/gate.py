"""Is this frame of a camera worth a caption? Pure: the clock is passed in, and only thumbnails are seen.

A frame that passes is a candidate. Until a result of one is published, all that are worth it pass, and whoever keeps
the newest of them keeps the right one. What has changed during the cooldown passes after it, if it is still there;
what came and went in between is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from edge_daemon.gate_config import GateConfig
from edge_daemon.scene_change import Scene
from edge_daemon.schedule import Span, covered

Skipped = Literal["interval", "unchanged", "light", "cooldown", "schedule", "quiet_hours"]
"""Why a frame does not pass: it came too soon after the one that was looked at before; the same scene as in the last
caption; the same in another light; too soon after the last caption; by the clock."""
Passed = Literal["first", "change", "interval", "heartbeat"]
"""Why one does: there is no caption yet; another scene than in the last caption, or what that one said has to be
seen once more; every frame that is looked at is wanted; the last caption is old."""
_EARLY = 0.1
"""A frame may come this share of the interval before its time: cameras are not punctual."""


@dataclass(frozen=True)
class Pass:
    """A frame that is worth a caption."""

    passes: Literal[True] = field(default=True, init=False)
    why: Passed


@dataclass(frozen=True)
class Skip:
    """One that is not."""

    passes: Literal[False] = field(default=False, init=False)
    why: Skipped


Verdict = Pass | Skip


class Gate:
    """The gate of one camera."""

    def __init__(self, rules: GateConfig, interval_s: float) -> None:
        self._rules, self._interval_s = rules, interval_s
        self._spans = _spans(rules)
        self._scene = Scene(rules.cells, rules.sensitivity)
        self._due_s: float | None = None
        self._published_s: float | None = None
        self._doubted = False

    def change_rules(self, rules: GateConfig, interval_s: float) -> None:
        """Judge by other rules from now on; what is known of the scene stays known."""
        if self._due_s is not None:
            self._due_s += interval_s - self._interval_s
        self._rules, self._interval_s = rules, interval_s
        self._spans = _spans(rules)
        self._scene.change_rules(rules.cells, rules.sensitivity)

    def judge(self, thumbnail: bytes, now_s: float, local: datetime) -> Verdict:
        """What becomes of a frame; `now_s` is monotonic, `local` is what the clock on the wall shows."""
        if not self._is_due(now_s):
            return Skip("interval")
        schedule, quiet_hours = self._spans
        if covered(quiet_hours, local):
            return Skip("quiet_hours")
        if schedule and not covered(schedule, local):
            return Skip("schedule")
        since_s = None if self._published_s is None else now_s - self._published_s
        cooling = self.is_cooling(now_s)
        if not self._rules.change:
            return Skip("cooldown") if cooling else Pass("first" if since_s is None else "interval")
        seen = self._scene.look(thumbnail, now_s)
        if seen == "change" or self._doubted:
            return Skip("cooldown") if cooling else Pass("first" if since_s is None else "change")
        if since_s is not None and since_s >= self._rules.heartbeat_s > 0 and not cooling:
            return Pass("heartbeat")
        return Skip(seen)

    def is_cooling(self, now_s: float) -> bool:
        """Whether the last caption is so fresh that there is no other; nor of a frame that passed before it was out."""
        return self._published_s is not None and now_s - self._published_s < self._rules.cooldown_s

    def overtaken(self, thumbnail: bytes, passed_s: float, now_s: float) -> Skipped | None:
        """Why a frame that passed is not worth a caption any more; None if it still is.

        What it was compared with is not the last caption where another frame was published since.
        """
        if self.is_cooling(now_s):
            return "cooldown"
        is_fresh = self._published_s is None or passed_s > self._published_s
        if is_fresh or self._doubted or not self._rules.change:
            return None
        seen = self._scene.look_back(thumbnail)
        return None if seen == "change" else seen

    def published(self, thumbnail: bytes, now_s: float, doubted: bool = False) -> None:
        """A result of this frame went out, whoever asked for it: what comes is compared with it.

        `doubted`: it said something that is believed when another picture says so as well, which need not differ.
        """
        self._scene.refer(thumbnail)
        self._published_s, self._doubted = now_s, doubted

    def _is_due(self, now_s: float) -> bool:
        """Whether the interval is over. Its times are fixed, so that early frames do not make it shorter."""
        due_s = now_s if self._due_s is None else self._due_s
        if now_s < due_s - _EARLY * self._interval_s:
            return False
        late = now_s > due_s + self._interval_s
        self._due_s = (now_s if late else due_s) + self._interval_s
        return True


def _spans(rules: GateConfig) -> tuple[list[Span], list[Span]]:
    """When it is open, and when it is shut nevertheless."""
    return [entry.span for entry in rules.schedule], [entry.span for entry in rules.quiet_hours]
