"""The memory watchdog: reads, has `stages` and `growth` decide, and tells the captioner. A task of the daemon.

The watcher is not the watched: it runs in the parent, whose own memory does not grow with the model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edge_daemon import cgroup
from edge_daemon.captioner import Captioner
from edge_daemon.errors import ChildEnded
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES, Budget
from edge_daemon.readings import Reading
from edge_daemon.results import utc
from edge_daemon.stages import IN_WORDS, Plan, Stage, Stages, View
from edge_daemon.worker_state import WorkerPhase

EVERY_S = 1.0
"""Between two looks, each of less than a millisecond …"""
EVERY_SHORT_S = 0.25
"""… and when little is left: fast enough to see a process taking 100 MiB/s before the reserve is gone."""
SHORT_OF = 4
"""Little is left when less than this many reserves are free."""
PSS_EVERY_S = 60.0
"""Between two of the slow readings that are for people only."""
STARTABLE: tuple[WorkerPhase, ...] = ("unloaded", "ready", "restarting")
"""When a worker that is not there is to be started: it was ended on purpose, died while nobody asked, or was not to be
started the last time."""
log = logging.getLogger(__name__)


@dataclass
class MemoryState:
    """What health says about memory."""

    stage: Stage = Stage.OK
    reason: str = ""
    since: str = ""
    reading: Reading | None = None
    limit: Budget | None = None
    pss_bytes: int | None = None
    controlled: bool = True
    """Whether a limit of the cgroup would have any effect."""


class MemoryWatchdog:
    """Of one captioner."""

    def __init__(self, captioner: Captioner, on_change: Callable[[], None]) -> None:
        """Reads where the captioner does."""
        self.state = MemoryState()
        self._files = captioner.witness.files
        self._captioner = captioner
        self._on_change = on_change
        self._stages = Stages()
        self._start: asyncio.Task[Any] | None = None
        self._pid: int | None = None
        self._pss_at_s = float("-inf")

    async def run(self, beat: Callable[[], None]) -> None:
        """Look for ever. Raises what a start of the worker raises when it is hopeless."""
        self.state.controlled = self._files.controlled()
        if not self.state.controlled:
            log.warning("%s", cgroup.ADVICE)
        try:
            while True:
                beat()
                await self.look(time.monotonic())
                await asyncio.sleep(EVERY_SHORT_S if self._short() else EVERY_S)
        finally:
            if self._start is not None:
                self._start.cancel()
                await asyncio.wait([self._start])

    def _short(self) -> bool:
        """Whether to look often."""
        reading = self.state.reading
        if reading is None or self.state.stage > Stage.OK:
            return True
        level = reading.level
        in_cgroup = level is not None and level.room_bytes < SHORT_OF * CGROUP_RESERVE_BYTES
        return in_cgroup or reading.available_bytes < SHORT_OF * RESERVE_BYTES

    async def look(self, now_s: float) -> None:
        """Read, decide, act."""
        self._reap_start()
        captioner, state = self._captioner, self.state
        state.reading = reading = self._files.read(captioner.pid)
        state.limit = captioner.budget(reading)
        captioner.witness.note(reading)
        await self._read_pss(now_s)
        if captioner.pid != self._pid:
            self._pid = captioner.pid
            captioner.growth.begin()
        needs = captioner.needs
        if needs is None:  # not yet, or of a worker that cannot do with less
            stage, waits_for = Stage.UNLOADED if captioner.waits_for else Stage.OK, captioner.waits_for
            if stage != state.stage:
                self._tell(Plan(stage, 0, releases_vision=False, worker="keep", reason=waits_for))
            if waits_for:  # whatever came of the last start: nobody else may ask for another
                self._begin_start()
            else:
                captioner.allow()
            await self._replace_if_grown(now_s)
            return
        grown = replace(needs, runtime_bytes=needs.runtime_bytes + int(captioner.growth.grown_bytes))
        wanted = captioner.config.kv_positions
        view = View(
            reading=reading,
            limit=state.limit,
            needs=grown,
            wanted=None if wanted == "auto" else wanted,
            positions=captioner.state.kv_positions,
            busy=captioner.busy,
            less=captioner.less,
        )
        await self._obey(self._stages.look(view, now_s), now_s)

    async def _obey(self, plan: Plan, now_s: float) -> None:
        captioner = self._captioner
        if plan.stage != self.state.stage:
            self._tell(plan)
        if plan.stage < Stage.PAUSED:
            captioner.allow()
        else:
            captioner.forbid()
        match plan.worker:
            case "end" | "end at once":
                await captioner.end(IN_WORDS[plan.stage], plan.worker == "end at once")
            case "start":
                self._begin_start()
            case _ if captioner.is_ready:
                await self._treat(plan)
        if plan.stage < Stage.PAUSED:
            await self._replace_if_grown(now_s)

    async def _treat(self, plan: Plan) -> None:
        """Cap the worker, where that is not what holds already."""
        state = self._captioner.state
        if (plan.positions, plan.releases_vision) != (state.kv_positions, state.releases):
            log.debug("KV cap %d, was %d; release %s", plan.positions, state.kv_positions, plan.releases_vision)
            if plan.releases_vision != state.releases:
                self._captioner.growth.begin()
            await self._captioner.cap(plan.positions, plan.releases_vision)

    async def _replace_if_grown(self, now_s: float) -> None:
        """Replace a worker that leaks, between two captions; whatever it was that ended it, start it again."""
        if why := self._captioner.growth.recycle(now_s):
            log.warning("the model's process is replaced before the next caption: %s", why)
            await self._captioner.end(why)
        if self._captioner.state.phase in STARTABLE:
            self._begin_start()

    def _begin_start(self) -> None:
        if self._start is None and not self._captioner.is_ready:
            self._start = asyncio.create_task(self._captioner.ready(whatever=True), name="start")

    def _reap_start(self) -> None:
        """Raises what made a start hopeless."""
        if self._start is not None and self._start.done():
            start, self._start = self._start, None
            if not isinstance(start.exception(), ChildEnded):
                start.result()

    def _tell(self, plan: Plan) -> None:
        """Once for each stage, in journal and health."""
        worse = plan.stage > self.state.stage
        self.state.stage, self.state.reason, self.state.since = plan.stage, plan.reason, utc(time.time())
        log.log(logging.WARNING if worse else logging.INFO, "%s (%s)", IN_WORDS[plan.stage], plan.reason)
        self._on_change()

    async def _read_pss(self, now_s: float) -> None:
        """In a thread of its own: it takes a tenth of a second, and more on a busy board."""
        if self._captioner.pid is None:
            self.state.pss_bytes = None
        elif now_s - self._pss_at_s >= PSS_EVERY_S and not self._captioner.busy:
            self._pss_at_s = now_s
            self.state.pss_bytes = await asyncio.to_thread(self._files.pss_bytes, self._captioner.pid)

    def document(self) -> dict[str, Any]:
        """For health."""
        state, captioner = self.state, self._captioner
        reading, needs = state.reading, captioner.needs
        level = reading.level if reading else None
        pressure = reading.pressure if reading else None
        return {
            "stage": state.stage.name.lower(),
            "reason": state.reason,
            "since": state.since,
            "worker_bytes": reading.worker_bytes if reading else None,
            "pss_bytes": state.pss_bytes,
            "grown_bytes": round(captioner.growth.grown_bytes),
            "limit_bytes": state.limit.limit_bytes if state.limit else None,
            "limit_reason": state.limit.reason if state.limit else "",
            "available_bytes": reading.available_bytes if reading else None,
            "pressure": {"some": pressure.some, "full": pressure.full} if pressure else None,
            "kv_positions": captioner.state.kv_positions,
            "kv_positions_full": needs.max_positions if needs else None,
            "recycles": captioner.state.recycles,
            "cgroup": {
                "controlled": state.controlled,
                "limit_bytes": level.limit_bytes if level else None,
                "used_bytes": level.used_bytes if level else None,
                "advice": "" if state.controlled else cgroup.ADVICE,
            },
        }
