"""One value of the configuration file replaced in its place; the file as it was is kept beside it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from edge_daemon import config, yaml_file
from edge_daemon.doctor.finding import Fix
from edge_daemon.doctor.subject import is_root
from edge_daemon.errors import ConfigError

KEPT = ".before-doctor"


def fix(path: Path, key: tuple[str, ...], value: str) -> Fix:
    """Set a key that stands in the file."""
    kept = path.with_name(path.name + KEPT)
    return Fix(
        f"set {'.'.join(key)} to {value} in {path}",
        f"mv {kept} {path}",
        lambda: change(path, key, value),
    )


def change(path: Path, key: tuple[str, ...], value: str) -> str:
    """Raises ConfigError, and changes nothing, where the value is not a plain word behind its key."""
    place = yaml_file.read(path).places[key]
    before = config.load(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    line = lines[place.line - 1]
    start = place.column - 1
    changed = re.sub(rf"^({re.escape(key[-1])}\s*:\s*)[\w.]+", rf"\g<1>{value}", line[start:])
    lines[place.line - 1] = line[:start] + changed
    fresh = path.with_name(f".{path.name}.new")
    shutil.copy2(path, fresh)
    try:
        fresh.write_text("".join(lines), encoding="utf-8")
        if (
            _without(config.load(fresh).model_dump(), key) != _without(before.model_dump(), key)
            or changed == line[start:]
        ):
            raise ConfigError(f"{path}:{place.line}: {'.'.join(key)} is written in an unusual way: change it by hand")
        status = path.stat()
        shutil.copy2(path, path.with_name(path.name + KEPT))
        if is_root():
            os.chown(fresh, status.st_uid, status.st_gid)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return f"{path}:{place.line}: {'.'.join(key)} is {value}"


def _without(values: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    """All values but one."""
    first, *rest = key
    if rest:
        return {**values, first: _without(values[first], tuple(rest))}
    return {name: value for name, value in values.items() if name != first}
