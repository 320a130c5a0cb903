"""The daemon's side of the worker: start it, hand it one request at a time, start it again when it died.

Two tasks use it. One asks (`run`), the other watches the memory: it caps the worker (`cap`), lets nobody ask
(`forbid`), ends it and starts it (`end`, `ready`). An end on purpose is no death: nobody waits for the next start, and
no picture is to blame.

Knows how long a worker may stay silent and what its deaths mean; does not know what is asked or why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from edge_daemon import environment, memory
from edge_daemon.allowance import Allowance
from edge_daemon.child import Child
from edge_daemon.config import ModelConfig
from edge_daemon.deaths import COMES_AGAIN, Witness
from edge_daemon.errors import (
    BudgetError,
    CaptionError,
    ChildBootError,
    ChildDied,
    ChildEnded,
    ChildError,
    ChildTimeout,
    ModelError,
)
from edge_daemon.growth import Growth
from edge_daemon.messages import Cap, Failed, Progress, Request, Results, WorkerReady, WorkerRefused
from edge_daemon.progress import patiently
from edge_daemon.readings import Reading
from edge_daemon.restart_policy import Pace, RestartPolicy
from edge_daemon.units import MIB
from edge_daemon.worker_state import WorkerPhase, WorkerState

SEND_S = 30.0
"""A ready worker reads a request within this, however busy the board is."""
END_S = 5.0
"""A worker between two captions leaves at once."""
NOT_NOW = "not enough free memory to make captions now"
PROGRAM_BYTES = 160 * MIB
"""What a worker takes before it can say what it needs: importing torch takes 150 (x86-64), and any model far more."""
log = logging.getLogger(__name__)


class Captioner:
    """One worker at a time."""

    def __init__(
        self,
        config: ModelConfig,
        directory: Path,
        beat: Callable[[], None],
        on_change: Callable[[], None],
        command: Sequence[str] = (sys.executable, "-P", "-m", "edge_daemon.worker"),
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
        self.witness = Witness()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self.growth = Growth()
        """Of the worker, picture after picture; the memory watchdog acts on it."""
        self._starting = asyncio.Lock()
        self._newborn: Child | None = None
        self._busy = False
        self._ending = ""
        """Why the worker is to end, or is ending, on purpose."""
        self._answered = False
        """Whether any worker has ever answered."""
        self._allowance = Allowance(config.memory_limit_bytes)
        self._refused_needs: memory.Needs | None = None
        """What the worker takes that found too little memory, while there was none that found enough."""
        self.waits_for = ""
        """The memory that others have, in words, while there is no worker for want of it."""

    @property
    def pid(self) -> int | None:
        """Of the worker that runs or starts."""
        child = self._child or self._newborn
        return None if child is None else child.pid

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker that takes requests."""
        return self._child is not None and self._child.returncode is None

    @property
    def busy(self) -> bool:
        """Whether it is answering."""
        return self._busy

    @property
    def is_allowed(self) -> bool:
        """Whether anything may be asked."""
        return self._allowed.is_set()

    async def until_allowed(self) -> None:
        """Wait until something may be asked."""
        await self._allowed.wait()

    def allow(self) -> None:
        """There is memory enough: ask."""
        self._allowed.set()

    def forbid(self) -> None:
        """There is too little memory: nobody asks anything, until it is allowed again."""
        self._allowed.clear()

    @property
    def needs(self) -> memory.Needs | None:
        """What the worker takes, as it says itself; None when it does not, or there was none yet.

        While there is none, what the next one can do with: of `auto` that may be another precision.
        """
        if self.state.ready is None:
            return self._refused_needs
        return (None if self.is_ready else self.less) or memory.needs_from(self.state.ready.needs)

    @property
    def less(self) -> memory.Needs | None:
        """What the next worker can do with, where that is less than what this one takes."""
        return None if self.state.ready is None else memory.needs_from(self.state.ready.least_needs)

    def budget(self, reading: Reading) -> memory.Budget:
        """What a worker may have at this moment."""
        return self._allowance.budget(reading, time.monotonic())

    async def ready(self, whatever: bool = False) -> WorkerReady:
        """The worker's report; starts it first if it is not there, and only while it may be asked, or `whatever`.

        Raises ModelError or BudgetError when it refuses, ChildBootError when starting it is hopeless, ChildEnded when
        it is ended on purpose meanwhile, or has to wait for memory that others have.
        """
        async with self._starting:
            await self._notice()
            while self._child is None:
                if not (whatever or self.is_allowed):
                    raise ChildEnded(NOT_NOW)
                try:
                    await self._start()
                except ChildEnded:
                    self._newborn = None
                    raise
                except ChildError as error:
                    child, self._newborn = self._newborn, None
                    await self._after_death(error, child)
                    if whatever:  # whether and when to try again is for who asked to say
                        raise ChildEnded(self.state.last_death) from error
        assert self.state.ready is not None
        return self.state.ready

    async def _notice(self) -> None:
        """A worker that died while nobody asked it anything is no picture's fault."""
        child = self._child
        if child is not None and child.returncode is not None and not self._busy:
            try:
                await child.receive(SEND_S)
            except ChildError as error:
                await self._after_death(error, child)

    async def run(self, request: Request) -> Results:
        """Answer one request.

        Raises CaptionError (the worker lives), ChildError (it is gone), or ChildEnded (ask again, when it is allowed).
        """
        answer, taken_s, silence_s = await self._answer(request)
        self.pace.pictured(taken_s, silence_s)
        return answer

    async def cap(self, positions: int, release: bool) -> None:
        """Have the worker do with a KV cache of so many positions, from this moment on; nothing without a worker."""
        if self._child is None:
            return
        self.state.kv_positions, self.state.releases = positions, release
        with suppress(ChildError):  # whoever asks next finds it dead
            await self._child.send(Cap(positions, release), SEND_S)

    async def end(self, why: str, at_once: bool = False) -> None:
        """End the worker on purpose: between two captions, or `at_once` in the middle of one. A start is given up."""
        if self.pid is None:
            return
        self._ending = why
        if self._newborn is not None:
            await self._newborn.kill()
        elif self._child is not None and self._busy:
            if at_once:
                await self._child.kill()
        else:
            await self._bury()

    async def _bury(self) -> None:
        """Do what `end` has asked for, between two captions."""
        async with self._starting:  # two of them at a time would be too much
            child, self._child = self._child, None
            if child is not None:
                await child.stop(END_S)
                self._ended()
            self._ending = ""

    def _ended(self) -> str:
        why, self._ending = self._ending, ""
        self.state.recycles += 1
        self.state.rss_bytes = 0
        log.info("the model's process was stopped: %s", why)
        self._change("unloaded")
        return why

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
        if problem := answer.tasks[0].error:
            raise CaptionError(problem)
        self.state.rehearsed(answer)
        self._on_change()

    async def _answer(self, request: Request) -> tuple[Results, float, float]:
        """The results, the seconds that they took, and the longest of them without a word from the worker."""
        if not self.is_allowed:
            raise ChildEnded(NOT_NOW)
        await self.ready()
        self._busy = True
        try:
            return await self._converse(request)
        finally:
            self._busy = False
            if self._ending:
                await self._bury()

    async def _converse(self, request: Request) -> tuple[Results, float, float]:
        child = self._child
        assert child is not None
        longest_s, start_s = 0.0, time.monotonic()
        heard_s = start_s
        try:
            await child.send(request, SEND_S)
            while True:
                answer = await child.receive(self.pace.silence_s)
                heard_s, before_s = time.monotonic(), heard_s
                longest_s = max(longest_s, heard_s - before_s)
                if not isinstance(answer, Progress):
                    break
                self._beat()
        except ChildError as error:
            await self._after_death(error, child)
            raise type(error)(self.state.last_death) from error
        if isinstance(answer, Failed):
            raise CaptionError(answer.reason)
        if not isinstance(answer, Results) or [t.id for t in answer.tasks] != [t.id for t in request.tasks]:
            await child.kill()
            wrong = ChildError(f"the worker sent an unexpected answer: {type(answer).__name__}")
            await self._after_death(wrong, child)
            raise wrong
        self._answered = True
        self.state.rss_bytes = answer.rss_bytes
        held_bytes = self.witness.files.read(self.pid).worker_bytes  # while it rests
        if held_bytes is not None:
            self.growth.pictured(max(0, held_bytes - answer.kv_touched_bytes))
        return answer, heard_s - start_s, longest_s

    async def stop(self, grace_s: float) -> None:
        """Let the worker leave, or kill it after the grace."""
        if self._child is not None:
            await self._child.stop(grace_s)
            self._child = None

    async def _start(self) -> None:
        budget = self.budget(self.witness.files.read(None))
        if budget.limit_bytes < PROGRAM_BYTES <= self._most_bytes():  # it would be killed, and perhaps not it alone
            had, needs = budget.limit_bytes / MIB, PROGRAM_BYTES / MIB
            self._wait(f"it may use {had:.0f} MiB ({budget.reason}), and its program alone takes {needs:.0f}")
        argv = [*self._command, "--model", str(self.directory)]
        argv += ["--budget-bytes", str(budget.limit_bytes), "--budget-reason", budget.reason]
        argv += ["--threads", str(self.config.threads), "--kv-positions", str(self.config.kv_positions)]
        argv += ["--device", self.config.device, "--precision", self.config.precision]
        argv += ["--kv-precision", self.config.kv_precision]
        self._change("starting")
        self.witness.begin()
        self._newborn = child = await Child.start("worker", argv, environment.WORKER)
        try:
            ready = await self._handshake(child)
        except BaseException:
            await child.kill()
            raise
        self._child, self._newborn, self.waits_for = child, None, ""
        told = self.state.ready.warning if self.state.ready else ""
        self.state.begun(ready)
        self._policy.ready(time.monotonic())
        self._change("ready")
        cache = f"{ready.kv_positions} KV positions ({ready.kv_bytes / MIB:.0f} MiB)"
        takes = f"{cache}, {ready.threads} threads ({ready.threads_reason}), {ready.rss_bytes / MIB:.0f} MiB resident"
        log.info("model %s is ready after %.1f s: %s", ready.model, ready.load_s, takes)
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
                raise ChildError(f"the worker's first message was {type(answer).__name__}")

    def _refused(self, refusal: WorkerRefused) -> NoReturn:
        """What was there once may come back, memory or the model's disk: that is a death like others.

        Memory that others have now is waited for: from here on the watchdog says when. Anything else is final.
        """
        if self.state.ready is not None:
            raise ChildError(refusal.reason)
        needs = memory.needs_from(refusal.needs)
        if refusal.kind == "memory" and needs is not None and needs.least_bytes <= self._most_bytes():
            self._refused_needs = needs
            self._wait(refusal.reason)
        self.state.last_death = refusal.reason
        self._change("failed")
        raise (BudgetError if refusal.kind == "memory" else ModelError)(refusal.reason)

    def _most_bytes(self) -> int:
        """What a worker could have, were it alone here with us."""
        files = self.witness.files
        own_bytes = files.read(os.getpid()).worker_bytes or 0
        return self._allowance.most_bytes(files.read(None), files.board_bytes(), own_bytes)

    def _wait(self, reason: str) -> NoReturn:
        """There is no worker until others give memory back; the memory watchdog sees when that is."""
        if not self.waits_for:
            log.warning("the model is waiting for memory: %s", reason)
        self.waits_for, self._ending = reason, ""
        self.forbid()
        self._change("unloaded")
        raise ChildEnded(reason)

    async def _after_death(self, error: ChildError, child: Child | None) -> None:
        """Note it, and wait as long as the policy says.

        Raises ChildBootError when it says stop, and ChildEnded when it was no death.
        """
        self._child = None
        if self._ending:
            raise ChildEnded(self._ended()) from error
        returncode = None if child is None else child.returncode
        now_s, answered = time.monotonic(), self._answered
        self.state.restarts += 1
        self.state.last_death = self.witness.explain(str(error), returncode)
        if self.witness.killed_by_kernel(returncode):
            last = self.witness.last
            if last is not None and last.worker_bytes is not None and self.needs is not None:
                self._allowance.killed(last.worker_bytes, self.needs, now_s)
        again = returncode in COMES_AGAIN and not answered
        # Somebody else killed it, most often for memory, which comes back.
        passes = isinstance(error, ChildDied) and error.returncode == -signal.SIGKILL
        delay_s = self._policy.died(str(error), now_s, comes_again=again, passes=passes)
        if delay_s is None:
            self._change("failed")
            raise ChildBootError(f"the model cannot run here: {self.state.last_death}") from error
        log.error("%s; next start in %.0f s", self.state.last_death, delay_s)
        self._change("restarting")
        await patiently(asyncio.sleep(delay_s), self._beat)

    def _change(self, phase: WorkerPhase) -> None:
        self.state.phase = phase
        self._on_change()
