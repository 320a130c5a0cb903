"""`model.name: moondream`: the 2B or the 0.5B, whichever the memory holds.

The article that this project starts from: the 2B for 8 GB, the 0.5B for 2 GB. Here the numbers of the installed
directories and of this moment decide, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_daemon import models, needs
from edge_daemon.choices import WantedVariant
from edge_daemon.errors import ConfigError
from edge_daemon.memory import Budget, Needs
from edge_daemon.models.store import FAMILY as FAMILY
from edge_daemon.units import MIB

STORED = {"2b": "moondream-2b", "0.5b": "moondream-0.5b"}
"""Names in the store, the better model first."""


@dataclass(frozen=True)
class Variant:
    """What was chosen."""

    name: str
    """In the store."""
    reason: str


def resolve(name: str, wanted: WantedVariant, precision: str, state_dir: Path, budget: Budget) -> tuple[Path, str]:
    """The directory of the model `name`, and why this one, where the name leaves the choice to us.

    Of the service and of every command that says what the service does. Raises ConfigError and ModelError.
    """
    if name != FAMILY:
        return models.directory_of(name, state_dir), ""
    present = models.installed(state_dir)
    directories = {each: models.directory_of(each, state_dir) for each in STORED.values() if each in present}
    needed = {each: needs.installed(directory, precision) for each, directory in directories.items()}
    chosen = choose(wanted, needed, budget)
    return directories[chosen.name], f"{chosen.name}: {chosen.reason}"


def choose(wanted: WantedVariant, needs: Mapping[str, Needs], budget: Budget) -> Variant:
    """The variant to run; pure. `needs` has those that are installed, by their names in the store.

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
        needed_bytes = needs[name].at(needs[name].useful_positions)
        said.append(f"{name} needs {needed_bytes / MIB:.0f} MiB")
        if needed_bytes <= budget.limit_bytes:
            break
    chosen = name if needed_bytes <= budget.limit_bytes else installed[-1]
    others = [f"{other} is not installed" for other in STORED.values() if other not in needs]
    limit = f"the budget is {budget.limit_bytes / MIB:.0f} MiB ({budget.reason})"
    return Variant(chosen, "; ".join([*said, limit, *others]))
