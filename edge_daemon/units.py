"""How many bytes and seconds the larger units have (leaf)."""

from __future__ import annotations

KIB, MIB = 1 << 10, 1 << 20
DAY_S = 86_400.0
