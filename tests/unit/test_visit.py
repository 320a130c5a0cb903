"""A visit at a broker that owes an answer: how long it waits, and what it says of the silence."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from unittest.mock import Mock

import pytest

from edge_daemon import visit
from edge_daemon.visit import Visit


@pytest.mark.parametrize(
    ("is_answered", "longest_s", "patience_s", "words"),
    [
        (False, 30.0, 0.01, "did not answer for 0 s"),
        (False, 0.01, 30.0, "did not answer for 0 s"),
        (True, 0.01, 30.0, "confirmed no message for 0 s"),
        (False, 30.0, 0.6, "did not answer for 1 s"),
    ],
)
def test_the_silence_is_named_with_the_time_that_was_waited(
    monkeypatch: pytest.MonkeyPatch, is_answered: bool, longest_s: float, patience_s: float, words: str
) -> None:
    """The shorter patience for a first answer as well: it always said 30 s."""
    monkeypatch.setattr(visit, "ANSWER_S", longest_s)

    async def wait() -> str:
        gone = asyncio.Event()
        here = Visit(cast(Any, Mock(hang_up=gone.set)), patience_s)
        here.is_answered = is_answered
        here.await_answer()
        async with asyncio.timeout(30):
            await gone.wait()
        return here.silence

    assert asyncio.run(wait()) == words
