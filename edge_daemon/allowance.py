"""What a worker may have of the memory: what the limits of the moment say, and less after one was killed for it. Pure.

Times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_daemon.memory import Budget, Needs, budget, limits_of, most_bytes
from edge_daemon.readings import Reading
from edge_daemon.restart_policy import GOOD_TIME_S
from edge_daemon.units import MIB

OOM_LESS = 0.9
"""The share of a killed worker's memory that the next one may have, when the kernel killed it for lack of memory."""
SPREAD_BYTES = 8 * MIB
"""More than the memory of two workers' programs differs. A difference of one MiB was seen, and the model then waited
minutes for that MiB."""


@dataclass
class Allowance:
    """The memory budget of each successive worker, lowered after one was killed."""

    configured_bytes: int | None
    """What the owner lets it have at most."""
    _less: Budget | None = None
    _less_since_s: float = 0.0

    def budget(self, reading: Reading, now_s: float) -> Budget:
        """What a worker may have at this moment."""
        now = budget(limits_of(reading, self.configured_bytes))
        if self._less is None or now_s - self._less_since_s > GOOD_TIME_S:
            return now
        return min(now, self._less, key=lambda either: either.limit_bytes)

    def most_bytes(self, reading: Reading, board_bytes: int, own_bytes: int) -> int:
        """What a worker could have, were it alone here with this process, which has `own_bytes`."""
        return most_bytes(limits_of(reading, self.configured_bytes), board_bytes, own_bytes)

    def killed(self, worker_bytes: int, needs: Needs, now_s: float) -> None:
        """One was killed for want of memory: for a while the next ones have less, but what the smallest takes."""
        limit_bytes = max(int(OOM_LESS * worker_bytes), needs.least_bytes + SPREAD_BYTES)
        self._less, self._less_since_s = Budget(limit_bytes, "the kernel killed a worker that used more"), now_s
