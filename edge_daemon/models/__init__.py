"""The model store: where a model's name leads. Light: it imports no torch."""

from __future__ import annotations

from pathlib import Path

from edge_daemon import demo
from edge_daemon.errors import ModelError

BUILT_IN = {"demo-shapes": demo.MODEL_DIR}
"""Models that come with the package."""
NEEDED_FILES = ("config.json", "tokenizer.json", "model.safetensors")


def directory_of(name: str, state_dir: Path) -> Path:
    """The directory of a model, given by name or by path. Raises ModelError that says what there is."""
    stored = BUILT_IN.get(name, state_dir / "models" / name)
    directory = Path(name).expanduser() if "/" in name else stored
    missing = [file for file in NEEDED_FILES if not (directory / file).is_file()]
    if missing:
        known = ", ".join(sorted({*BUILT_IN, *installed(state_dir)}))
        raise ModelError(
            f"model {name!r}: {directory} has no {', '.join(missing)}; models here: {known}; a model directory "
            f"is given by a path with a slash, such as ./my-model"
        )
    return directory


def installed(state_dir: Path) -> list[str]:
    """Names in the store."""
    return [path.parent.name for path in (state_dir / "models").glob("*/config.json")]
