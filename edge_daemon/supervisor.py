"""When to start a dead child again. A pure object: the clock is passed in, nothing is started here."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 300.0
GOOD_TIME_S = 600.0
"""A child that lived for so long has earned a fresh start."""
HOPELESS_DEATHS = 2
"""A child that never became ready and died so often for the same reason will not become ready."""


@dataclass
class RestartPolicy:
    """1 s, 2 s, 4 s … 5 min; for ever if the child ever worked."""

    deaths: int = 0
    """In a row, without a good time between them."""
    last_reason: str = ""
    _ready_at_s: float | None = None
    _ever_ready: bool = False
    _same_reason: int = field(default=0)

    def ready(self, now_s: float) -> None:
        """The child says that it works."""
        self._ready_at_s = now_s
        self._ever_ready = True

    def died(self, reason: str, now_s: float) -> float | None:
        """Seconds to wait before the next start, or None when trying again is hopeless."""
        if self._ready_at_s is not None and now_s - self._ready_at_s >= GOOD_TIME_S:
            self.deaths = 0
        self._ready_at_s = None
        self._same_reason = self._same_reason + 1 if reason == self.last_reason else 1
        self.last_reason = reason
        self.deaths += 1
        if not self._ever_ready and self._same_reason >= HOPELESS_DEATHS:
            return None
        return float(min(FIRST_DELAY_S * 2 ** min(self.deaths - 1, 16), LONGEST_DELAY_S))
