#!/usr/bin/env python3
"""A child that speaks the protocol badly: stands in for Python, so that it is started in place of every real child.

    rubbish_child.py -P -m edge_daemon.grabber|edge_daemon.worker …      with the directory of its lives in $RUBBISH_DIR

Most of its messages are what the daemon may expect next; some are of another kind, with wild values, damaged, cut
short or endless; then it dies or hangs in some way. The first life of the worker is a good one. All is seeded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from edge_daemon import messages, wire
from edge_daemon.messages import (
    Failed,
    FileKey,
    Frame,
    GrabberReady,
    Idle,
    Next,
    Offer,
    Opening,
    Problem,
    Progress,
    Results,
    TaskKind,
    TaskResult,
    Wanted,
    WorkerReady,
    WorkerRefused,
)

WORDS = ["", "a red square", "\ud800 lone", "line\nbreak\x1b[31m\0", "#/+$", "x" * 5000, "ü\u202e"]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 1e308, -1e308, 5e-324, 0.5]
DEATHS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)


class Rubbish:
    """One life."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind = kind
        self.number = number
        self.chance = random.Random(f"{kind} {number}")
        self.out = os.fdopen(1, "wb", buffering=0)

    def live(self) -> None:
        """Say things until it dies."""
        self.say(self.ready())
        for _ in range(self.chance.randint(0, 40)):
            if self.good or self.chance.random() < 0.7:
                self.answer()
            else:
                self.misbehave()
        self.die()

    @property
    def good(self) -> bool:
        """Somebody must begin well, or the daemon rightly gives up."""
        return self.kind == "worker" and self.number == 0

    def ready(self) -> Any:
        if self.kind == "grabber":
            return GrabberReady(self.words())
        return WorkerReady("m", "n", "float32", 256, 1 << 20, 1 << 30, 5 << 20, 0.1, 1, {"python": "3"})

    def answer(self) -> None:
        """What is due."""
        if self.kind == "worker":
            header = json.loads(sys.stdin.buffer.readline() or os._exit(0))
            sys.stdin.buffer.read(header["payload_bytes"])
            self.say(Progress("encode"))
            if header["type"] == "Request":
                ids = [(task["id"], task["kind"]) for task in header["fields"]["tasks"]]
                self.say(Results([self.result(*task) for task in ids], self.number_like(), 6 << 20))
            return
        self.say(
            self.chance.choice(
                [
                    Offer([self.file() for _ in range(self.chance.randint(0, 50))]),
                    Opening(self.file()),
                    Idle(self.words()),
                    Problem(self.words(), self.chance.choice([None, self.file()])),
                    self.frame(16, 16, 16 * 16 * 3),
                    self.frame(16, 16, 16 * 16 * 3),
                ]
            )
        )

    def misbehave(self) -> None:
        what = self.chance.randrange(8)
        if what == 0:
            self.say(self.chance.choice([Next(), Wanted([True]), Failed(self.words()), WorkerRefused("memory", "x")]))
        elif what == 1:
            self.say(self.frame(int(self.number_like()), self.chance.choice([0, 1, -1, 512, 513]), 100))
        elif what == 2:
            self.write(self.chance.randbytes(self.chance.randint(1, 3000)))
        elif what == 3:
            data = wire.encode(messages.pack(self.frame(16, 16, 768)))
            at = self.chance.randrange(len(data))
            self.write(data[:at] + self.chance.randbytes(3) + data[at + 3 :])
        elif what == 4:
            header = {"type": "Frame", "fields": {}, "payload_bytes": self.chance.choice([-1, 10**10, 10**40, 5.0])}
            self.write(json.dumps(header).encode() + b"\n")
        elif what == 5:
            self.write(b"[" * self.chance.choice([100, 100_000, 3_000_000]) + b"\n")
        elif what == 6:
            os.write(2, self.words().encode("utf-8", "surrogatepass") * 50)
        else:
            self.say(Results([self.result("caption", "caption")] * 2, 1.0, -5))

    def die(self) -> None:
        if self.chance.random() < 0.1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.close(self.chance.choice([0, 1, 2]))
            time.sleep(60)
        if self.chance.random() < 0.5:
            self.write(wire.encode(messages.pack(self.frame(16, 16, 768)))[: self.chance.randint(1, 900)])
        if self.chance.random() < 0.5:
            os.kill(os.getpid(), self.chance.choice(DEATHS))
        os._exit(self.chance.randrange(3))

    def say(self, item: Any) -> None:
        self.write(wire.encode(messages.pack(item)))

    def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self.out.write(data) or 0 :]
            except BrokenPipeError:
                os._exit(0)

    def words(self) -> str:
        return self.chance.choice(WORDS)

    def number_like(self) -> float:
        return float(self.chance.choice(NUMBERS))

    def file(self) -> FileKey:
        sizes = [0, 10, 2**63, 10**30, -1]
        return FileKey(self.words() + str(self.chance.randrange(3)), *(self.chance.choice(sizes) for _ in range(2)))

    def frame(self, width: int, height: int, size: int) -> Frame:
        stamp, slow, file = (
            self.number_like(),
            self.chance.choice([0.5] * 9 + [-1.0, 1e308]),
            self.chance.choice([None, self.file()]),
        )
        thumbnail = self.chance.choice(["00" * 1024] * 9 + ["zz"])
        return Frame(stamp, width, height, width, height, thumbnail, slow, slow, file, bytes(size))

    def result(self, id_: str, kind: TaskKind) -> TaskResult:
        ended: Any = self.chance.choice(["eos"] * 9 + [self.words()])
        wild = (self.number_like(), self.number_like())
        return TaskResult(id_, kind, self.words(), [{"x": 1.0}], 3, ended, *wild, self.chance.choice(["", "", "no"]))


def main() -> None:
    """Find out which life of which child this is."""
    kind = sys.argv[sys.argv.index("-m") + 1].removeprefix("edge_daemon.")
    directory = Path(os.environ["RUBBISH_DIR"])
    number = len(list(directory.glob(f"{kind}-*")))
    (directory / f"{kind}-{number}").touch()
    Rubbish(kind, number).live()


if __name__ == "__main__":
    main()
