"""`model.name: moondream`: the 2B or the 0.5B, whichever the memory holds. Pure, but for `needs_of`, which reads files.

The article that this project starts from: the 2B for 8 GB, the 0.5B for 2 GB. Here the numbers of the installed
directories and of this moment decide, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_daemon.errors import ConfigError
from edge_daemon.memory import MIB, Budget, Needs
from edge_daemon.models.store import FAMILY as FAMILY

STORED = {"2b": "moondream-2b", "0.5b": "moondream-0.5b"}
"""Names in the store, the better model first."""
RUNTIME_BYTES = 300 * MIB
"""The worker's program before any weight: 246 MiB measured (x86-64, torch 2.13, ONNX Runtime 1.32), and some room."""
USEFUL_POSITIONS = 256
"""Behind the picture: a question and a long answer. Also the margin that keeps us from choosing a model that no
longer fits a moment later, when the worker looks."""

Wanted = Literal["auto", "2b", "0.5b"]


@dataclass(frozen=True)
class Variant:
    """What was chosen."""

    name: str
    """In the store."""
    reason: str


def choose(wanted: Wanted, needs: Mapping[str, Needs], budget: Budget) -> Variant:
    """The variant to run; `needs` has those that are installed, by their names in the store.

    Raises ConfigError when the wanted one, or any, is not installed.
    """
    if wanted != "auto":
        if STORED[wanted] not in needs:
            raise ConfigError(f"variant {wanted} is not installed: edge-daemon model pull {STORED[wanted]}")
        return Variant(STORED[wanted], f"variant {wanted} is configured")
    installed = [name for name in STORED.values() if name in needs]
    if not installed:
        raise ConfigError(f"no variant of {FAMILY} is installed: edge-daemon model pull {STORED['0.5b']}")
    said: list[str] = []
    for name in installed:
        needed_bytes = useful_bytes(needs[name])
        said.append(f"{name} needs {needed_bytes / MIB:.0f} MiB")
        if needed_bytes <= budget.limit_bytes:
            break
    chosen = name if needed_bytes <= budget.limit_bytes else installed[-1]
    others = [f"{other} is not installed" for other in STORED.values() if other not in needs]
    limit = f"the budget is {budget.limit_bytes / MIB:.0f} MiB ({budget.reason})"
    return Variant(chosen, "; ".join([*said, limit, *others]))


def useful_bytes(needs: Needs) -> int:
    """What a model takes with a cache of a useful length."""
    return needs.at(min(needs.prefix_positions + USEFUL_POSITIONS, needs.max_positions))


def needs_of(directory: Path) -> Needs:
    """What an installed model takes, in float32 or in the precision of its graphs. Raises ModelError."""
    from edge_daemon.moondream.config import load_config
    from edge_daemon.moondream.footprint import footprint

    config = load_config(directory / "config.json")
    taken = footprint(directory, config)
    return Needs(
        RUNTIME_BYTES,
        taken.weights_bytes,
        taken.activation_bytes,
        taken.bytes_per_position,
        config.prefix_positions,
        config.text.max_context,
    )
