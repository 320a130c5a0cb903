"""Results of which only what was said matters, for tests of what becomes of it."""

from __future__ import annotations

from edge_daemon.messages import FinishReason
from edge_daemon.results import Answered, Captioned, Found, Latency, Result, Said, Trigger


def result(task: str, said: Said, finish_reason: FinishReason = "eos", trigger: Trigger = "change") -> Result:
    """One result of a camera."""
    return Result(
        id="7d1e3b0e-0000-4000-8000-000000000000",
        node="shed",
        source="porch",
        captured_at="2023-11-14T22:13:20.250Z",
        task=task,
        said=said,
        file=None,
        model="demo-shapes",
        note=None,
        engine="torch",
        precision="float32",
        tokens=9,
        finish_reason=finish_reason,
        trigger=trigger,
        kv_tokens=256,
        latency_ms=Latency(0.0, 31.3, 80.0, 10.0, 200.0, 531.3),
    )


def caption(words: str) -> Result:
    """What is said of every picture."""
    return result("caption", Captioned(words, "short"))


def answer(task: str, words: str, question: str = "", finish_reason: FinishReason = "eos") -> Result:
    """An answer as the model gives it: nobody knows yet what its words are worth."""
    return result(task, Answered(question, words, words), finish_reason)


def nothing(task: str) -> Result:
    """Something was looked for and is not there."""
    return result(task, Found("cat", [], 0))
