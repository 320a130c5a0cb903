"""How much memory the worker may have, and how many KV positions follow from it.

Readings (psutil, cgroup files) and decisions (pure functions) are kept apart. Swap never counts: on an SD
card it makes a board unusable long before it makes it work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_daemon.errors import BudgetError

MIB = 1 << 20
RESERVE_BYTES = 128 * MIB
"""Left to the rest of the system: page cache, sshd, the grabbers' short peaks."""
SMALLEST_ANSWER_POSITIONS = 48
"""Fewest positions behind the picture that are still useful: a prompt of a dozen tokens and a short caption."""
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """What was read or configured; None where there is no such limit."""

    configured_bytes: int | None
    cgroup_bytes: int | None
    available_bytes: int


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
    weights_bytes: int
    activation_bytes: int
    """The largest peak of one stage."""
    bytes_per_position: int
    prefix_positions: int
    """BOS and the picture."""
    max_positions: int
    """The model's context."""

    def at(self, positions: int) -> int:
        """Bytes in all with a cache of so many positions."""
        fixed_bytes = self.runtime_bytes + self.weights_bytes + self.activation_bytes
        return fixed_bytes + positions * self.bytes_per_position


def budget(limits: Limits) -> Budget:
    """The least of all limits."""
    choices = [(max(0, limits.available_bytes - RESERVE_BYTES), "what the board has free, less a reserve")]
    if limits.configured_bytes is not None:
        choices.append((limits.configured_bytes, "model.memory_limit_mib"))
    if limits.cgroup_bytes is not None:
        choices.append((max(0, limits.cgroup_bytes - RESERVE_BYTES), "the service's cgroup limit, less a reserve"))
    limit_bytes, reason = min(choices)
    return Budget(limit_bytes, reason)


def kv_positions(limit: Budget, needs: Needs, wanted: int | None = None) -> int:
    """Positions that the budget holds, at most `wanted` and the model's context.

    Raises BudgetError, which says how much is missing, when not even a short caption would fit.
    """
    smallest = min(needs.prefix_positions + SMALLEST_ANSWER_POSITIONS, needs.max_positions)
    missing_bytes = needs.at(smallest) - limit.limit_bytes
    if missing_bytes > 0:
        raise BudgetError(
            f"{missing_bytes / MIB:.0f} MiB of memory are missing: the model needs at least "
            f"{needs.at(smallest) / MIB:.0f} MiB (weights {needs.weights_bytes / MIB:.0f}, smallest KV cache "
            f"{smallest * needs.bytes_per_position / MIB:.0f}, work space {needs.activation_bytes / MIB:.0f}, "
            f"program {needs.runtime_bytes / MIB:.0f}), the budget is {limit.limit_bytes / MIB:.0f} MiB "
            f"({limit.reason})"
        )
    fitting = (limit.limit_bytes - needs.at(0)) // needs.bytes_per_position
    return int(min(fitting, needs.max_positions, max(wanted or needs.max_positions, smallest)))


def read_limits(configured_bytes: int | None, cgroup_root: Path = CGROUP_ROOT) -> Limits:
    """The limits as they are now."""
    cgroup_bytes = read_cgroup_limit(Path("/proc/self/cgroup").read_text(encoding="ascii"), cgroup_root)
    return Limits(configured_bytes, cgroup_bytes, psutil.virtual_memory().available)


def read_cgroup_limit(membership: str, root: Path) -> int | None:
    """The least `memory.max` between our cgroup and the root (cgroup v2), or None.

    `membership` is the text of /proc/self/cgroup. cgroup v1 knows `memory.limit_in_bytes` instead, which is
    an absurdly large number where there is no limit.
    """
    found: list[int] = []
    for line in membership.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            found += _walk(root, group, "memory.max")
        elif "memory" in controllers.split(","):
            found += _walk(root / "memory", group, "memory.limit_in_bytes")
    limit = min(found, default=None)
    return limit if limit is not None and limit < psutil.virtual_memory().total else None


def _walk(root: Path, group: str, name: str) -> list[int]:
    """The numbers in the files `name` from `group` up to the root; `max` and missing files count for nothing."""
    directory = root / group.lstrip("/")
    values = []
    for place in (directory, *directory.parents):
        if (place / name).is_file():
            text = (place / name).read_text(encoding="ascii").strip()
            values += [int(text)] if text.isdigit() else []
        if place == root:
            break
    return values
