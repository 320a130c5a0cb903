"""What a model takes of the memory, as the budget's rules want it: for the daemon, its worker and the commands.

Reads the headers of a model's files. No torch: the daemon asks before it starts a worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon.memory import Budget, Needs
from edge_daemon.units import MIB

if TYPE_CHECKING:
    from edge_daemon.moondream.config import ModelConfig
    from edge_daemon.moondream.device import Room
    from edge_daemon.moondream.footprint import Footprint

RUNTIME_BYTES = 300 * MIB
"""The worker's program before any weight: 246 MiB measured (x86-64, torch 2.13, ONNX Runtime 1.32), and some room."""


def needs_of(taken: Footprint, config: ModelConfig, runtime_bytes: int = RUNTIME_BYTES) -> Needs:
    """Of a worker that captions and answers, whose program takes `runtime_bytes`.

    The region head does not count: nobody who captions reads it, and it is mapped from a file, so that the kernel can
    drop it whenever others need the memory.
    """
    return Needs(
        runtime_bytes=runtime_bytes,
        vision_bytes=taken.vision_bytes,
        text_bytes=taken.text_bytes,
        vision_activation_bytes=taken.vision_activation_bytes,
        text_activation_bytes=taken.text_activation_bytes,
        bytes_per_position=taken.bytes_per_position,
        prefix_positions=config.prefix_positions,
        max_positions=config.text.max_context,
    )


def installed(directory: Path, precision: str) -> Needs:
    """Of a model directory, before there is a worker; `auto` is int8, the least that it takes. Raises ModelError."""
    from edge_daemon.moondream.config import load_config
    from edge_daemon.moondream.footprint import footprint

    config = load_config(directory)
    return needs_of(footprint(directory, config, "int8" if precision == "auto" else precision), config)


def room(
    directory: Path, config: ModelConfig, budget: Budget, runtime_bytes: int = RUNTIME_BYTES, kv: str = "auto"
) -> Room:
    """What decides between float32 and int8 on a CPU: the budget, and what each takes with a full caption's cache.

    Raises ModelError.
    """
    from edge_daemon.moondream.device import Room
    from edge_daemon.moondream.footprint import footprint

    def useful_bytes(precision: str) -> int:
        needs = needs_of(footprint(directory, config, precision, kv), config, runtime_bytes)
        return needs.at(needs.useful_positions)

    return Room(budget.limit_bytes, budget.reason, useful_bytes("float32"), useful_bytes("int8"))
