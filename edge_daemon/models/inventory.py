"""What models there are, what can be fetched, and what of it this board holds, and why.

Documents for `edge-daemon model list`; it prints nothing and decides nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_daemon import memory
from edge_daemon.errors import BudgetError, ModelError
from edge_daemon.models.catalogue import FLOAT32_BYTES, TORCH_RUNTIME_BYTES, Artefact
from edge_daemon.models.store import BUILT_IN, MIB, Installed, Store, free_on_disk, look
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import Footprint, footprint


def inventory(store: Store, catalogue: tuple[Artefact, ...], budget: memory.Budget) -> dict[str, Any]:
    """One document: `installed`, `built_in` and `catalogue`, each a list; sizes in bytes."""
    names = store.names()
    return {
        "store": str(store.root),
        "installed": [_local(model, budget) for model in store.installed()],
        "built_in": [_local(look(directory), budget) | {"name": name} for name, directory in BUILT_IN.items()],
        "catalogue": [_remote(known, store, budget) | {"installed": known.name in names} for known in catalogue],
    }


def _local(model: Installed, budget: memory.Budget) -> dict[str, Any]:
    said = model.provenance
    document: dict[str, Any] = {
        "name": model.name,
        "directory": str(model.directory),
        "size_bytes": model.size_bytes,
        "engine": model.engine,
        "source": said.get("source"),
        "repository": said.get("repository"),
        "commit": said.get("commit"),
    }
    try:
        config = load_config(model.directory / "config.json")
        return document | {"memory": memory_verdict(config, footprint(model.directory, config), budget)}
    except ModelError as error:
        return document | {"memory": {"fits": False, "why": f"it cannot be used: {error}"}}


def _remote(known: Artefact, store: Store, budget: memory.Budget) -> dict[str, Any]:
    shape = known.shape
    needs = Footprint(known.weights * FLOAT32_BYTES, shape.activation_bytes, shape.kv_bytes_per_position)
    return {
        "name": known.name,
        "summary": known.summary,
        "licence": known.licence,
        "files": [{"repository": f.repository, "commit": f.commit, "path": f.path} for f in known.files],
        "download_bytes": known.download_bytes,
        "installed_bytes": known.installed_bytes,
        "memory": memory_verdict(shape, needs, budget),
        "disk": disk_verdict(known, store.root),
    }


def memory_verdict(config: ModelConfig, needs: Footprint, budget: memory.Budget) -> dict[str, Any]:
    """Whether a worker with this model would start now, by the rule that the worker itself uses."""
    all_needs = memory.Needs(
        runtime_bytes=TORCH_RUNTIME_BYTES,
        weights_bytes=needs.weights_bytes,
        activation_bytes=needs.activation_bytes,
        bytes_per_position=needs.bytes_per_position,
        prefix_positions=config.prefix_positions,
        max_positions=config.text.max_context,
    )
    try:
        positions = memory.kv_positions(budget, all_needs)
    except BudgetError as error:
        return {"fits": False, "why": str(error)}
    least = min(config.prefix_positions + memory.SMALLEST_ANSWER_POSITIONS, config.text.max_context)
    why = (
        f"needs {all_needs.at(least) / MIB:.0f} MiB at least, the budget is {budget.limit_bytes / MIB:.0f} MiB "
        f"({budget.reason}): {positions} of {config.text.max_context} KV positions"
    )
    return {"fits": True, "why": why}


def disk_verdict(known: Artefact, place: Path) -> dict[str, Any]:
    """Whether download and import fit, if both go to the disk of the store."""
    download_bytes, free_bytes = known.download_bytes, free_on_disk(place)
    needed_bytes = (download_bytes or 0) + known.importing_bytes
    unknown = "" if download_bytes is not None else " and the download, whose size is not known"
    why = (
        f"{needed_bytes / MIB:.0f} MiB{unknown} while it is imported ({known.installed_bytes / MIB:.0f} of them stay), "
        f"{free_bytes / MIB:.0f} MiB are free"
    )
    return {"fits": needed_bytes <= free_bytes, "why": why}
