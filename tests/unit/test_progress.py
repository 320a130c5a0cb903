"""Who is stuck, and who only waits."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon import progress
from edge_daemon.progress import Progress, patiently
from tests.clock import Clock


def test_a_task_is_stuck_when_its_last_beat_is_older_than_its_limit(clock: Clock) -> None:
    watched = Progress(clock)
    caption, capture = watched.expect("caption", 300), watched.expect("capture", 60)
    assert watched.stuck() == []
    clock.advance(60)
    assert watched.stuck() == []
    clock.advance(0.5)
    assert watched.stuck() == ["capture"]
    capture()
    assert watched.stuck() == []
    clock.advance(300)
    assert watched.stuck() == ["caption", "capture"]
    caption()
    assert watched.stuck() == ["capture"]


def test_each_stuck_task_is_named_once_and_again_when_it_goes_on(clock: Clock) -> None:
    watched = Progress(clock)
    caption, capture = watched.expect("caption", 300), watched.expect("capture", 60)
    assert watched.news() == ""
    clock.advance(61)
    assert watched.news().startswith("no progress: capture; systemd's watchdog")
    assert watched.news() == ""
    clock.advance(300)
    assert "no progress: caption;" in watched.news()
    capture()
    assert watched.news() == "goes on again: capture"
    capture()
    caption()
    clock.advance(61)
    news = watched.news()
    assert "no progress: capture;" in news
    assert news.endswith("goes on again: caption")


def test_a_task_may_be_given_another_limit_which_is_no_beat(clock: Clock) -> None:
    watched = Progress(clock)
    watched.expect("caption", 300)
    clock.advance(400)
    watched.allow("caption", 500)
    assert watched.stuck() == []
    clock.advance(101)
    assert watched.stuck() == ["caption"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100))))
def test_each_beat_counts_for_its_own_task_only(beats: list[tuple[str, float]]) -> None:
    clock = Clock()
    watched, limits = Progress(clock), {"a": 10.0, "b": 50.0, "c": 1000.0}
    beat = {name: watched.expect(name, limit) for name, limit in limits.items()}
    last = dict.fromkeys(limits, clock())
    for name, after_s in beats:
        clock.advance(after_s)
        beat[name]()
        last[name] = clock()
        assert watched.stuck() == [n for n in limits if clock() - last[n] > limits[n]]


async def test_waiting_patiently_beats_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.001)
    over, beats = asyncio.Event(), 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 5:
            over.set()

    assert await patiently(over.wait(), beat)
    assert beats >= 5


async def test_what_is_there_already_is_not_waited_for() -> None:
    async def ready() -> str:
        return "here"

    assert await patiently(ready(), lambda: None) == "here"


async def test_what_is_waited_for_may_fail() -> None:
    async def failing() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        await patiently(failing(), lambda: None)


async def test_who_no_longer_waits_lets_go() -> None:
    cancelled = asyncio.Event()

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    waiting = asyncio.create_task(patiently(for_ever(), lambda: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await cancelled.wait()
