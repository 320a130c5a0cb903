"""How the name of a file is shown. Whoever put it there chose it, and a terminal obeys control characters. Pure."""

from __future__ import annotations


def shown_name(name: str) -> str:
    """The name; one with something in it that is not printed, as Python writes it."""
    return name if name.isprintable() else ascii(name)
