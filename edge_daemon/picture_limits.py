"""How large a picture comes out, and what it may cost until then unless its owner allows more or less (leaf)."""

from __future__ import annotations

MAX_SIDE_PX = 512
"""Longer side of a frame; in the template scheme that costs one vision pass instead of up to five."""
MAX_PIXELS = 100_000_000
"""Width times height that the header may claim."""
MAX_FILE_MIB = 100
DECODE_MEMORY_MIB = 512
"""What the process that decodes may allocate in all: enough for a 100-megapixel JPEG or PNG, or a 30-megapixel AVIF."""
DECODE_TIMEOUT_S = 30.0
"""Processor time for one picture. The slowest right one that fits into the memory, a 25-megapixel AVIF, takes 1.1 s on
the machine where this was written; a Raspberry Pi 3 is ten times slower."""
