"""What the processor says of itself in /proc/cpuinfo: the instructions that it has. A leaf."""

from __future__ import annotations

import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DOT_PRODUCTS = {"asimddp", "avx512_vnni", "avx_vnni"}
"""Names of instructions that multiply 8-bit numbers and add the products in 32 bits."""


def cpuinfo_here() -> str:
    """The text of /proc/cpuinfo; empty where there is none."""
    return CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""


def flags(cpuinfo: str) -> set[str]:
    """Names of the instructions that every core has; none where the text names none."""
    cores = [set(names.split()) for names in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)]
    return set.intersection(*cores) if cores else set()
