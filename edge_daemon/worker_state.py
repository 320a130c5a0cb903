"""What health says about the worker: written by the captioner, read by everybody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edge_daemon.messages import Results, WorkerReady

WorkerPhase = Literal["starting", "ready", "restarting", "unloaded", "failed"]
"""unloaded: it was ended on purpose, or waits for memory; failed: there will be none."""


@dataclass
class WorkerState:
    """What health says about the worker."""

    phase: WorkerPhase = "starting"
    restarts: int = 0
    recycles: int = 0
    """Ends on purpose; these are no restarts."""
    last_death: str = ""
    rss_bytes: int = 0
    ready: WorkerReady | None = None
    """The report of the worker that runs, or of the last one that did."""
    variant_reason: str = ""
    """Why this variant of the model, where we chose it."""
    kv_positions: int = 0
    """The cap that holds."""
    releases: bool = False
    """Whether freed memory and the vision encoder are given back after every picture."""
    rehearsal: dict[str, float] = field(default_factory=dict)
    """What the stages of the picture took that was captioned at the start, in seconds."""

    def begun(self, ready: WorkerReady) -> None:
        """Another worker is there."""
        self.ready, self.rss_bytes = ready, ready.rss_bytes
        self.kv_positions, self.releases = ready.kv_positions, ready.release_vision

    def rehearsed(self, answer: Results) -> None:
        """The picture of the start was captioned."""
        task = answer.tasks[0]
        self.rehearsal = {
            "encode_s": round(answer.encode_ms / 1000, 3),
            "prefill_s": round(task.prefill_ms / 1000, 3),
            "token_s": round(task.generate_ms / 1000 / max(1, task.tokens), 4),
        }
