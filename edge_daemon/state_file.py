"""A small JSON file in the state directory, replaced as a whole: a power cut leaves the old one or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """What it says; nothing when there is none. Raises OSError, and ValueError for one that is damaged."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


def replace(path: Path, document: Any) -> None:
    """Have it on the disk; a file that says it already is left alone. Raises OSError.

    An automation may set the same every minute for years, and each write costs a card whole blocks.
    """
    text = json.dumps(document, indent=2)
    if _says(path, text):
        return
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode("ascii")
    except OSError:  # whatever it is, writing tells
        return False
