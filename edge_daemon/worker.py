"""The worker child: `python -m edge_daemon.worker`. Loads the model, says READY, answers until EOF.

The only importer of the model in the daemon's life. What can be imported before the pipe is taken and the
out-of-memory score is raised is plain Python; torch comes after, because importing it has killed processes
on small boards, and the daemon must be able to tell.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon import memory, pipe, rlimits
from edge_daemon.errors import BudgetError, CaptionError, UnavailableError, WireError
from edge_daemon.messages import Cap, Failed, Progress, Request, Results, Task, TaskResult, WorkerReady, WorkerRefused
from edge_daemon.moondream.allocator import give_back
from edge_daemon.needs import needs_of, room
from edge_daemon.readings import kib

if TYPE_CHECKING:
    from PIL.Image import Image

    from edge_daemon.moondream.config import ModelConfig
    from edge_daemon.moondream.device import Choice
    from edge_daemon.moondream.model import Answer, Moondream

OOM_SCORE = 800
"""The kernel shall take the worker first: it is the largest and the only one that is easily replaced."""
ROPE_BYTES = 256 << 20
"""What the worker may map beyond all that it needs, before allocations fail. RLIMIT_DATA counts what is mapped and not
what is touched: stacks of threads, and heaps that the C library makes for them."""


@dataclass(frozen=True)
class Serving:
    """The model, and how it is treated where memory is tight."""

    model: Moondream
    releases_vision: bool
    tight: bool


def main() -> int:
    """Start, serve, leave."""
    arguments = parse()
    daemon = pipe.Pipe()
    pipe.die_with_parent()
    pipe.volunteer_for_oom(OOM_SCORE)
    daemon.write(Progress("importing torch"))
    start_s = time.monotonic()
    try:
        serving, report = load(arguments, start_s)
    except UnavailableError as error:
        daemon.write(WorkerRefused("model", str(error)))
        return 0
    except BudgetError as error:
        daemon.write(WorkerRefused("memory", str(error), error.needs))
        return 0
    tie(memory.needs_from(report.needs), serving.model.cache.positions)
    daemon.write(report)
    serve(serving, daemon)
    return 0


def serve(serving: Serving, daemon: pipe.Pipe) -> None:
    """Answer requests, and do with less memory or more as the daemon says: until it goes."""
    link = Link(daemon, serving.model)
    while True:
        message = link.next()
        if isinstance(message, Cap):
            serving = treated(serving, message)
        else:
            daemon.write(answer(serving, message, daemon))


class Link:
    """What the daemon says, heard by a thread of its own: a cap holds in the middle of a caption as well."""

    def __init__(self, daemon: pipe.Pipe, model: Moondream) -> None:
        """Start to listen: when the daemon goes, so does this process, whatever it is doing."""
        self._daemon = daemon
        self._model = model
        self._heard: queue.SimpleQueue[Request | Cap] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="daemon", daemon=True).start()

    def next(self) -> Request | Cap:
        """Wait for the next message."""
        return self._heard.get()

    def _listen(self) -> None:
        status = 0
        try:
            while (message := self._daemon.read()) is not None:
                if not isinstance(message, Request | Cap):
                    raise WireError(f"{type(message).__name__} is nothing for a worker")
                if isinstance(message, Cap):
                    self._model.cache.cap = message.kv_positions
                self._heard.put(message)
        except WireError as error:
            sys.stderr.write(f"what the daemon sent is not a message for a worker: {error}\n")
            status = 1
        # The main thread may be deep in native code; nothing here needs tidying up.
        os._exit(status)


def treated(serving: Serving, cap: Cap) -> Serving:
    """Between two pictures: another KV cache, whose old buffer is given back, and another way with freed memory."""
    model = serving.model
    longest, shortest = model.config.text.max_context, model.config.prefix_positions + 1
    model.shrink(max(shortest, min(cap.kv_positions, longest)))
    if cap.release:
        model.release_vision()
    give_back()
    return Serving(model, cap.release, tight=cap.release or cap.kv_positions < longest)


def tie(needs: memory.Needs | None, positions: int) -> None:
    """Last resort if the watchdog fails: limit mapped data (RLIMIT_DATA), so an allocation fails instead of the board.

    A failed allocation ends the worker, which says so, and the picture goes to the next one.
    """
    mapped_bytes = kib(Path("/proc/self/status").read_text(encoding="ascii"), "VmData")
    if needs is None or mapped_bytes is None:
        return
    longer_bytes = (needs.max_positions - positions) * needs.bytes_per_position
    limit_bytes = mapped_bytes + needs.stage_bytes + longer_bytes + ROPE_BYTES
    rlimits.limit_data(limit_bytes)


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
    parser.add_argument("--kv-precision", default="auto")
    return parser.parse_args()


def load(arguments: argparse.Namespace, start_s: float) -> tuple[Serving, WorkerReady]:
    """Import torch, decide on a device and a precision, size the cache by the budget, open the model.

    Raises ModelError, UnavailableError (a device, a precision or a library) or BudgetError.
    """
    import torch

    from edge_daemon.moondream import device
    from edge_daemon.moondream.config import load_config
    from edge_daemon.moondream.opening import open_chosen

    config = load_config(arguments.model)
    budget = memory.Budget(arguments.budget_bytes, arguments.budget_reason)
    told_room = partial(room, arguments.model, config, budget, resident_bytes(), arguments.kv_precision)
    choice = device.decide(arguments.model, config, arguments.device, arguments.precision, told_room)
    threads_reason = set_threads(arguments.threads)
    wanted = None if arguments.kv_positions == "auto" else int(arguments.kv_positions)
    budget, needs = size(arguments, config, choice)
    needs_told = told(needs) if choice.device == "cpu" else {}
    least_told = told(size(arguments, config, replace(choice, precision="int8"))[1]) if choice.or_int8 else {}
    try:
        fit = memory.fit(budget, needs, wanted)
    except BudgetError as error:
        raise BudgetError(str(error), needs_told) from error
    model = open_chosen(arguments.model, config, choice, fit.positions, arguments.kv_precision)
    give_back()  # what packing the weights left behind
    return Serving(model, fit.releases_vision, fit.tight), WorkerReady(
        model=config.name,
        note=config.note,
        precision=choice.precision,
        kv_positions=model.cache.positions,
        kv_bytes=model.cache.size_bytes,
        budget_bytes=budget.limit_bytes,
        rss_bytes=resident_bytes(),
        load_s=time.monotonic() - start_s,
        threads=torch.get_num_threads(),
        threads_reason=threads_reason,
        versions=versions(),
        engine=config.engine,
        device=choice.device,
        reason="; ".join(filter(None, (choice.reason, fit.reason))),
        warning=choice.warning,
        release_vision=fit.releases_vision,
        needs=needs_told,
        least_needs=least_told,
        lengths=list(config.templates.caption),
    )


def set_threads(configured: str) -> str:
    """Tell torch its threads; says why these. ONNX Runtime is told the same number."""
    import torch

    from edge_daemon.moondream import threads

    number, reason = threads.automatic(threads.cores_here())
    if configured != "auto":
        number, reason = int(configured), "configured"
    torch.set_num_threads(number)
    return reason


def size(arguments: argparse.Namespace, config: ModelConfig, choice: Choice) -> tuple[memory.Budget, memory.Needs]:
    """What the model may take, and what it takes where it runs.

    A CUDA device has memory of its own, and that is then what counts (never tried: we had none).
    """
    import torch

    from edge_daemon.moondream.footprint import footprint

    budget = memory.Budget(arguments.budget_bytes, arguments.budget_reason)
    runtime_bytes = resident_bytes()
    if choice.device == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info()
        budget, runtime_bytes = memory.Budget(free_bytes, "what the CUDA device has free"), 0
    taken = footprint(arguments.model, config, choice.precision, arguments.kv_precision)
    return budget, needs_of(taken, config, runtime_bytes)


def told(needs: memory.Needs) -> dict[str, int]:
    """The needs as WorkerReady carries them; how the vision encoder is treated is for the daemon to say."""
    values = asdict(needs)
    del values["releases_vision"]
    return values


def resident_bytes() -> int:
    """The program as it is now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    from importlib.metadata import version

    present = [name for name in ("torch", "tokenizers", "onnxruntime") if name in sys.modules]
    return {name: version(name) for name in present}


def answer(serving: Serving, request: Request, daemon: pipe.Pipe) -> Results | Failed:
    """All tasks of one request; one task's failure is its own."""
    from PIL.Image import frombuffer

    model = serving.model
    size = (request.width_px, request.height_px)
    try:
        picture = frombuffer("RGB", size, request.payload, "raw", "RGB", 0, 1)
    except ValueError as error:
        return Failed(f"{len(request.payload)} bytes are not an RGB picture of {size[0]}×{size[1]}: {error}")
    daemon.write(Progress("encode"))
    encode_s = model.encode(picture)
    if serving.releases_vision:
        model.release_vision()
    else:
        give_back()  # the vision encoder's work space and the decoder's need not both be there
    done = perform(model, request, daemon)
    if serving.tight:
        give_back()
    image, problem = imaged(picture, request, done)
    cache = model.cache
    return Results(done, encode_s * 1000, resident_bytes(), cache.allowed, cache.touched_bytes, problem, image)


def perform(model: Moondream, request: Request, daemon: pipe.Pipe) -> list[TaskResult]:
    """All tasks on the encoded picture, in their order: first what is said, together, then what is to be found."""
    from edge_daemon.moondream.generate import Sampling

    words = [task for task in request.tasks if task.kind in ("caption", "query")]
    sampling = Sampling(request.max_tokens, request.temperature, request.top_p)
    for task in words:
        daemon.write(Progress(task.id))
    answers = model.ask([(task.kind, task.text) for task in words], sampling, lambda _: daemon.write(Progress("token")))
    said = iter(answers)
    return [
        spoken(task, next(said)) if task.kind in ("caption", "query") else found(model, task, daemon)
        for task in request.tasks
    ]


def spoken(task: Task, said: Answer | CaptionError) -> TaskResult:
    """A caption or an answer, or why there is none."""
    if isinstance(said, CaptionError):
        return TaskResult(task.id, task.kind, "", [], 0, "", 0.0, 0.0, str(said))
    prefill_ms, generate_ms = said.prefill_s * 1000, said.generate_s * 1000
    return TaskResult(task.id, task.kind, said.text, [], said.tokens, said.finish_reason, prefill_ms, generate_ms)


def found(model: Moondream, task: Task, daemon: pipe.Pipe) -> TaskResult:
    """Boxes in the picture, or points."""
    from edge_daemon.moondream.model import Box, Point, clipped, each

    daemon.write(Progress(task.id))
    start_s, objects = time.perf_counter(), []

    def take(one: Box | Point) -> None:
        objects.append(asdict(clipped(one) if isinstance(one, Box) else one))
        daemon.write(Progress("object"))

    try:
        reason = each(model.boxes(task.text), take) if task.kind == "detect" else each(model.points(task.text), take)
    except CaptionError as error:
        return TaskResult(task.id, task.kind, "", [], 0, "", 0.0, 0.0, str(error))
    taken_ms = (time.perf_counter() - start_s) * 1000
    return TaskResult(task.id, task.kind, "", objects, 0, reason, 0.0, taken_ms)


def imaged(picture: Image, request: Request, done: list[TaskResult]) -> tuple[bytes, str]:
    """The picture as it is wanted back, or nothing, and why."""
    if request.image is None:
        return b"", ""
    from edge_daemon.framed import jpeg

    boxes = [(task.text, result) for task, result in zip(request.tasks, done, strict=True) if task.kind == "detect"]
    return jpeg(picture, request.image, boxes)


if __name__ == "__main__":
    sys.exit(main())
