"""The models: where a name leads, what can be fetched, and how a published file becomes a model directory.

This package itself is light, and so are `store` and `catalogue`: the daemon's parent imports them. Everything
that needs torch, ONNX or the hub's client is imported late, by the command that needs it.

A moonfile: `container` → `unpacked` → (`folding`, `matrices`, `linear_layers`, `layer_norms` → `structure` →
`recover`; `measure` for what structure does not show) → `survey` → `moonfile` → `proof`; or `interface`, for
`engine: onnx`. Safetensors: `checkpoint_files`, `layouts`, `upstream`, `tokenizer_file` → `checkpoint`. All of them by
`importing`, into `store`. Out again: `graphs`, `export`. transformers serves in `tokenizer_file` alone, to read
tokenizers that have no tokenizer.json; nothing that runs a model imports it.
"""

from __future__ import annotations

from pathlib import Path

from edge_daemon.errors import ModelError
from edge_daemon.models.store import BUILT_IN, Store, missing_files


def directory_of(name: str, state_dir: Path) -> Path:
    """The directory of a model, given by name or by path. Raises ModelError that says what there is."""
    stored = BUILT_IN.get(name, state_dir / "models" / name)
    directory = Path(name).expanduser() if "/" in name else stored
    if missing := missing_files(directory):
        known = ", ".join(sorted({*BUILT_IN, *installed(state_dir)}))
        absent = directory == stored and not directory.exists()
        what = f"it is not in {directory.parent}" if absent else f"{directory} has no {', '.join(missing)}"
        raise ModelError(
            f"model {name!r}: {what}; models here: {known}; for a model directory "
            f"give a path with a slash, such as ./my-model; `edge-daemon model list` shows what can be fetched"
        )
    return directory


def installed(state_dir: Path) -> list[str]:
    """Names in the store."""
    return Store(state_dir).names()
