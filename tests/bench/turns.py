"""One side of a comparison, as a process that captions one picture at a time: only who is asked computes.

stdin: one JSON object a line, {"picture": path, "tokens": n}. stdout: first {"ready": …}, then an answer a line:
{"encode_s", "first_s", "token_s": […], "tokens": […], "total_s", "peak_rss_bytes"}. Standard library only: the peer
has a Python of its own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """What one picture took, from its file to the last token."""

    encode_s: float
    """From the file to the picture's embeddings: decoding, cropping, vision encoder, projection."""
    first_s: float
    """From there to the first token: picture and prompt through the decoder."""
    token_s: list[float]
    """Every other token."""
    tokens: list[int]

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.encode_s + self.first_s + sum(self.token_s)


def serve(ready: dict[str, object], caption: Callable[[Path, int], Turn]) -> None:
    """Answer until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    print(json.dumps({"ready": ready, "peak_rss_bytes": peak_rss_bytes()}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        turn = caption(Path(asked["picture"]), asked["tokens"])
        answer = asdict(turn) | {"total_s": turn.total_s, "peak_rss_bytes": peak_rss_bytes()}
        print(json.dumps(answer), file=out, flush=True)


def peak_rss_bytes() -> int:
    """The most memory of this process that was resident, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) << 10
