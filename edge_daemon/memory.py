"""How much memory the worker may have, and how many KV positions follow from it. Pure, but for `read_limits`.

Swap never counts: on an SD card it makes a board unusable long before it makes it work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from edge_daemon.cgroup import Level
from edge_daemon.errors import BudgetError
from edge_daemon.readings import Files, Reading
from edge_daemon.units import MIB

RESERVE_BYTES = 128 * MIB
"""Left to the rest of the system: page cache, sshd, the grabbers' short peaks."""
CGROUP_RESERVE_BYTES = 64 * MIB
"""Left in the service's cgroup, where only its own processes are: the daemon grows by some MiB with the sources, and a
grabber by 20 to 50 while it decodes a picture of 12 million pixels."""
SMALLEST_ANSWER_POSITIONS = 48
"""Fewest positions behind the picture that are still useful: a prompt of a dozen tokens and a short caption."""
USEFUL_POSITIONS = 256
"""Behind the picture: a question and a long answer. Also the margin that keeps us from choosing what no longer fits a
moment later, when the worker looks."""


@dataclass(frozen=True)
class Limits:
    """What was read or configured; None where there is no such limit."""

    configured_bytes: int | None
    cgroup: Level | None
    available_bytes: int
    worker_bytes: int = 0
    """What the worker holds already: of that, nothing has to be free."""


@dataclass(frozen=True)
class Budget:
    """The most that the worker may use, and which limit said so."""

    limit_bytes: int
    reason: str


@dataclass(frozen=True)
class Needs:
    """What the model takes, whatever the length of the cache."""

    runtime_bytes: int
    """Resident memory of the worker before any weight is touched."""
    vision_bytes: int
    """Weights that look at the picture, and can be given back when they have."""
    text_bytes: int
    """Weights that write; and all others that are always there."""
    vision_activation_bytes: int
    """The peak of the work space while the picture is looked at."""
    text_activation_bytes: int
    """The same while it goes through the decoder."""
    bytes_per_position: int
    prefix_positions: int
    """BOS and the picture."""
    max_positions: int
    """The model's context."""
    releases_vision: bool = False
    """Whether the vision encoder is given back after every picture."""

    @property
    def stage_bytes(self) -> int:
        """The vision encoder and all work space, at the worst moment.

        While the picture is looked at, its weights and its work space; then the decoder's work space, beside the
        vision encoder unless that was given back.
        """
        if self.releases_vision:
            return max(self.vision_bytes + self.vision_activation_bytes, self.text_activation_bytes)
        return self.vision_bytes + max(self.vision_activation_bytes, self.text_activation_bytes)

    def at(self, positions: int) -> int:
        """Bytes in all, at the peak, with a cache of so many positions."""
        return self.runtime_bytes + self.text_bytes + self.stage_bytes + positions * self.bytes_per_position

    @property
    def smallest_positions(self) -> int:
        """The shortest cache that is worth starting with."""
        return min(self.prefix_positions + SMALLEST_ANSWER_POSITIONS, self.max_positions)

    @property
    def least_bytes(self) -> int:
        """Bytes in all, at the peak, with what can be given back given back, and the shortest cache."""
        return replace(self, releases_vision=True).at(self.smallest_positions)

    @property
    def useful_positions(self) -> int:
        """A cache for a full caption."""
        return min(self.prefix_positions + USEFUL_POSITIONS, self.max_positions)


@dataclass(frozen=True)
class Fit:
    """What the budget allows."""

    positions: int
    releases_vision: bool
    tight: bool
    """Whether every MiB counts: the cache is shorter than it could be, or the vision encoder comes and goes."""
    reason: str = ""
    """Why the vision encoder is given back, if it is."""


def budget(limits: Limits) -> Budget:
    """The least of all limits: what the worker may have in all, whatever of it it has already."""
    held = limits.worker_bytes
    choices = [(max(0, held + limits.available_bytes - RESERVE_BYTES), "the board's free memory, less a reserve")]
    if limits.configured_bytes is not None:
        choices.append((limits.configured_bytes, "model.memory_limit_mib"))
    if limits.cgroup is not None:
        level = limits.cgroup
        others_bytes = max(0, level.used_bytes - held)  # the cgroup does not count what of the worker is swapped out
        room = level.limit_bytes - others_bytes - CGROUP_RESERVE_BYTES
        reason = f"the cgroup's limit of {level.limit_bytes / MIB:.0f} MiB, less what others in it use"
        choices.append((max(0, room), reason))
    limit_bytes, reason = min(choices)
    return Budget(limit_bytes, reason)


def most_bytes(limits: Limits, board_bytes: int, own_bytes: int) -> int:
    """What the worker could ever have: were it alone with this process, which has `own_bytes`, on the board."""
    choices = [board_bytes - own_bytes - RESERVE_BYTES]
    if limits.configured_bytes is not None:
        choices.append(limits.configured_bytes)
    if limits.cgroup is not None:
        choices.append(limits.cgroup.limit_bytes - own_bytes - CGROUP_RESERVE_BYTES)
    return min(choices)


def fit(limit: Budget, needs: Needs, wanted: int | None = None) -> Fit:
    """How the model is run within the budget: with the vision encoder kept, or given back where only that fits.

    Raises BudgetError when neither does.
    """
    roomy = limit.limit_bytes >= needs.at(min(wanted or needs.max_positions, needs.max_positions))
    missing_bytes = needs.at(needs.smallest_positions) - limit.limit_bytes
    if missing_bytes <= 0:
        return Fit(kv_positions(limit, needs, wanted), releases_vision=False, tight=not roomy)
    released = replace(needs, releases_vision=True)
    if released.stage_bytes == needs.stage_bytes:  # then it would not help, and is not spoken of
        released = needs
    positions = kv_positions(limit, released, wanted)
    reason = (
        f"the vision encoder ({needs.vision_bytes / MIB:.0f} MiB) is unloaded after every picture and read again for "
        f"the next; otherwise {missing_bytes / MIB:.0f} MiB would be missing"
    )
    return Fit(positions, releases_vision=True, tight=True, reason=reason)


def kv_positions(limit: Budget, needs: Needs, wanted: int | None = None) -> int:
    """Positions that the budget holds, at most `wanted` and the model's context.

    Raises BudgetError, which says how much is missing, when not even a short caption would fit.
    """
    smallest = needs.smallest_positions
    missing_bytes = needs.at(smallest) - limit.limit_bytes
    if missing_bytes > 0:
        released = ", of which the vision encoder is unloaded after every picture" if needs.releases_vision else ""
        weights_bytes, work_bytes = needs.vision_bytes + needs.text_bytes, needs.stage_bytes - needs.vision_bytes
        raise BudgetError(
            f"{missing_bytes / MIB:.0f} MiB of memory are missing: the model needs at least "
            f"{needs.at(smallest) / MIB:.0f} MiB (weights {weights_bytes / MIB:.0f}{released}, "
            f"smallest KV cache {smallest * needs.bytes_per_position / MIB:.0f}, work space {work_bytes / MIB:.0f}, "
            f"program {needs.runtime_bytes / MIB:.0f}), the budget is {limit.limit_bytes / MIB:.0f} MiB "
            f"({limit.reason})"
        )
    fitting = (limit.limit_bytes - needs.at(0)) // needs.bytes_per_position
    return int(min(fitting, needs.max_positions, max(wanted or needs.max_positions, smallest)))


def read_limits(configured_bytes: int | None) -> Limits:
    """The limits as they are now, without a worker."""
    return limits_of(Files().read(None), configured_bytes)


def limits_of(reading: Reading, configured_bytes: int | None) -> Limits:
    """The limits of a moment."""
    return Limits(configured_bytes, reading.level, reading.available_bytes, reading.worker_bytes or 0)


def needs_from(values: Mapping[str, int]) -> Needs | None:
    """What a worker says that it takes, from the fields' names and values; None when it does not say it."""
    names = {field.name for field in fields(Needs)} - {"releases_vision"}
    return Needs(releases_vision=False, **values) if set(values) == names else None
