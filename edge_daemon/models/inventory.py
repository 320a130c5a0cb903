"""What models there are, what can be fetched, and what of it this board holds, and why.

Documents for `edge-daemon model list`; it prints nothing and decides nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_daemon import memory
from edge_daemon.errors import BudgetError, ModelError
from edge_daemon.models.catalogue import FLOAT32_BYTES, Artefact
from edge_daemon.models.store import BUILT_IN, Installed, Store, free_on_disk, look
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.footprint import Footprint, footprint, footprint_of, precision_of, tensors_of
from edge_daemon.needs import needs_of
from edge_daemon.units import MIB

BY_TORCH = ("float32", "int8")
"""What `precision: auto` takes on a CPU, the first that fits."""


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
    return document | {"memory": memory_of(model.directory, budget)}


def memory_of(
    directory: Path, budget: memory.Budget, precision: str = "auto", kv_precision: str = "auto"
) -> dict[str, Any]:
    """The verdict on a model directory, in a precision or in the one that `auto` takes on a CPU."""
    try:
        config = load_config(directory)
        if config.engine == "onnx":
            taken = {precision_of(directory, config): footprint(directory, config)}
        else:
            wanted = BY_TORCH if precision == "auto" else (precision,)
            taken = {each: footprint(directory, config, each, kv_precision) for each in wanted}
        return memory_verdict(config, taken, budget)
    except ModelError as error:
        return {"fits": False, "why": f"it cannot be used: {error}"}


def lengths(directory: Path) -> list[str]:
    """Of captions, that a model can be asked for. Raises ModelError."""
    return list(load_config(directory).templates.caption)


def _remote(known: Artefact, store: Store, budget: memory.Budget) -> dict[str, Any]:
    shape = known.shape
    tensors = tensors_of(shape, "F32" if known.stored_bytes_per_weight == FLOAT32_BYTES else "BF16")
    needs = {precision: footprint_of(tensors, shape, precision) for precision in BY_TORCH}
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


def memory_verdict(config: ModelConfig, taken: dict[str, Footprint], budget: memory.Budget) -> dict[str, Any]:
    """Whether a worker with this model would start now on the CPU, by the rules that the worker itself uses.

    `taken` is what each precision takes that the model can be computed in, the one that `auto` prefers first.
    """
    needs = {precision: needs_of(each, config) for precision, each in taken.items()}
    chosen = next((p for p, n in needs.items() if n.at(n.useful_positions) <= budget.limit_bytes), [*needs][-1])
    try:
        fit = memory.fit(budget, needs[chosen])
    except BudgetError as error:
        return {"fits": False, "why": f"{chosen}: {error}" if len(needs) > 1 else str(error)}
    least = {p: f"{n.at(n.smallest_positions) / MIB:.0f} MiB" for p, n in needs.items()}
    at_least = ", ".join(f"{size} in {precision}" for precision, size in least.items())
    used = f"{chosen}, {fit.positions}" if len(needs) > 1 else str(fit.positions)
    why = (
        f"needs {at_least} at least, the budget is {budget.limit_bytes / MIB:.0f} MiB ({budget.reason}): "
        f"{used} of {config.text.max_context} KV positions"
    )
    return {"fits": True, "why": f"{why}; {fit.reason}" if fit.reason else why}


def disk_verdict(known: Artefact, place: Path) -> dict[str, Any]:
    """Whether download and import fit, if both go to the disk of the store."""
    download_bytes, free_bytes = known.download_bytes, free_on_disk(place)
    needed_bytes = (download_bytes or 0) + known.importing_bytes
    unknown = "" if download_bytes is not None else " and the download, whose size is unknown"
    why = (
        f"{needed_bytes / MIB:.0f} MiB{unknown} while it is imported ({known.installed_bytes / MIB:.0f} of them stay), "
        f"{free_bytes / MIB:.0f} MiB are free"
    )
    return {"fits": needed_bytes <= free_bytes, "why": why}
