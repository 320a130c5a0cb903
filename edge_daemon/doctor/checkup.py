"""Runs checks one after the other: none can hang, and one that fails in itself takes no other along."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from edge_daemon.doctor.finding import Finding, problem, skipped, warning
from edge_daemon.doctor.subject import Subject

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """A group of findings that are looked for together."""

    name: str
    """What the ids of its findings begin with, mostly."""
    title: str
    """What is being looked at, while that is done."""
    deadline_s: float
    look: Callable[[Subject], Iterable[Finding]]


@dataclass(frozen=True)
class _Over:
    """The check has ended."""

    error: Exception | None


def examine(check: Check, subject: Subject) -> Iterator[Finding]:
    """Its findings as they come; then one more if it did not end in time, or failed."""
    answers: queue.SimpleQueue[Finding | _Over] = queue.SimpleQueue()
    # a thread that nobody waits for: a network mount or a dying card may hold it for ever
    threading.Thread(target=_look, args=(check, subject, answers), name=f"check {check.name}", daemon=True).start()
    end_s = time.monotonic() + check.deadline_s
    while True:
        try:
            answer = answers.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            yield problem(
                check.name,
                f"{check.title}: no answer within {check.deadline_s:.0f} s",
                "Something is stuck: a network mount without its server, a failing disk or driver, or a machine that "
                "is far too busy. Whatever needs it in the service may get stuck as well.",
                "sudo dmesg --level=err,warn | tail",
            )
            return
        if isinstance(answer, Finding):
            yield answer
            continue
        if answer.error is not None:
            yield warning(
                check.name,
                f"{check.title}: this check could not run because of an internal error "
                f"({type(answer.error).__name__}: {answer.error})",
                "Nothing is known about this. Please report it as a bug, with the file from --report.",
            )
        return


def within(deadline_s: float, work: Callable[[], T]) -> T:
    """What comes of it. Raises TimeoutError when nothing does, and whatever it raises itself."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  handed over to who waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(deadline_s)


def _look(check: Check, subject: Subject, answers: queue.SimpleQueue[Finding | _Over]) -> None:
    try:
        for finding in check.look(subject):
            answers.put(finding)
    except PermissionError as error:
        answers.put(skipped(check.name, f"{error.filename}: {error.strerror}; run the doctor with sudo"))
        answers.put(_Over(None))
    except Exception as error:  # noqa: BLE001  whatever it is, the other checks must go on
        answers.put(_Over(error))
    else:
        answers.put(_Over(None))
