"""A worker without a model: a real child that speaks the protocol, and misbehaves as it is told.

    stand_in.py DIRECTORY [the worker's own options]

DIRECTORY/plan.json is a list of lives, each a list of what to do: first at the start, then at every request.
A life beyond the list is as the last one. Every life leaves its pid and arguments in DIRECTORY/life-N.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_daemon import pipe, state_file
from edge_daemon.messages import Cap, Failed, Idle, Progress, Request, Results, TaskResult, WorkerReady, WorkerRefused

NEEDS = {
    "runtime_bytes": 100 << 20,
    "vision_bytes": 0,
    "text_bytes": 0,
    "vision_activation_bytes": 0,
    "text_activation_bytes": 0,
    "bytes_per_position": 1024,
    "prefix_positions": 100,
    "max_positions": 256,
}
READY = WorkerReady("stand-in", "knows nothing", "float32", 256, 1 << 20, 1 << 30, 5 << 20, 0.1, 1, {"python": "3"})


class StandIn:
    """One life."""

    def __init__(self) -> None:
        self.daemon = pipe.Pipe()
        pipe.die_with_parent()
        self.leaked: list[bytes] = []
        self.caps: list[list[int]] = []

    def live(self, deeds: list[str]) -> None:
        """Do one deed at the start, one at every request; the last one again and again."""
        self.do(deeds[0], None)
        served = 0
        while (request := self.daemon.read()) is not None:
            if isinstance(request, Cap):
                self.note(request)
                continue
            served += 1
            self.do(deeds[min(served, len(deeds) - 1)], request)
        if "stay" in deeds:
            self.hang()

    def do(self, deed: str, request: Request | None) -> None:
        """One deed, by its name."""
        getattr(self, deed.replace(" ", "_"))(*([] if request is None else [request]))

    def ready(self) -> None:
        self.daemon.write(Progress("importing nothing"))
        self.daemon.write(READY)

    def ready_with_needs(self) -> None:
        """As a real worker, which can do with less."""
        self.daemon.write(replace(READY, needs=NEEDS))

    def note(self, cap: Cap) -> None:
        """What the daemon allows; left in the directory."""
        self.caps.append([cap.kv_positions, int(cap.release)])
        state_file.replace(Path(sys.argv[1], f"caps-{os.getpid()}.json"), self.caps)

    def answer_and_leak(self, request: Request) -> None:
        """Ten MiB a picture."""
        self.leaked.append(b"x" * (10 << 20))
        self.answer(request)

    def ready_with_a_warning(self) -> None:
        self.daemon.write(replace(READY, device="cpu", precision="bfloat16", warning="bfloat16 is emulated here"))

    def stay(self) -> None:
        """Ready, but deaf to the end of the daemon."""
        self.ready()

    def begin_with_results(self) -> None:
        self.daemon.write(Results([], 0.0, 0))

    def refuse_for_memory(self) -> None:
        self.daemon.write(WorkerRefused("memory", "100 MiB of memory are missing"))
        sys.exit(0)

    def refuse_for_now(self) -> None:
        """As a real worker, which says what it needs."""
        needs = NEEDS | {"text_bytes": 150 << 20}
        self.daemon.write(WorkerRefused("memory", "100 MiB of memory are missing", needs))
        sys.exit(0)

    def refuse_for_ever(self) -> None:
        """It needs more than its owner allows."""
        needs = NEEDS | {"text_bytes": 300 << 20}
        self.daemon.write(WorkerRefused("memory", "100 MiB of memory are missing", needs))
        sys.exit(0)

    def refuse_the_model(self) -> None:
        self.daemon.write(WorkerRefused("model", "config.json is not there"))
        sys.exit(0)

    def chatter(self, *_: Any) -> None:
        """Steps for ever, and never the end."""
        while True:
            self.daemon.write(Progress("still going"))
            time.sleep(0.02)

    def hang(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(600)

    def die_of_sigkill(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_of_sigill(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGILL)

    def die_of_sigsegv(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def die_with_words(self, *_: Any) -> None:
        raise RuntimeError("no room for tensors")

    def babble(self, *_: Any) -> None:
        self.daemon._output.write(b"Hello, I am a library!\n" * 100_000)
        self.daemon._output.flush()
        self.hang()

    def answer(self, request: Request) -> None:
        self.daemon.write(Progress("encode"))
        done = []
        for task in request.tasks:
            self.daemon.write(Progress(task.id))
            words = f"{task.text} of {len(request.payload)} bytes"
            done.append(TaskResult(task.id, task.kind, words, [], 3, "eos", 1.0, 2.0))
        self.daemon.write(Results(done, 1.0, 6 << 20))

    def answer_slowly(self, request: Request) -> None:
        """Longer in all than the daemon bears silence, but never silent for so long."""
        for _ in range(8):
            time.sleep(0.4)
            self.daemon.write(Progress("token"))
        self.answer(request)

    def answer_with_an_error(self, request: Request) -> None:
        """The worker lives, and its only task failed."""
        failed = [TaskResult(task.id, task.kind, "", [], 0, "", 0.0, 0.0, "no such length") for task in request.tasks]
        self.daemon.write(Results(failed, 1.0, 6 << 20))

    def answer_and_die(self, request: Request) -> None:
        self.answer(request)
        self.die_of_sigkill()

    def answer_another_question(self, request: Request) -> None:
        self.daemon.write(Results([TaskResult("weather", "query", "rain", [], 1, "eos", 0.0, 0.0)], 0.0, 0))

    def answer_with_idle(self, request: Request) -> None:
        self.daemon.write(Idle())

    def fail(self, request: Request) -> None:
        self.daemon.write(Failed("these are no pixels"))


def main() -> None:
    """Find out which life this is, and live it."""
    directory = Path(sys.argv[1])
    number = len(list(directory.glob("life-*.json")))
    record = {"pid": os.getpid(), "arguments": sys.argv[2:], "arenas": os.environ.get("MALLOC_ARENA_MAX")}
    state_file.replace(directory / f"life-{number}.json", record)  # whole: it is waited for
    plan = json.loads((directory / "plan.json").read_text())
    StandIn().live(plan[min(number, len(plan) - 1)])


if __name__ == "__main__":
    main()
