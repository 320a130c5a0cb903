"""Commands from the broker: taken in measure, understood, carried out, answered.

Every command is answered on `response/<command>`, and with MQTT 5 also where its sender wants it. Whatever comes in,
the worst that follows is an answer that says why not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from edge_daemon import commands, config, reload
from edge_daemon.answers import UNKNOWN
from edge_daemon.captioner import Captioner
from edge_daemon.capture import AnyCapture
from edge_daemon.commands import SETTINGS, Command
from edge_daemon.config import Config
from edge_daemon.errors import BudgetError, ChildError, CommandError, ConfigError, ModelError
from edge_daemon.health import Health
from edge_daemon.inquiries import Inquiries
from edge_daemon.mqtt import Connection
from edge_daemon.settings import Settings
from edge_daemon.source_config import LiveSource
from edge_daemon.switches import Switches
from edge_daemon.token_bucket import TokenBucket
from edge_daemon.topics import JSON, Incoming, Publication, json_bytes

AT_ONCE, PER_MINUTE = 60, 120.0
"""Commands that are taken. Who sends more is told so as often as this as well, and then nothing."""
WRONG = "the configuration is wrong, so nothing was changed: {}"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What commands act upon."""

    captures: Mapping[str, AnyCapture]
    captioner: Captioner
    health: Health
    inquiries: Inquiries
    switches: Switches
    settings: Settings
    read_config: Callable[[], Config]
    """The configuration file as it is now. Raises ConfigError."""
    on_change: Callable[[], None]
    """Called when a source is another one: Home Assistant wants to know."""


class Controls:
    """All commands of one node."""

    def __init__(self, connection: Connection, running: Config, parts: Parts) -> None:
        """`running` is the configuration file as it was at the start, without what was set over MQTT."""
        self._connection = connection
        self._topics = connection.topics
        self._running = running
        self._parts = parts
        self._taken = TokenBucket(AT_ONCE, PER_MINUTE)
        self._refused = TokenBucket(AT_ONCE, PER_MINUTE)
        self._tasks: set[asyncio.Task[None]] = set()
        connection.subscribe(self._topics.incoming, self._on_message)

    async def stop(self) -> None:
        """Give up what is not answered yet."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_message(self, message: Incoming) -> None:
        addressed = self._topics.addressed(message.topic)
        if addressed is None or addressed[0] == "response" or addressed[1].startswith("answer/"):
            return  # our own words: to a command called trigger, of a question called set
        task = asyncio.create_task(self._handle(message, *addressed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: Incoming, first: str, rest: str) -> None:
        """One command, and its answer."""
        wait_s = self._taken.take(now_s := time.monotonic())
        if wait_s and self._refused.take(now_s):
            return
        is_request = first == "request"
        name = rest if is_request else SETTINGS.get(rest, ("set",))[0]
        transaction = None
        try:
            sources, retained = list(self._parts.captures), message.retain
            if is_request:
                command = commands.parse(rest, message.payload, sources, retained=retained)
            else:
                command = commands.parse_setting(first, rest, message.payload, sources, retained=retained)
            transaction = command.transaction
            if wait_s:
                raise CommandError(f"too many commands; the next one is accepted in {wait_s:.1f} s")
            log.info("command over MQTT: %s", message.topic)
            answer = commands.answered(transaction, await self._carry_out(command, rest))
        except CommandError as error:
            answer = commands.refused(CommandError(str(error), error.transaction or transaction))
        except asyncio.CancelledError:
            self._answer(name, message, commands.refused(CommandError("the service stops", transaction)))
            raise
        except Exception as error:
            log.exception("the command %s caused an internal error; please report it", message.topic)
            words = f"internal error; please report it: {type(error).__name__}"
            answer = commands.refused(CommandError(words, transaction))
        self._answer(name, message, answer)

    def _answer(self, name: str, message: Incoming, answer: bytes) -> None:
        """Without a connection nothing is sent: whoever asked has lost us as well, and asks again."""
        usual = self._topics.response(name)
        if message.response_topic and message.response_topic != usual and not self._is_ours(message.response_topic):
            self._publish(message.response_topic, answer, message.correlation)
        self._publish(usual, answer, message.correlation)

    def _publish(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        answer = Publication(topic, payload, False, content_type=JSON, correlation=correlation, once=True)
        self._connection.publish(answer)

    def _is_ours(self, topic: str) -> bool:
        """Whether an answer there could be taken for something that we say by ourselves."""
        prefixes = (self._topics.of("", "").rstrip("/"), self._running.homeassistant.prefix)
        return topic.startswith(tuple(f"{prefix}/" for prefix in prefixes))

    # ---- what each command does ---------------------------------------------------------------------------

    async def _carry_out(self, command: Command, topic: str) -> dict[str, Any]:
        """The data of the answer. Raises CommandError. `topic` is the end of the topic: the command, or the setting."""
        request = command.request
        match request:
            case commands.Caption() if topic == "trigger":
                assert request.source is not None
                return await self._parts.inquiries.trigger(request.source)
            case commands.Ask() if topic == "question/set":
                return await self._ask_once(request)
            case commands.Caption() | commands.Ask() | commands.Detect():
                return await self._parts.inquiries.answer(request)
            case commands.Pause(source, minutes):
                self._parts.switches.pause(source, minutes)
                return self._paused()
            case commands.Resume(source):
                self._parts.switches.resume(source)
                return self._paused()
            case commands.Set():
                return self._set(request)
            case commands.LogLevel(level):
                logging.getLogger().setLevel(level.upper())
                return {"level": level}
            case commands.Reload():
                return await self.reload()
            case commands.Stats():
                return self._stats()
            case commands.HealthCheck():
                return self._parts.health.document()
            case commands.RestartWorker():
                return await self._restart_worker()
            case _:
                assert_never(request)

    async def _ask_once(self, request: commands.Ask) -> dict[str, Any]:
        """The question in a topic of its own: question and answer stay there, or why there is none."""
        assert request.source is not None
        question, topic = request.question.ask, self._topics.asked(request.source)
        self._connection.state(self._topics.state(request.source, "question"), question.encode())
        try:
            made = await self._parts.inquiries.answer(request)
        except CommandError as error:
            none = {"question": question, "answer": "", "value": UNKNOWN, "error": str(error)}
            self._connection.state(topic, json_bytes(none))
            raise
        self._connection.state(topic, json_bytes(made))
        return made

    def _paused(self) -> dict[str, Any]:
        return {"paused_until": {name: capture.state.paused_until for name, capture in self._parts.captures.items()}}

    def _set(self, request: commands.Set) -> dict[str, Any]:
        capture = self._parts.captures[request.source]
        if request.interval_s is not None and not isinstance(capture.config, LiveSource):
            raise CommandError("interval_s: a folder has no interval; its pictures are taken when they appear")
        wanted = {
            "enabled": request.enabled,
            "interval_s": request.interval_s,
            "caption": request.length,
            "questions": request.questions,
        }
        changes = {key: value for key, value in wanted.items() if value is not None}
        if request.length is not None and (problem := self._no_such_length(request.length)):
            raise CommandError(f"length: {problem}")
        try:
            made = config.changed(capture.config, changes)
        except ConfigError as error:
            raise CommandError(str(error)) from error
        problem = self._parts.settings.change(request.source, changes)
        capture.config = made
        self._changed()
        kept = {"persisted": not problem, **({"problem": problem} if problem else {})}
        questions = made.model_dump(mode="json", include={"questions"})
        interval = {"interval_s": made.interval_s} if isinstance(made, LiveSource) else {}
        settings = {"enabled": made.enabled, "length": made.caption, **interval, **questions}
        return {"source": request.source, **settings, **kept, "restart_required": False}

    def _no_such_length(self, length: str) -> str:
        """Why there would be no caption of any picture; empty where there is one, or none is wanted."""
        ready = self._parts.captioner.state.ready
        if ready is None or not ready.lengths or length in ("none", *ready.lengths):
            return ""
        return f"{ready.model} has no {length!r} caption; it has: {', '.join(ready.lengths)}"

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; what holds now, and what needs a restart. Raises CommandError."""
        try:
            new = await asyncio.to_thread(self._parts.read_config)
        except ConfigError as error:
            raise CommandError(WRONG.format(error)) from error
        for name, source in new.sources.items():
            if problem := self._no_such_length(source.caption):
                raise CommandError(WRONG.format(f"sources.{name}.caption: {problem}"))
        outcome = reload.reloaded(self._running, new)
        self._running = outcome.running
        overridden: list[str] = []
        for name, capture in self._parts.captures.items():
            source = outcome.running.sources[name]
            capture.config = self._parts.settings.over_source(name, source)
            overridden += [f"sources.{name}.{key}" for key in reload.different(capture.config, source)]
        applied = [key for key in outcome.applied if key not in overridden]
        if "log_level" in outcome.applied:
            logging.getLogger().setLevel(new.log_level.upper())
        self._changed()
        # soon: first the answer is sent, which still goes to the broker that asked
        asyncio.get_running_loop().call_soon(self._connection.move, outcome.running.mqtt)
        outcomes = {"applied": applied, "overridden": overridden, "needs_restart": outcome.restart}
        return {**outcomes, "restart_required": bool(outcome.restart)}

    def _changed(self) -> None:
        """A source is another one now."""
        self._parts.switches.apply()
        self._parts.on_change()

    async def _restart_worker(self) -> dict[str, Any]:
        captioner = self._parts.captioner
        if captioner.state.ready is None:
            raise CommandError("the model is just starting for the first time, or is waiting for memory")
        await captioner.end("a command asked for it", at_once=True)
        try:
            ready = await captioner.ready(whatever=captioner.is_allowed)  # one try: who asked waits for an answer
        except (ChildError, ModelError, BudgetError) as error:
            raise CommandError(f"it was stopped, and does not start now: {error}") from error
        return {"model": ready.model, "load_s": round(ready.load_s, 1), "rss_bytes": ready.rss_bytes}

    def _stats(self) -> dict[str, Any]:
        """The figures of the health document that count something."""
        document = self._parts.health.document()
        worker = {key: document["worker"][key] for key in ("rss_bytes", "restarts", "expected_interval_s")}
        counted = ("captioned", "problems", "last_result_at")
        return {
            "uptime_s": document["uptime_s"],
            "rss_bytes": document["rss_bytes"],
            "worker": worker,
            "outbox": {key: value for key, value in document["outbox"].items() if isinstance(value, int)},
            "sources": {name: {key: s[key] for key in counted} for name, s in document["sources"].items()},
        }
