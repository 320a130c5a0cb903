"""How often something may happen: so many commands, so many lines of a log. Pure: the time is passed in. A leaf."""

from __future__ import annotations


class TokenBucket:
    """So many at once, and so many a minute after that."""

    def __init__(self, burst: int, per_minute: float) -> None:
        """`burst` at least 1, `per_minute` above 0; full at the beginning."""
        self._burst = burst
        self._per_s = per_minute / 60
        self._tokens = float(burst)
        self._last_s: float | None = None

    def take(self, now_s: float) -> float:
        """0.0 if one more is allowed now, else the seconds until it is; `now_s` is monotonic."""
        if self._last_s is not None:
            passed_s = max(0.0, now_s - self._last_s)
            self._tokens = min(float(self._burst), self._tokens + passed_s * self._per_s)
        self._last_s = now_s
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s
