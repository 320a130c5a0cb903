"""The daemon's side of a camera, without one: what is worth the model's time, and who waits for what."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import Any

import pytest

from edge_daemon.capture import LONGEST_MS, check
from edge_daemon.errors import ChildDied, PictureError
from edge_daemon.hygiene import FROZEN_PICTURE
from edge_daemon.live_capture import JITTER, LONGEST_DELAY_S, TOLD_DEATHS, LiveCapture
from edge_daemon.messages import THUMBNAIL_PX, Frame
from edge_daemon.picture_limits import MAX_SIDE_PX
from edge_daemon.restart_policy import RestartPolicy
from edge_daemon.source_config import CommandConfig
from edge_daemon.units import DAY_S


def capture(**keys: Any) -> LiveCapture:
    config = CommandConfig.model_validate({"type": "command", "command": ["true"], **keys})
    return LiveCapture("porch", config, lambda frame, why: False, lambda: None, lambda: None)


def frame(wide: int) -> Frame:
    """A picture with a bright thing in it, or without."""
    cells = bytearray(range(0, 128, 4)) * THUMBNAIL_PX
    for row in range(8, 20):
        cells[row * THUMBNAIL_PX + 4 : row * THUMBNAIL_PX + 4 + wide] = b"\xff" * wide
    return Frame(time.time(), 1, 1, 1, 1, cells.hex(), 0.0, 0.0, None, b"rgb")


def test_a_frame_that_waited_too_long_is_dropped_and_counted() -> None:
    camera, now_s = capture(max_age_s=1000), time.monotonic()
    assert not camera.is_stale(frame(0), now_s - 500)
    assert camera.state.skipped == {}
    assert camera.is_stale(frame(0), now_s - 1001)
    assert camera.state.skipped == {"too_old": 1}


def test_the_same_that_passed_while_it_was_captioned_is_dropped_and_counted() -> None:
    camera, now_s = capture(max_age_s=1000, gate={"cooldown_s": 0}), time.monotonic()
    assert not camera.is_stale(frame(0), now_s)
    camera.captioned(frame(0), doubted=False)
    assert camera.is_stale(frame(0), now_s)
    assert camera.state.skipped == {"unchanged": 1}
    assert not camera.is_stale(frame(9), now_s)


@pytest.mark.parametrize("years", [-1, 0, 1])
def test_a_frozen_camera_is_told_whatever_the_clock_is_set_to(monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    camera, began_s, began_unix_s, told = capture(), time.monotonic(), time.time(), []
    for passed_s in (0, 10, 20, 30, 40, 50, 60, 70, 80):
        now_unix_s = began_unix_s + passed_s + (years * 365 * DAY_S if passed_s >= 20 else 0.0)
        monkeypatch.setattr(time, "monotonic", lambda now_s=began_s + passed_s: now_s)
        monkeypatch.setattr(time, "time", lambda now_unix_s=now_unix_s: now_unix_s)
        camera._look(replace(frame(9), captured_at_s=now_unix_s))
        told.append(camera.state.picture_problem)
    assert told == [""] * 8 + [FROZEN_PICTURE]


def test_a_camera_that_stays_away_is_told_once_and_tried_at_longer_intervals(caplog: pytest.LogCaptureFixture) -> None:
    camera, policy = capture(), RestartPolicy()
    delays_s = [camera.after_death(policy, ChildDied("it is gone")) for _ in range(12)]
    assert caplog.text.count("it is gone") == 1
    assert camera.state.problems == 12
    for expected_s, delay_s in zip((1, 2, 4, 8, 16, 32, *[LONGEST_DELAY_S] * 6), delays_s, strict=True):
        assert expected_s * (1 - JITTER) <= delay_s <= expected_s * (1 + JITTER)
    assert len(set(delays_s)) == 12, "not all cameras come back at once"
    camera.after_death(policy, ChildDied("something else"))
    assert "something else" in caplog.text


def test_last_words_that_differ_in_times_and_numbers_only_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    camera, policy = capture(), RestartPolicy()
    for status, words in ((1, "[12:00:01.5] no camera"), (1, "[12:00:03.7] no camera"), (1, "[x] no"), (2, "[x] no")):
        camera.after_death(policy, ChildDied(f"sh ended with exit status {status}; its last words: {words}"))
    assert [record.getMessage().count("no camera") for record in caplog.records] == [1, 0, 0]


def test_a_camera_that_delivers_and_ends_all_day_does_not_fill_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    """But one that had stayed for a while, or ends in another way, is news."""
    caplog.set_level(logging.INFO)
    camera, policy = capture(), RestartPolicy()

    def life(reason: str) -> None:
        policy.ready(time.monotonic())
        camera.set_phase("online")
        camera.after_death(policy, ChildDied(reason))

    for _ in range(100):
        life("its program ended")
    assert [caplog.text.count(words) for words in ("its program ended", "is back")] == [TOLD_DEATHS, TOLD_DEATHS]
    assert camera.state.problems == 100
    life("it was unplugged")
    assert caplog.text.count("it was unplugged") == 1
    camera.set_phase("online")
    assert caplog.text.count("is back") == TOLD_DEATHS + 1


async def test_who_asks_a_camera_that_is_away_hears_why_at_once() -> None:
    camera = capture()
    asked = asyncio.create_task(camera.current())
    await asyncio.sleep(0)
    camera.after_death(RestartPolicy(), ChildDied("no route to it"))
    with pytest.raises(PictureError, match="no route to it"):
        await asked
    with pytest.raises(PictureError, match="no route to it"):
        await camera.current()


async def test_a_camera_that_is_switched_off_is_not_opened_until_it_is_on() -> None:
    camera = capture(enabled=False)
    waiting = asyncio.create_task(camera.wanted())
    await asyncio.sleep(0.01)
    assert camera.state.phase == "off"
    assert next(iter(camera.state.document().items())) == ("state", "off"), "as health calls it"
    assert not waiting.done()
    camera.config = camera.config.model_copy(update={"enabled": True})
    camera.changed()
    await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"height_px": 0, "payload": b""},
        {"width_px": -1, "height_px": -1},
        {"width_px": MAX_SIDE_PX + 1, "payload": bytes(3 * (MAX_SIDE_PX + 1))},
        {"payload": b"rg"},
        {"thumbnail_hex": "00" * (THUMBNAIL_PX**2 - 1)},
        {"thumbnail_hex": "0x" * THUMBNAIL_PX**2},
        {"capture_ms": -1.0},
        {"decode_ms": math.nan},
        {"decode_ms": 2 * LONGEST_MS},
    ],
)
def test_a_frame_that_is_none_is_the_end_of_who_sent_it(wrong: dict[str, Any]) -> None:
    check(frame(0))
    check(replace(frame(0), width_px=MAX_SIDE_PX, payload=bytes(3 * MAX_SIDE_PX)))
    with pytest.raises(ChildDied, match="and was ended"):
        check(replace(frame(0), **wrong))
