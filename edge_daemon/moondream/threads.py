"""How many threads torch shall compute with: measured once on a board, then remembered.

A product of matrices takes all cores; reading weights for one token may be done by fewer, and on a board whose last
core serves the camera and the network one less can be faster. What is measured are a few products in the model's own
shapes. Knows nothing of the daemon; a record that cannot be read or written only means that it is measured again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from edge_daemon.moondream.config import ModelConfig

CPUINFO = Path("/proc/cpuinfo")
CHOICE_FROM = 4
"""Cores from which on it may pay to leave one free. With fewer the loss is a third or more, whatever is measured."""
ROWS = 64
"""Of the large product: enough for the rate of a matrix product, and a fraction of the picture's 730."""
WORDS = 20
"""Of a short caption; each is a pass over the weights by products with one row."""
REPEATS = 3
CLOSE = 0.03
"""What fewer threads may be slower, and still be taken: they leave the rest to others, and heat the board less."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Board:
    """What a measurement is valid for."""

    cpu: str
    cores: int
    torch: str
    precision: str
    model: str

    @property
    def key(self) -> str:
        """One line, the name of its record."""
        return " | ".join(map(str, astuple(self)))


def cpu_name(cpuinfo: str) -> str:
    """The processor, by the text of /proc/cpuinfo: its name on x86, its implementer, part and variant on ARM."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named[1].strip()
    marks = [
        re.search(rf"^CPU {mark}\s*:\s*(\S+)", cpuinfo, re.MULTILINE) for mark in ("implementer", "part", "variant")
    ]
    return " ".join(mark[1] for mark in marks if mark) or "unknown"


def cores_here() -> int:
    """Physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def candidates(cores: int) -> list[int]:
    """Numbers of threads that are worth a measurement; the first one is what is taken without."""
    return [cores, cores - 1] if cores >= CHOICE_FROM else [cores]


def pick(timings_s: Mapping[int, float]) -> int:
    """The number of threads with the least time, or fewer that come close to it."""
    best_s = min(timings_s.values())
    return min(threads for threads, taken_s in timings_s.items() if taken_s <= best_s * (1 + CLOSE))


def threads_for(board: Board, record: Path | None, begin: Callable[[], Callable[[int], float]]) -> tuple[int, str]:
    """Threads and why these: as remembered in `record`, else measured.

    `begin` gives what takes the time, in seconds, with a number of threads.
    """
    tried = candidates(board.cores)
    if len(tried) == 1:
        return tried[0], f"all {board.cores} cores"
    known = read(record).get(board.key) if record else None
    if known in tried:
        return known, "measured earlier on this board"
    measure = begin()
    timings_s = {threads: measure(threads) for threads in tried}
    chosen = pick(timings_s)
    if record:
        write(record, {**read(record), board.key: chosen})
    told = ", ".join(f"{threads} threads {taken_s * 1000:.0f} ms" for threads, taken_s in timings_s.items())
    return chosen, f"measured: {told}"


def read(record: Path) -> dict[str, int]:
    """Threads by `Board.key`; what is no such thing is left out, and a file that is none is empty."""
    try:
        found: Any = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: threads for key, threads in found.items() if type(threads) is int and threads > 0}


def write(record: Path, known: Mapping[str, int]) -> None:
    """Replace the record as a whole, so that a cut leaves the old one."""
    fresh = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        fresh.replace(record)
    except OSError as error:
        log.warning("%s: the number of threads is not remembered: %s", record, error.strerror or error)
        fresh.unlink(missing_ok=True)


def measuring(config: ModelConfig, precision: str) -> Callable[[int], float]:
    """A function that takes the time, in seconds, of an MLP of the decoder with so many threads.

    Once with ROWS rows and WORDS times with one, of which a few are run and the best counts: 0.4 GFLOP and, in
    float32, 34 MB of weights in the 0.5B's shape.
    """
    import torch

    from edge_daemon.moondream.linear import Linear, PackedLinear
    from edge_daemon.moondream.quantize import Int8Linear, use_engine

    dtype = torch.float32 if precision == "int8" else getattr(torch, precision)
    dim, inner = config.text.dim, config.text.ff_dim
    with torch.no_grad():
        plain = [Linear(dim, inner, dtype=dtype), Linear(inner, dim, dtype=dtype)]
        layers: list[Linear | PackedLinear | Int8Linear] = [*plain]
        if precision == "int8":
            use_engine()
        if dtype == torch.float32:
            layers = [Int8Linear(layer) if precision == "int8" else PackedLinear(layer) for layer in plain]
    first, second = layers
    many, one = torch.ones(ROWS, dim, dtype=dtype), torch.ones(1, dim, dtype=dtype)

    def once(x: torch.Tensor) -> float:
        start_s = time.perf_counter()
        second(first.gelu(x))
        return time.perf_counter() - start_s

    def measure(threads: int) -> float:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            once(many)  # the first run makes the threads
            large_s = min(once(many) for _ in range(REPEATS))
            small_s = min(once(one) for _ in range(REPEATS * 2))
        return large_s * config.prefix_positions / ROWS + small_s * WORDS

    return measure
