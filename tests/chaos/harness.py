"""One run: all is started, fed and ill-treated by the plan; then it is mended, and what was seen is collected."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edge_daemon.demo.broker import free_port
from tests.chaos import checks, deeds
from tests.chaos.broker import KeptBroker, Subscriber, retained
from tests.chaos.confinement import Disk, Memory, Missing
from tests.chaos.deeds import World
from tests.chaos.evidence import Done, Event, Evidence
from tests.chaos.packets import Publish
from tests.chaos.pictures import NODE, Feeder, Stock
from tests.chaos.plan import SOURCES, Deed
from tests.chaos.proxy import Proxy
from tests.chaos.service import FILLER, Service, configuration, until

BASE = f"edge-daemon/{NODE}"
READY_S = 120.0
RECOVERY_S = 240.0
"""After the last deed is mended, until all is delivered: longer than any pause before the next start of a child."""
REST_S = 2.0
RETRY_S = 15.0
"""After a full disk has room again, until what was kept in memory must have been written."""
LEAVE_S = 3.0
"""After a clean stop, until its children must have gone."""
T = TypeVar("T")


@dataclass
class Book:
    """The results that passed by, as the proxy and the subscriber saw them."""

    clock: Callable[[], float]
    published: list[Event] = field(default_factory=list)
    confirmed: list[Event] = field(default_factory=list)
    states: dict[str, bytes] = field(default_factory=dict)
    """The last confirmed payload of other topics."""
    ids: set[str] = field(default_factory=set)
    """Of confirmed results."""

    def on_published(self, message: Publish) -> None:
        """The daemon has sent this."""
        if message.topic.endswith("/event"):
            self.published.append(event(self.clock(), message.payload))

    def on_confirmed(self, message: Publish) -> None:
        """The broker has it."""
        if message.topic.endswith("/event"):
            self.confirmed.append(event(self.clock(), message.payload))
            self.ids.add(self.confirmed[-1].id)
        else:
            self.states[message.topic] = message.payload

    def health(self) -> dict[str, Any]:
        """The last health document that the broker confirmed."""
        found: dict[str, Any] = json.loads(self.states.get(f"{BASE}/health", b"{}"))
        return found


def event(at_s: float, payload: bytes) -> Event:
    """A result from its JSON."""
    document = json.loads(payload)
    replayed = document.pop("replayed")
    words = document.get("caption", document.get("answer", ""))
    body = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return Event(
        at_s=at_s,
        id=document["id"],
        source=document["source"],
        task=document["task"],
        seq=document["seq"],
        file=document["file"],
        words=words,
        finish_reason=document["finish_reason"],
        replayed=replayed,
        body=body,
    )


class Run:
    """One run in one directory."""

    def __init__(self, directory: Path, plan: list[Deed], seed: int, run_s: float) -> None:
        self.directory = directory
        self.run_s = run_s
        self.skipped: dict[str, str] = {}
        """Kinds of deeds that this machine does not allow, and why."""
        self.late: list[str] = []
        """What did not come in time; the checks will say what that means."""
        self.oom_kills = 0
        self._plan = plan
        self._dice = random.Random(seed)
        self._parts: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._done: list[Done] = []
        self._now: dict[int, str] = {}
        started_s = time.monotonic()
        self._clock: Callable[[], float] = lambda: time.monotonic() - started_s
        self._book = Book(self._clock)
        self._collected: dict[str, Any] = {}
        self._mended_s = 0.0
        """When all was well at the end; what was in memory only has been written by then."""

    async def __call__(self) -> Evidence:
        """Do all of it. Raises UnavailableError without a broker."""
        async with AsyncExitStack() as closing:
            world = await self._open(closing)
            watching = asyncio.create_task(world.service.watch())
            keeping = asyncio.create_task(world.service.keep())
            showing = asyncio.create_task(self._show(world))
            closing.callback(showing.cancel)
            try:
                await self._run(world)
                await self._stop(world)
                await keeping
            finally:
                await world.service.stop(again=False)
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            return self._evidence(world)

    async def _open(self, closing: AsyncExitStack) -> World:
        """Everything but the daemon runs."""
        folders = {source: self.directory / source for source in SOURCES}
        state = self.directory / "state"
        for folder in (*folders.values(), state):
            folder.mkdir()
        stock = await asyncio.to_thread(Stock.make, self.directory / "stock")
        broker = KeptBroker(self.directory / "broker")
        await asyncio.to_thread(broker.start)
        closing.callback(broker.stop)
        subscriber = Subscriber(broker.port, BASE, self._clock)
        closing.callback(subscriber.stop)
        await asyncio.to_thread(subscriber.wait)
        proxy = Proxy(free_port(), broker.port, self._book.on_published, self._book.on_confirmed)
        await proxy.listen()
        closing.push_async_callback(proxy.refuse)
        service = Service(self.directory, configuration(proxy.port, state, folders), self._clock)
        disk = self._allowed("fill the disk", lambda: Disk(state, FILLER))
        if disk is not None:
            closing.callback(disk.close)
        memory = self._allowed("starve of memory", lambda: Memory(f"{self.directory.name}"))
        if memory is not None:
            service.on_start = memory.take_in
            closing.callback(memory.remove)
        feeder = Feeder(folders, stock, random.Random(self._dice.getrandbits(64)), lambda: self._book.ids)
        return World(service, broker, subscriber, proxy, feeder, folders, disk, memory)

    def _allowed(self, kind: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Missing as error:
            self.skipped[kind] = str(error)
            return None

    async def _run(self, world: World) -> None:
        """From the first rest to the last."""
        await self._until("the daemon is ready", lambda: self._book.health().get("state") == "ok", READY_S)
        self._collected["descriptors_at_first"] = await self._descriptors_at_rest(world)
        begin_s = self._clock()
        feeding = asyncio.create_task(world.feeder.feed())
        async with asyncio.TaskGroup() as tasks:
            for number, deed in enumerate(self._plan):
                tasks.create_task(self._do(world, number, deed, begin_s))
        feeding.cancel()
        with suppress(asyncio.CancelledError):
            await feeding
        await world.feeder.last()
        await self._until("all is delivered", lambda: self._is_delivered(world), RECOVERY_S)
        self._book.states.clear()  # what was said until now may be of a connection that was broken at the end
        await self._until("all is well", self._is_well, RECOVERY_S)
        self._mended_s = self._clock()
        self._collected["descriptors_at_last"] = await self._descriptors_at_rest(world)

    async def _do(self, world: World, number: int, deed: Deed, begin_s: float) -> None:
        await asyncio.sleep(max(0.0, begin_s + deed.at_s - self._clock()))
        async with self._parts[deed.part]:  # the machine may have slept, and then all deeds are due at once
            at_s = self._clock()
            self._now[number] = str(deed)
            try:
                words = await deeds.do(world, deed)
                self._done.append(Done(self._now[number], at_s, self._clock(), words))
            except Missing:
                pass  # it was said at the start
            finally:
                del self._now[number]

    async def _until(self, what: str, probe: Callable[[], bool], timeout_s: float) -> None:
        if not await until(probe, timeout_s):
            self.late.append(f"{what}: not within {timeout_s:.0f} s")

    def _is_delivered(self, world: World) -> bool:
        if world.feeder.expected.keys() - self._book.ids:
            return False
        told = "\n".join(line.text for line in world.service.journal)
        return all(words in told for words in world.feeder.hostile)

    def _is_well(self) -> bool:
        health = self._book.health()
        return health.get("state") == "ok" and health["mqtt"]["queued"] == 0

    async def _descriptors_at_rest(self, world: World) -> int:
        await asyncio.sleep(REST_S)
        return world.service.sample().descriptors

    async def _stop(self, world: World) -> None:
        """What is retained before and after a clean stop, and who is left."""
        self._collected["retained"] = await asyncio.to_thread(retained, world.broker.port, BASE)
        await world.service.stop(again=False)
        end_s = self._clock() + LEAVE_S
        while (left := [" ".join(argv)[:80] for _, argv in world.service.processes()]) and self._clock() < end_s:
            await asyncio.sleep(0.1)
        self._collected["left"] = tuple(left)
        self._collected["retained_after"] = await asyncio.to_thread(retained, world.broker.port, BASE)
        if world.memory is not None:
            self.oom_kills = world.memory.oom_kills()

    def _evidence(self, world: World) -> Evidence:
        service = world.service
        return Evidence(
            sources=SOURCES,
            expected=world.feeder.expected,
            hostile=world.feeder.hostile,
            published=tuple(self._book.published),
            confirmed=tuple(self._book.confirmed),
            heard=frozenset(world.subscriber.ids),
            deaf=tuple(world.subscriber.deaf),
            malformed=tuple(world.proxy.malformed),
            samples=tuple(service.samples),
            ended=tuple(service.ended),
            journal=tuple(service.journal),
            fed=tuple(service.fed),
            stalls=tuple(service.stalls),
            deeds=tuple(self._done),
            forgotten=tuple(self._forgotten(service)),
            **self._collected,
        )

    def _forgotten(self, service: Service) -> Iterator[tuple[float, float]]:
        ends_s = [at_s for at_s, words in service.fed if words == "gone" and at_s < self._mended_s]
        for done in self._done:
            if done.kind.startswith("damage"):
                yield 0.0, done.until_s
            elif done.kind.startswith("fill"):
                yield from ((done.at_s, at_s) for at_s in ends_s if done.at_s <= at_s <= done.until_s + RETRY_S)

    async def _show(self, world: World) -> None:
        """One line on a terminal: how far it is, what has come, what is being done."""
        while sys.stderr.isatty():
            now = ", ".join(self._now.values()) or "quiet"
            missing = len(world.feeder.expected.keys() - self._book.ids)
            line = f"{self._clock():5.0f} s  {len(self._book.ids)} results, {missing} to come  {now}"
            print(f"\r\033[K{line[:110]}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(0.5)


def summary(run: Run, evidence: Evidence, problems: dict[str, list[str]], seed: int) -> dict[str, object]:
    """The run in one JSON line."""
    return {
        "passed": not problems,
        "seed": seed,
        "seconds": round(run.run_s),
        "deeds": len(evidence.deeds),
        "skipped": run.skipped,
        "late": run.late,
        **checks.figures(evidence),
        "oom_kills": run.oom_kills,
        "problems": problems,
    }
