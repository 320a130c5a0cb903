"""What state the daemon is in: one retained JSON document, and the availability of every source."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import psutil

from edge_daemon import __version__, notify
from edge_daemon.captioner import Captioner
from edge_daemon.capture import AS_WANTED, AnyCapture
from edge_daemon.clock import corrected
from edge_daemon.memory_watchdog import MemoryWatchdog
from edge_daemon.mqtt import Connection
from edge_daemon.outbox import DROPPED, Outbox
from edge_daemon.results import SCHEMA, utc
from edge_daemon.stages import Stage
from edge_daemon.thermal import DutyCycle
from edge_daemon.topics import OFFLINE, ONLINE, Topics, json_bytes


class Health:
    """Reads the state of all parts; changes none."""

    def __init__(
        self,
        topics: Topics,
        connection: Connection,
        captioner: Captioner,
        captures: Mapping[str, AnyCapture],
        outbox: Outbox,
        duty: DutyCycle,
        memory: MemoryWatchdog,
        stuck: Callable[[], list[str]],
    ) -> None:
        """`stuck` names the tasks that make no progress."""
        self._topics = topics
        self._connection = connection
        self._worker = captioner.state
        self._pace = captioner.pace
        self._captures = captures
        self._outbox = outbox
        self._duty = duty
        self._memory = memory
        self._stuck = stuck
        self._started_s = time.monotonic()

    def publish(self) -> None:
        """Set the retained topics and systemd's status line."""
        document = self.document()
        self._connection.state(self._topics.health, json_bytes(document))
        for name, capture in self._captures.items():
            payload = ONLINE if capture.state.phase in AS_WANTED else OFFLINE
            self._connection.state(self._topics.of(name, "availability"), payload)
        notify.notify(f"STATUS={self.status_line(document)}")

    def document(self) -> dict[str, Any]:
        """The health document."""
        return {
            "schema": SCHEMA,
            "state": self._state(),
            "version": __version__,
            "at": utc(time.time()),
            "uptime_s": round(time.monotonic() - self._started_s),
            "rss_bytes": psutil.Process().memory_info().rss,
            "model": self._model(),
            "worker": self._worker_document(),
            "thermal": self._duty.document(),
            "memory": self._memory.document(),
            "stuck": self._stuck(),
            "mqtt": {
                "problem": self._connection.problem,
                "protocol": self._connection.protocol,
                "warning": self._connection.warning,
                "queued": len(self._outbox),
                "refused": self._connection.complaints.refused,
                "last_refused": self._connection.complaints.last_refused,
            },
            "outbox": self._outbox_document(),
            "sources": {name: capture.state.document() for name, capture in self._captures.items()},
        }

    def _worker_document(self) -> dict[str, Any]:
        interval_s = self._pace.interval_s
        if interval_s is not None:
            interval_s += self._duty.pause_s(interval_s)
        return {
            "state": self._worker.phase,
            "rss_bytes": self._worker.rss_bytes,
            "restarts": self._worker.restarts,
            "last_death": self._worker.last_death,
            "expected_interval_s": None if interval_s is None else round(interval_s, 3),
            "silence_limit_s": round(self._pace.silence_s, 1),
            "self_benchmark": self._worker.rehearsal,
        }

    def _outbox_document(self) -> dict[str, Any]:
        oldest = self._outbox.head(1)
        return {
            "problem": self._outbox.problem,
            "queued": len(self._outbox),
            "bytes": self._outbox.size_bytes,
            "in_memory": self._outbox.in_memory(),
            "set_aside": self._outbox.aside(),
            "oldest_at": utc(corrected(oldest[0].made, self._outbox.clock()).unix_s) if oldest else None,
            **{f"dropped_{why}": self._outbox.dropped(why) for why in DROPPED},
            "damaged_files": self._outbox.damaged_files(),
        }

    def _state(self) -> Literal["starting", "ok", "degraded", "failed"]:
        """degraded: something does not work now; failed: nothing can."""
        phase = self._worker.phase
        if phase == "starting" or phase == "failed":
            return phase
        well = all(capture.state.phase in AS_WANTED for capture in self._captures.values())
        captions = phase == "ready" and self._memory.state.stage < Stage.PAUSED
        return "ok" if well and captions and not self._outbox.problem and not self._stuck() else "degraded"

    def _model(self) -> dict[str, Any]:
        ready = self._worker.ready
        if ready is None:
            return {}
        return {
            "name": ready.model,
            "note": ready.note,
            **({"variant_reason": self._worker.variant_reason} if self._worker.variant_reason else {}),
            "engine": ready.engine,
            "device": ready.device,
            "precision": ready.precision,
            "reason": ready.reason,
            "warning": ready.warning,
            "release_vision": ready.release_vision,
            "threads": ready.threads,
            "threads_reason": ready.threads_reason,
            "load_s": round(ready.load_s, 1),
            "kv_positions": ready.kv_positions,
            "kv_bytes": ready.kv_bytes,
            "budget_bytes": ready.budget_bytes,
            "versions": ready.versions,
        }

    def status_line(self, document: dict[str, Any]) -> str:
        """One line for `systemctl status`."""
        captioned = sum(source["captioned"] for source in document["sources"].values())
        problem = document["mqtt"]["problem"] or "broker connected"
        return f"{document['state']}; {captioned} captioned; {document['mqtt']['queued']} queued; {problem}"
