"""One benchmark: the machine's limits, the model's stages, and the limits once more, all in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from edge_daemon import memory
from edge_daemon.bench import limits, machine
from edge_daemon.bench.limits import Limit
from edge_daemon.bench.stages import Run, camera_picture, run
from edge_daemon.choices import WantedPrecision
from edge_daemon.decoders import open_decoder
from edge_daemon.errors import ConfigError
from edge_daemon.moondream import device
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.opening import open_chosen
from edge_daemon.moondream.threads import automatic, cores_here
from edge_daemon.needs import room

Say = Callable[[str], None]
LENGTH = "short"
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Wishes:
    """What is asked for; None leaves it to the machine."""

    precision: WantedPrecision
    threads: int | None
    runs: int
    tokens: int


@dataclass(frozen=True)
class Bounds:
    """A limit before and after the stages, and both together."""

    before: Limit
    after: Limit
    both: Limit


@dataclass(frozen=True)
class Measured:
    """Everything that was found out."""

    config: ModelConfig
    precision: str
    threads: int
    prompt: int
    """Tokens of the prompt."""
    runs: list[Run]
    load_s: float
    peak_rss_bytes: int
    """While the model was loaded and ran; the measurement of the limits does not count."""
    kv_positions: int
    kv_bytes: int
    gemm: Bounds
    """GFLOP/s."""
    read: Bounds
    """GB/s."""


def measure(directory: Path, wishes: Wishes, say: Say) -> Measured:
    """Benchmark the model in a directory; `say` is told what goes on.

    Raises ModelError, UnavailableError for a precision that this machine has not, and ConfigError for more tokens
    than the model's context holds or more threads than there are cores.
    """
    config = load_config(directory)
    length = LENGTH if LENGTH in config.templates.caption else next(iter(config.templates.caption))
    prompt = len(config.templates.caption[length])
    positions = _positions(config, prompt, wishes.tokens)
    _use_threads(wishes.threads)
    say("measuring the machine's limits: matrix products and reading memory")
    gemm, read = limits.gemm_rates(), limits.read_rates()
    if not machine.forget_peak():
        say("this kernel cannot reset the peak of memory, so it includes what measuring the limits took")
    start_s = time.perf_counter()
    model = open_model(directory, config, wishes.precision, positions, say)
    load_s = time.perf_counter() - start_s
    jpeg, decoder = camera_picture(), open_decoder()
    say("one picture as a warm-up")
    run(model, jpeg, decoder, length, WARM_UP_TOKENS)
    runs = []
    for index in range(wishes.runs):
        say(f"picture {index + 1} of {wishes.runs}")
        runs.append(run(model, jpeg, decoder, length, wishes.tokens))
    peak_bytes = machine.peak_rss_bytes()
    say("measuring the machine's limits again")
    return Measured(
        config=config,
        precision=model.parts.precision,
        threads=torch.get_num_threads(),
        prompt=prompt,
        runs=runs,
        load_s=load_s,
        peak_rss_bytes=peak_bytes,
        kv_positions=model.cache.positions,
        kv_bytes=model.cache.size_bytes,
        gemm=_bounds(gemm, limits.gemm_rates()),
        read=_bounds(read, limits.read_rates()),
    )


def open_model(directory: Path, config: ModelConfig, precision: WantedPrecision, positions: int, say: Say) -> Moondream:
    """A loaded model on the CPU, in a precision or in the one that suits (`auto`)."""
    budget = memory.budget(memory.read_limits(None))
    choice = device.decide(directory, config, "cpu", precision, partial(room, directory, config, budget))
    say(f"loading {config.name}: {choice.warning or choice.reason}")
    return open_chosen(directory, config, choice, positions)


def _positions(config: ModelConfig, prompt: int, tokens: int) -> int:
    """KV positions that a picture, the prompt and the tokens take. Raises ConfigError when there are not so many."""
    behind = config.prefix_positions + prompt
    if behind + tokens > config.text.max_context:
        raise ConfigError(
            f"--tokens {tokens}: {config.name} has {config.text.max_context} positions, of which picture and prompt "
            f"take {behind}: {config.text.max_context - behind} tokens at most"
        )
    return behind + tokens


def _use_threads(threads: int | None) -> None:
    if threads is None:
        threads, _ = automatic(cores_here())
    elif threads > machine.cores():
        raise ConfigError(f"--threads {threads}: this process may use {machine.cores()} cores")
    torch.set_num_threads(threads)


def _bounds(before: limits.Rates, after: limits.Rates) -> Bounds:
    return Bounds(limits.limit(before), limits.limit(after), limits.limit(before, after))
