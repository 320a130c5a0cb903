"""The daemon's side of the worker: start it, hand it one request at a time, start it again when it died.

Knows how long a worker may stay silent and what its deaths mean; does not know what is asked or why.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from edge_daemon import memory
from edge_daemon.child import Child
from edge_daemon.config import MIB, ModelConfig
from edge_daemon.errors import BudgetError, CaptionError, ChildBootError, ChildError, ChildTimeout, ModelError
from edge_daemon.messages import Failed, Progress, Request, Results, WorkerReady, WorkerRefused
from edge_daemon.supervisor import Pace, RestartPolicy

SEND_S = 30.0
"""A ready worker reads a request within this, however busy the board is."""
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
"""Of a worker, where its owner has not set it. glibc reads it before a process begins, so the daemon must say it: each
arena keeps freed memory of its own, and there would be up to eight for each core."""
log = logging.getLogger(__name__)


@dataclass
class WorkerState:
    """What health says about the worker."""

    state: str = "starting"
    restarts: int = 0
    last_death: str = ""
    rss_bytes: int = 0
    ready: WorkerReady | None = None
    """The report of the worker that runs, or of the last one that did."""
    variant_reason: str = ""
    """Why this variant of the model, where we chose it."""
    rehearsal: dict[str, float] = field(default_factory=dict)
    """What the stages of the picture took that was captioned at the start, in seconds."""


class Captioner:
    """One worker at a time."""

    def __init__(
        self,
        config: ModelConfig,
        directory: Path,
        beat: Callable[[], None],
        on_change: Callable[[], None],
        command: Sequence[str] = (sys.executable, "-m", "edge_daemon.worker"),
    ) -> None:
        """`command` is the worker; its options are added to it."""
        self.config = config
        self.directory = directory
        self.state = WorkerState()
        configured = config.silence_timeout_s
        self.pace = Pace(None if configured == "auto" else configured)
        self._beat = beat
        self._on_change = on_change
        self._command = command
        self._policy = RestartPolicy()
        self._child: Child | None = None

    async def ready(self) -> WorkerReady:
        """The worker's report; starts it first if it is not there.

        Raises ModelError or BudgetError when it refuses, ChildBootError when starting it is hopeless.
        """
        while self._child is None:
            try:
                await self._start()
            except ChildError as error:
                await self._after_death(error)
        assert self.state.ready is not None
        return self.state.ready

    async def run(self, request: Request) -> Results:
        """Answer one request. Raises CaptionError (the worker lives) or ChildError (it is gone)."""
        answer, taken_s, silence_s = await self._answer(request)
        self.pace.pictured(taken_s, silence_s)
        return answer

    async def rehearse(self, request: Request) -> None:
        """Answer a request that nobody made, for what it takes. Raises as `run`; who stops waiting ends the worker."""
        try:
            answer, taken_s, silence_s = await self._answer(request)
        except asyncio.CancelledError:
            if self._child is not None:
                await self._child.kill()
                self._child = None
            raise
        self.pace.rehearsed(taken_s, silence_s)
        task = answer.tasks[0]
        if task.error:
            raise CaptionError(task.error)
        self.state.rehearsal = {
            "encode_s": round(answer.encode_ms / 1000, 3),
            "prefill_s": round(task.prefill_ms / 1000, 3),
            "token_s": round(task.generate_ms / 1000 / max(1, task.tokens), 4),
        }
        self._on_change()

    async def _answer(self, request: Request) -> tuple[Results, float, float]:
        """The results, the seconds that they took, and the longest of them without a word from the worker."""
        await self.ready()
        assert self._child is not None
        longest_s, start_s = 0.0, time.monotonic()
        heard_s = start_s
        try:
            await self._child.send(request, SEND_S)
            while True:
                answer = await self._child.receive(self.pace.silence_s)
                heard_s, before_s = time.monotonic(), heard_s
                longest_s = max(longest_s, heard_s - before_s)
                if not isinstance(answer, Progress):
                    break
                self._beat()
        except ChildError as error:
            await self._after_death(error)
            raise
        if isinstance(answer, Failed):
            raise CaptionError(answer.reason)
        if not isinstance(answer, Results) or [t.id for t in answer.tasks] != [t.id for t in request.tasks]:
            await self._child.kill()
            await self._after_death(ChildError(f"the worker answered what was not asked: {type(answer).__name__}"))
            raise ChildError(self.state.last_death)
        self.state.rss_bytes = answer.rss_bytes
        return answer, heard_s - start_s, longest_s

    async def stop(self, grace_s: float) -> None:
        """Let the worker leave, or kill it after the grace."""
        if self._child is not None:
            await self._child.stop(grace_s)
            self._child = None

    async def _start(self) -> None:
        configured = self.config.memory_limit_mib
        limits = memory.read_limits(None if configured == "auto" else configured * MIB)
        budget = memory.budget(limits)
        argv = [*self._command, "--model", str(self.directory)]
        argv += ["--budget-bytes", str(budget.limit_bytes), "--budget-reason", budget.reason]
        argv += ["--threads", str(self.config.threads), "--kv-positions", str(self.config.kv_positions)]
        argv += ["--device", self.config.device, "--precision", self.config.precision]
        argv += ["--kv-precision", self.config.kv_precision]
        self._change("starting")
        child = await Child.start("worker", argv, ENVIRONMENT)
        try:
            ready = await self._handshake(child)
        except BaseException:
            await child.kill()
            raise
        self._child = child
        told = self.state.ready.warning if self.state.ready else ""
        self.state.ready = ready
        self.state.rss_bytes = ready.rss_bytes
        self._policy.ready(time.monotonic())
        self._change("ready")
        log.info(
            "model %s is ready after %.1f s: %d KV positions (%.0f MiB), %d threads (%s), %.0f MiB resident",
            *(ready.model, ready.load_s, ready.kv_positions, ready.kv_bytes / MIB, ready.threads, ready.threads_reason),
            ready.rss_bytes / MIB,
        )
        log.info("engine %s, %s on %s: %s", ready.engine, ready.precision, ready.device, ready.reason)
        if ready.warning and ready.warning != told:  # once, however often the worker starts
            log.warning("%s", ready.warning)

    async def _handshake(self, child: Child) -> WorkerReady:
        deadline_s = time.monotonic() + self.config.start_timeout_s
        while True:
            try:
                answer = await child.receive(max(0.0, deadline_s - time.monotonic()))
            except ChildTimeout as error:  # the same words every time: what never becomes ready is hopeless
                raise ChildTimeout(f"the worker was not ready within {self.config.start_timeout_s:.0f} s") from error
            self._beat()
            if isinstance(answer, WorkerReady):
                return answer
            if isinstance(answer, WorkerRefused):
                self._refused(answer)
            if not isinstance(answer, Progress):
                raise ChildError(f"the worker began with {type(answer).__name__}")

    def _refused(self, refusal: WorkerRefused) -> NoReturn:
        """Memory that was there once may come back: that is a death like others. Anything else is final."""
        if refusal.kind == "memory" and self.state.ready is not None:
            raise ChildError(refusal.reason)
        self.state.last_death = refusal.reason
        self._change("failed")
        raise (BudgetError if refusal.kind == "memory" else ModelError)(refusal.reason)

    async def _after_death(self, error: ChildError) -> None:
        """Note it, and wait as long as the policy says. Raises ChildBootError when it says stop."""
        self._child = None
        self.state.restarts += 1
        self.state.last_death = str(error)
        delay_s = self._policy.died(str(error), time.monotonic())
        if delay_s is None:
            self._change("failed")
            raise ChildBootError(f"the model cannot be started here: {error}") from error
        log.error("%s; next start in %.0f s", error, delay_s)
        self._change("restarting")
        end_s = time.monotonic() + delay_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._beat()
            await asyncio.sleep(min(left_s, 1.0))

    def _change(self, state: str) -> None:
        self.state.state = state
        self._on_change()
