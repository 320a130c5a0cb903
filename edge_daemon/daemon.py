"""The architecture: opens the parts, runs one task for each, closes them in reverse order.

    grabbers ──► slots ──► caption task ──► outbox ──► publisher ──► broker
                   ▲           │ ▲                                     │
                   │           ▼ │                                     │
                   │          worker                                   │
                   └───────────────── remote (commands) ◄──────────────┘

This process is asyncio and plain Python: no torch, no numpy, no image library. Children may die; it must
live and always say what state it is in.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from edge_daemon import notify, rehearsal, wishes
from edge_daemon.captioner import Captioner
from edge_daemon.capture import SILENCE_S, AnyCapture
from edge_daemon.config import Config, OutboxConfig
from edge_daemon.cooling import Cooling
from edge_daemon.errors import CaptionError, ChildBootError, ChildEnded, ChildError
from edge_daemon.folder_capture import FolderCapture
from edge_daemon.gate import Passed
from edge_daemon.hangup import reload_on
from edge_daemon.health import Health
from edge_daemon.jobs import Job
from edge_daemon.live_capture import LiveCapture
from edge_daemon.memory_watchdog import MemoryWatchdog
from edge_daemon.messages import Frame, ImageWish, Results, Task
from edge_daemon.mqtt import Connection
from edge_daemon.outbox import Limits, Outbox
from edge_daemon.progress import PATIENCE_S, Progress, patiently
from edge_daemon.publisher import Publisher
from edge_daemon.remote import Remote
from edge_daemon.repeats import Repeats
from edge_daemon.results import Origin, Result, Trigger, results_of, utc
from edge_daemon.sensors import Sensors, system_dir
from edge_daemon.settings import Settings
from edge_daemon.slots import Slots
from edge_daemon.source_config import FolderConfig, LiveSource, SourceConfig
from edge_daemon.thermal import DutyCycle
from edge_daemon.topics import Topics
from edge_daemon.units import DAY_S, MIB
from edge_daemon.values import Values

WORKER_TRIES = 2
"""A picture that two workers died of is reported and left alone."""
STUCK_MARGIN_S = 60.0
DRAIN_S, WATCH_S = 3.0, 5.0
HEALTH_EVERY_S, HEALTH_PAUSE_S = 30.0, 1.0
log = logging.getLogger(__name__)


class Daemon:
    """One configuration, from start to stop."""

    def __init__(
        self,
        config: Config,
        model_directory: Path,
        outbox: Outbox,
        changed: asyncio.Event,
        variant_reason: str = "",
        read_config: Callable[[], Config] | None = None,
    ) -> None:
        """Make the parts; nothing runs yet. Call it from the event loop.

        `changed` wakes whoever reports health: the outbox, which is there already, sets it as all parts do.
        `read_config` reads the configuration again (None: it never changes), and may raise ConfigError.
        """
        self.config = config
        self.outbox = outbox
        self.topics = Topics(config.mqtt.base_topic, config.node)
        self.changed = changed
        self.written = asyncio.Event()
        self.stopping, self.hangup = asyncio.Event(), asyncio.Event()
        self.grace_s = config.model.stop_grace_s
        self.progress = Progress(time.monotonic)
        self.slots: Slots[Job] = Slots(config.sources, lambda name: self.captures[name].config.priority)
        self.connection = Connection(config.mqtt, self.topics, self._on_connection)
        self.caption_beat = self.progress.expect("caption", config.model.start_timeout_s + STUCK_MARGIN_S)
        self.values = Values()
        self.repeats = Repeats()
        self._told: set[tuple[str, str]] = set()
        """Sources and their tasks that had no outcome, the last time."""
        self.captioner = Captioner(config.model, model_directory, self.caption_beat, changed.set)
        duty = DutyCycle(config.thermal.slow_down_at_c, config.thermal.limit_at_c)
        self.cooling = Cooling(duty, Sensors(system_dir()), self.caption_beat, changed.set)
        self.memory = MemoryWatchdog(self.captioner, changed.set)
        self._allow_silence()
        self.captioner.state.variant_reason = variant_reason
        settings = Settings(config.state_dir / "settings.json")
        self.captures = {name: self._capture(name, source) for name, source in settings.over(config).sources.items()}
        self.health = Health(
            self.topics, self.connection, self.captioner, self.captures, outbox, duty, self.memory, self.progress.stuck
        )
        read = read_config or (lambda: config)
        self.remote = Remote(
            config, self.connection, self.captures, self.slots, self.captioner, self.health, settings, read, changed.set
        )

    def _on_connection(self) -> None:
        self.changed.set()
        self.remote.on_change()

    def _capture(self, name: str, config: SourceConfig) -> AnyCapture:
        if isinstance(config, FolderConfig):
            beat = self.progress.expect(f"capture {name}", SILENCE_S + config.decode_timeout_s + STUCK_MARGIN_S)

            async def deliver(frame: Frame) -> None:
                await patiently(self.slots.put(name, self._job(name, frame, "file")), beat)

            return FolderCapture(name, config, self.outbox, deliver, beat, self.changed.set)
        beat = self.progress.expect(f"capture {name}", SILENCE_S + STUCK_MARGIN_S)

        def renew(frame: Frame, why: Passed) -> bool:
            return self.slots.renew(name, self._job(name, frame, why))

        return LiveCapture(name, config, renew, beat, self.changed.set)

    def _job(self, source: str, frame: Frame, trigger: Trigger) -> Job:
        return Job(Origin(self.config.node, source, frame, trigger, time.monotonic()))

    async def run(self) -> None:
        """Run until told to stop.

        Raises ModelError, BudgetError or ChildBootError when the model cannot be started.
        """
        async with AsyncExitStack() as closing:
            self.health.publish()  # before a broker can take us: it has kept what was true in an earlier life
            self.connection.start()
            closing.push_async_callback(self.connection.stop)
            closing.push_async_callback(self._goodbye)
            closing.push_async_callback(lambda: self.captioner.stop(self.grace_s))
            closing.push_async_callback(self.remote.controls.stop)
            await self._until_stopped(self._start_worker())
            if self.stopping.is_set():
                return
            notify.notify("READY=1")
            try:
                await self._run_tasks()
            except ExceptionGroup as group:
                if len(group.exceptions) > 1:
                    raise
                raise group.exceptions[0] from None

    async def _start_worker(self) -> None:
        """Health says `starting` meanwhile. A model that waits for memory is the memory watchdog's from then on."""
        reporter = asyncio.create_task(self._report(), name="report")
        try:
            with suppress(ChildEnded):
                await self.captioner.ready()
        finally:
            reporter.cancel()

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        """Run `work` until it ends or fails, or until `stop` is called, which cancels it."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self.stopping.wait(), name="stop")
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _run_tasks(self) -> None:
        """All tasks, until `stop` is called. What one of them raises ends the others and comes out here."""
        watch_memory = self.memory.run(self.progress.expect("memory", STUCK_MARGIN_S))
        publish_beat = self.progress.expect("publish", STUCK_MARGIN_S)
        publisher = Publisher(self.outbox, self.connection, self.written, publish_beat, PATIENCE_S)
        reloading = reload_on(self.hangup, self.remote.controls.reload)
        async with asyncio.TaskGroup() as tasks:
            watching = (self._watch(), self.cooling.watch(), watch_memory, self.remote.discovery.run(), reloading)
            beside = [tasks.create_task(c) for c in (publisher.run(), self._report(), *watching)]
            producers = [tasks.create_task(c.run(), name=f"capture {c.name}") for c in self.captures.values()]
            producers.append(tasks.create_task(self._caption(), name="caption"))
            await self.stopping.wait()
            for task in producers:  # first, because what they finish must still go out
                task.cancel()
            await asyncio.wait(producers)
            await self._drain()
            for task in beside:
                task.cancel()

    async def _drain(self) -> None:
        """Give the publisher a moment for the last results; what remains is sent after the next start."""
        end_s = time.monotonic() + DRAIN_S
        while len(self.outbox) and self.connection.connected.is_set() and time.monotonic() < end_s:
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Begin to stop; the caption in flight may finish."""
        if not self.stopping.is_set():
            log.info("stopping")
            notify.notify("STOPPING=1\nSTATUS=finishing the caption in progress")
            self.stopping.set()

    def _allow_silence(self) -> None:
        """The caption task may wait as long as a worker may be silent or may start."""
        silence_s = max(self.captioner.pace.silence_s, self.config.model.start_timeout_s)
        self.progress.allow("caption", silence_s + STUCK_MARGIN_S)

    async def _caption(self) -> None:
        """Take the next picture, have it captioned, keep the result: for ever."""
        await self._rehearse()
        while True:
            self._allow_silence()
            await patiently(self.captioner.until_allowed(), self.caption_beat)
            await self.cooling.rest()  # first, then take: a live source goes on to renew its picture
            job = await patiently(self.slots.take(), self.caption_beat)
            if self._is_stale(job):
                continue
            work = asyncio.ensure_future(self._one_picture(job))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await self._finish(work)
                raise

    def _is_stale(self, job: Job) -> bool:
        origin, capture = job.origin, self.captures.get(job.origin.source)
        return job.answer is None and capture is not None and capture.is_stale(origin.frame, origin.taken_s)

    async def _rehearse(self) -> None:
        """See what a picture takes here, if none is waiting; nothing of it is published."""
        await patiently(self.captioner.until_allowed(), self.caption_beat)
        if self.slots.waiting:
            return
        try:
            await self.captioner.rehearse(rehearsal.request())
        except ChildBootError:
            raise
        except (CaptionError, ChildError) as error:
            log.warning("how long a picture takes here is not known yet: %s", error)
            return
        parts = ", ".join(f"{name.removesuffix('_s')} {s:.2f} s" for name, s in self.captioner.state.rehearsal.items())
        log.info("a picture takes about %.1f s here: %s", self.captioner.pace.interval_s, parts)

    async def _finish(self, work: asyncio.Future[None]) -> None:
        """The service stops: the picture in flight has its grace, unless it waits for memory."""
        try:
            await asyncio.wait([work], timeout=self.grace_s if self.captioner.is_allowed else 0.0)
        finally:
            if work.cancel():
                log.warning("the caption in progress is not done in time and is dropped")
                self.grace_s = 0.0  # the worker has had it

    async def _one_picture(self, job: Job) -> None:
        origin, capture = job.origin, self.captures.get(job.origin.source)
        tasks = job.tasks or (wishes.tasks_of(capture.config) if capture else [])
        image = wishes.image_of(capture.config) if capture and job.is_kept else None
        log.debug("source %s: captioning %s", origin.source, origin.frame.file)
        start_s = time.monotonic()
        try:
            results = await self._ask(origin, tasks, image)
        except ChildBootError:
            raise
        except (CaptionError, ChildError) as error:
            job.failed(str(error))
            if capture and job.answer is None:
                capture.failed(origin.frame, str(error))
            return
        finally:
            self.cooling.duty.worked(start_s, time.monotonic())
        worker = self.captioner.state.ready
        assert worker is not None
        self._tell(origin.source, results)
        errors = [outcome.error for outcome in results.tasks]
        made = results_of(origin, tasks, results, worker, time.monotonic())
        if capture and job.is_kept:
            made = self.values.typed(origin.source, capture.config.questions, made)
            if isinstance(capture.config, LiveSource):
                made = self.repeats.handled(origin.source, capture.config.repeats, made, self.connection.sessions)
            self._show(origin.source, results)
            self._keep(origin, made, capture, came=not all(errors))
        job.done(made, "; ".join(errors))

    def _tell(self, source: str, results: Results) -> None:
        """What a picture did not get; once, until a later one does."""
        problems = {outcome.id: outcome.error and f"task {outcome.id}: {outcome.error}" for outcome in results.tasks}
        for what, problem in {**problems, "": results.image_problem}.items():
            if problem and (source, what) not in self._told:
                capture = self.captures.get(source)
                words = capture.note(capture.config.place, problem) if capture else problem
                log.warning("source %s: %s", source or "(a command)", words)
            (self._told.add if problem else self._told.discard)((source, what))

    def _show(self, source: str, results: Results) -> None:
        """Publish the image, before what is said about it; it is not kept, and never one of another picture."""
        if results.payload or results.image_problem:
            self.connection.state(self.topics.image(source), results.payload, qos=0)

    def _keep(self, origin: Origin, made: list[Result], capture: AnyCapture, came: bool) -> None:
        """Into the outbox; from here on nothing is lost. A file that was asked for keeps its turn as a new one."""
        capture.captioned(origin.frame, origin.source in self.values.doubted)
        documents = [result.document() for result in made]
        self.outbox.put(origin.source, documents, origin.frame.file if origin.trigger == "file" else None)
        if came:  # something, if only what is suppressed as a repetition
            capture.state.captioned += 1
            capture.state.last_result_at = utc(time.time())
        self.written.set()
        self.changed.set()
        for result in made:
            log.info("source %s: %s (%.1f s)", origin.source, result.words, result.latency_ms.total / 1000)

    async def _ask(self, origin: Origin, tasks: list[Task], image: ImageWish | None) -> Results:
        """Ask the worker; when it dies, ask the next one, once; when it is ended on purpose, whenever there is one."""
        request = wishes.request(origin.frame, tasks, image, self.config.model)
        tries_left = WORKER_TRIES
        while True:
            await patiently(self.captioner.until_allowed(), self.caption_beat)
            try:
                return await self.captioner.run(request)
            except ChildBootError:
                raise
            except ChildEnded:
                continue
            except ChildError:
                tries_left -= 1
                if not tries_left:
                    raise

    async def _watch(self) -> None:
        """Feed systemd's watchdog as long as every task makes progress."""
        interval_s = min(notify.watchdog_interval_s() or WATCH_S, WATCH_S)
        while True:
            if news := self.progress.news():
                log.error("%s", news)
                self.changed.set()
            if not self.progress.stuck():
                notify.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    async def _report(self) -> None:
        """Publish health when something changed, at most once a second, and every now and then."""
        while True:
            self.changed.clear()
            self.health.publish()
            await asyncio.sleep(HEALTH_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEALTH_EVERY_S):
                    await self.changed.wait()

    async def _goodbye(self) -> None:
        """The last health; a daemon that failed at once waits a moment for the broker to tell it why."""
        if self.captioner.state.phase == "failed":
            await asyncio.wait([asyncio.ensure_future(self.connection.connected.wait())], timeout=DRAIN_S)
        self.health.publish()


def limits_of(outbox: OutboxConfig) -> Limits:
    """How much may wait for the broker, in bytes and seconds."""
    return Limits(outbox.max_mib * MIB, outbox.max_age_days * DAY_S)


async def run(
    config: Config, model_directory: Path, variant_reason: str = "", read_config: Callable[[], Config] | None = None
) -> None:
    """Run a daemon until SIGTERM or SIGINT; a second signal ends it at once. At SIGHUP `read_config` reads the file.

    `variant_reason` says why this model, where the user left the choice to us.
    """
    if variant_reason:
        log.info("model %s", variant_reason)
    changed = asyncio.Event()
    outbox = Outbox(config.state_dir / "outbox.db", limits_of(config.outbox), on_change=changed.set)
    try:
        daemon = Daemon(config, model_directory, outbox, changed, variant_reason, read_config)
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C ends it as any program
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _on_signal, daemon, asyncio.current_task())
            loop.add_signal_handler(signal.SIGHUP, daemon.hangup.set)  # also while the model is loaded: done then
        await daemon.run()
    finally:
        outbox.close()


def _on_signal(daemon: Daemon, main: asyncio.Task[Any] | None) -> None:
    if daemon.stopping.is_set() and main is not None:
        daemon.grace_s = 0.0
        main.cancel()
    daemon.stop()
