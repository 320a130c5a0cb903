"""The worker child: `python -m edge_daemon.worker`. Loads the model, says READY, answers until EOF.

The only importer of the model in the daemon's life. What can be imported before the pipe is taken and the
out-of-memory score is raised is plain Python; torch comes after, because importing it has killed processes
on small boards, and the daemon must be able to tell.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon import memory, pipe
from edge_daemon.errors import BudgetError, CaptionError, UnavailableError
from edge_daemon.messages import Failed, Progress, Request, Results, Task, TaskResult, WorkerReady, WorkerRefused

if TYPE_CHECKING:
    from edge_daemon.moondream.config import ModelConfig
    from edge_daemon.moondream.device import Choice
    from edge_daemon.moondream.model import Moondream

OOM_SCORE = 800
"""The kernel shall take the worker first: it is the largest and the only one that is easily replaced."""


def main() -> int:
    """Start, serve, leave."""
    arguments = parse()
    daemon = pipe.Pipe()
    pipe.die_with_parent()
    pipe.volunteer_for_oom(OOM_SCORE)
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    daemon.write(Progress("importing torch"))
    start_s = time.monotonic()
    try:
        model, report = load(arguments, start_s)
    except UnavailableError as error:
        daemon.write(WorkerRefused("model", str(error)))
        return 0
    except BudgetError as error:
        daemon.write(WorkerRefused("memory", str(error)))
        return 0
    daemon.write(report)
    while (request := daemon.read()) is not None:
        daemon.write(answer(model, request, daemon))
    return 0


def parse() -> argparse.Namespace:
    """The arguments that the daemon gives."""
    parser = argparse.ArgumentParser(prog="edge_daemon.worker", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--budget-bytes", type=int, required=True)
    parser.add_argument("--budget-reason", required=True)
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--kv-positions", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    return parser.parse_args()


def load(arguments: argparse.Namespace, start_s: float) -> tuple[Moondream, WorkerReady]:
    """Import torch, decide on a device, size the cache by the budget, open the model.

    Raises ModelError, UnavailableError (a device or a library) or BudgetError.
    """
    import psutil
    import torch

    from edge_daemon.moondream import device
    from edge_daemon.moondream.config import load_config
    from edge_daemon.moondream.model import Moondream

    if arguments.threads != "auto":
        torch.set_num_threads(int(arguments.threads))
    config = load_config(arguments.model / "config.json")
    choice = device.decide(arguments.model, config, arguments.device, arguments.precision)
    wanted = None if arguments.kv_positions == "auto" else int(arguments.kv_positions)
    budget, needs = size(arguments, config, choice)
    positions = memory.kv_positions(budget, needs, wanted)
    model = Moondream(arguments.model, positions, choice.device, device.dtype_of(choice, config))
    model.load()
    return model, WorkerReady(
        model=config.name,
        note=config.note,
        precision=choice.precision,
        kv_positions=model.cache.positions,
        kv_bytes=model.cache.size_bytes,
        budget_bytes=budget.limit_bytes,
        rss_bytes=psutil.Process().memory_info().rss,
        load_s=time.monotonic() - start_s,
        threads=torch.get_num_threads(),
        versions=versions(),
        engine=config.engine,
        device=choice.device,
        reason=choice.reason,
        warning=choice.warning,
    )


def size(arguments: argparse.Namespace, config: ModelConfig, choice: Choice) -> tuple[memory.Budget, memory.Needs]:
    """What the model may take, and what it takes where it runs.

    A CUDA device has memory of its own, and that is then what counts (never tried: we had none).
    """
    import psutil
    import torch

    from edge_daemon.moondream.device import dtype_of
    from edge_daemon.moondream.footprint import footprint

    dtype = dtype_of(choice, config) or torch.float32
    taken = footprint(arguments.model, config, dtype.itemsize)
    budget = memory.Budget(arguments.budget_bytes, arguments.budget_reason)
    runtime_bytes = psutil.Process().memory_info().rss
    if choice.device == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info()
        budget, runtime_bytes = memory.Budget(free_bytes, "what the CUDA device has free"), 0
    return budget, memory.Needs(
        runtime_bytes=runtime_bytes,
        weights_bytes=taken.weights_bytes,
        activation_bytes=taken.activation_bytes,
        bytes_per_position=taken.bytes_per_position,
        prefix_positions=config.prefix_positions,
        max_positions=config.text.max_context,
    )


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    from importlib.metadata import version

    present = [name for name in ("torch", "tokenizers", "onnxruntime") if name in sys.modules]
    return {name: version(name) for name in present}


def answer(model: Moondream, request: Request, daemon: pipe.Pipe) -> Results | Failed:
    """All tasks of one request; one task's failure is its own."""
    import psutil
    from PIL import Image

    size = (request.width_px, request.height_px)
    try:
        picture = Image.frombuffer("RGB", size, request.payload, "raw", "RGB", 0, 1)
    except ValueError as error:
        return Failed(f"{len(request.payload)} bytes are no RGB picture of {size[0]}×{size[1]}: {error}")
    daemon.write(Progress("encode"))
    times = model.encode(picture)
    done = []
    for task in request.tasks:
        daemon.write(Progress(task.id))
        done.append(perform(model, task, request, daemon))
    rss_bytes = psutil.Process().memory_info().rss
    return Results(done, times.vision_s * 1000, times.prefill_s * 1000, rss_bytes)


def perform(model: Moondream, task: Task, request: Request, daemon: pipe.Pipe) -> TaskResult:
    """One task on the encoded picture."""
    from dataclasses import asdict

    from edge_daemon.moondream.generate import Sampling

    sampling = Sampling(request.max_tokens, request.temperature, request.top_p)

    def on_token(token: int) -> None:
        daemon.write(Progress("token"))

    start_s = time.perf_counter()
    try:
        if task.kind in ("detect", "point"):
            found = model.detect(task.text) if task.kind == "detect" else model.point(task.text)
            taken_ms = (time.perf_counter() - start_s) * 1000
            return TaskResult(task.id, task.kind, "", [asdict(item) for item in found], 0, "eos", 0.0, taken_ms)
        ask = model.caption if task.kind == "caption" else model.query
        said = ask(task.text, sampling, on_token)
    except CaptionError as error:
        return TaskResult(task.id, task.kind, "", [], 0, "", 0.0, 0.0, str(error))
    milliseconds = (said.prefill_s * 1000, said.generate_s * 1000)
    return TaskResult(task.id, task.kind, said.text, [], said.tokens, said.finish_reason, *milliseconds)


if __name__ == "__main__":
    sys.exit(main())
