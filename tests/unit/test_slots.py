"""One slot a source: nothing is lost, nothing overtakes, everybody has a turn."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.slots import LONGEST_LINE, Slots

NAMES = "abcd"


async def let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_full_slot_is_waited_for() -> None:
    slots: Slots[int] = Slots(NAMES)
    await slots.put("a", 1)
    second = asyncio.create_task(slots.put("a", 2))
    await let_others_run()
    assert not second.done()
    assert await slots.take() == 1
    await second
    assert await slots.take() == 2


async def test_an_empty_slot_is_waited_for() -> None:
    slots: Slots[str] = Slots(NAMES)
    taking = asyncio.create_task(slots.take())
    await let_others_run()
    assert not taking.done()
    await slots.put("c", "here")
    assert await taking == "here"


async def test_slots_that_are_always_full_take_turns() -> None:
    slots: Slots[str] = Slots(NAMES)

    async def fill(name: str) -> None:
        while True:
            await slots.put(name, name)

    producers = [asyncio.create_task(fill(name)) for name in NAMES]
    await let_others_run()
    taken = []
    for _ in range(40):
        taken.append(await slots.take())
        await let_others_run()
    assert "".join(taken) == NAMES * 10
    for producer in producers:
        producer.cancel()


@given(st.lists(st.sampled_from([*NAMES, "take"])))
def test_the_source_that_was_served_longest_ago_comes_first(program: list[str]) -> None:
    async def scenario() -> None:
        slots: Slots[tuple[str, int]] = Slots(NAMES)
        waiting: dict[str, int] = {}
        served = {name: index - len(NAMES) for index, name in enumerate(NAMES)}
        for now in count():
            if now == len(program):
                return
            step = program[now]
            if step != "take" and step not in waiting:
                await slots.put(step, (step, now))
                waiting[step] = now
            elif step == "take" and waiting:
                expected = min(waiting, key=lambda name: served[name])
                assert await slots.take() == (expected, waiting.pop(expected))
                served[expected] = now

    asyncio.run(scenario())


@given(st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=1, max_size=len(NAMES)))
def test_with_many_producers_all_arrive_once_and_in_order(pauses: list[list[int]]) -> None:
    async def scenario() -> None:
        names = NAMES[: len(pauses)]
        slots: Slots[tuple[str, int]] = Slots(names)

        async def produce(name: str, turns: list[int]) -> None:
            for number, pause in enumerate(turns):
                for _ in range(pause):
                    await asyncio.sleep(0)
                await slots.put(name, (name, number))

        producers = [asyncio.create_task(produce(n, p)) for n, p in zip(names, pauses, strict=True)]
        taken = [await slots.take() for _ in range(sum(map(len, pauses)))]
        await asyncio.gather(*producers)
        for name, turns in zip(names, pauses, strict=True):
            assert [number for source, number in taken if source == name] == list(range(len(turns)))

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(8))
async def test_who_stops_waiting_to_put_has_put_or_has_not(turns: int) -> None:
    """Cancelled at any moment, also just when the slot is emptied."""
    slots: Slots[int] = Slots(NAMES)
    await slots.put("a", 1)
    second = asyncio.create_task(slots.put("a", 2))
    await let_others_run()
    assert await slots.take() == 1
    for _ in range(turns):
        await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    if second.cancelled():
        await slots.put("a", 3)
        assert await slots.take() == 3
    else:
        assert await slots.take() == 2


@pytest.mark.parametrize("turns", range(8))
async def test_who_stops_waiting_to_take_has_taken_or_leaves_it(turns: int) -> None:
    slots: Slots[int] = Slots(NAMES)
    taking = asyncio.create_task(slots.take())
    await let_others_run()
    await slots.put("a", 1)
    for _ in range(turns):
        await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    assert (await slots.take() if taking.cancelled() else taking.result()) == 1
    await slots.put("a", 2)
    assert await slots.take() == 2


async def test_what_waits_is_seen_without_taking_it() -> None:
    slots: Slots[int] = Slots(NAMES)
    assert not slots.waiting
    await slots.put("b", 1)
    assert slots.waiting
    assert await slots.take() == 1
    assert not slots.waiting


async def test_a_request_goes_before_what_waits_but_not_two_in_a_row() -> None:
    slots: Slots[str] = Slots(NAMES)
    for name in "ab":
        await slots.put(name, name)
    assert all(slots.ask(request) for request in "123")
    assert [await slots.take() for _ in range(5)] == ["1", "a", "2", "b", "3"]


async def test_requests_follow_each_other_when_nothing_else_waits() -> None:
    slots: Slots[str] = Slots(NAMES)
    taking = asyncio.create_task(slots.take())
    await let_others_run()
    assert slots.ask("1")
    assert await taking == "1"
    assert slots.ask("2")
    assert await slots.take() == "2"


async def test_the_line_of_requests_is_bounded() -> None:
    slots: Slots[int] = Slots(NAMES)
    assert all(slots.ask(number) for number in range(LONGEST_LINE))
    assert not slots.ask(LONGEST_LINE)
    await slots.take()
    assert slots.ask(LONGEST_LINE)


async def test_what_is_held_stays_until_it_is_let_go() -> None:
    slots: Slots[str] = Slots(NAMES)
    await slots.put("a", "a")
    slots.hold("a")
    assert not slots.waiting
    taking = asyncio.create_task(slots.take())
    await let_others_run()
    assert not taking.done()
    await slots.put("b", "b")
    assert await taking == "b"
    taking = asyncio.create_task(slots.take())
    await let_others_run()
    slots.hold("")
    assert await taking == "a"


# ---- cameras ----------------------------------------------------------------------------------------------


async def test_the_newest_frame_wins_and_keeps_its_place() -> None:
    slots: Slots[int] = Slots(NAMES)
    assert not slots.renew("b", 1)
    await slots.put("a", 9)
    assert slots.renew("b", 2)
    assert slots.renew("b", 3)
    assert [await slots.take(), await slots.take()] == [9, 3]
    assert not slots.renew("b", 4)


async def test_turns_are_by_weight_while_all_wait() -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 1.0, "d": 1.0}
    slots: Slots[str] = Slots(NAMES, lambda name: weights[name])
    taken = []
    for _ in range(60):
        for name in NAMES:
            slots.renew(name, name)
        taken.append(await slots.take())
    assert {name: taken.count(name) for name in NAMES} == {"a": 10, "b": 30, "c": 10, "d": 10}


async def test_who_had_nothing_for_long_saves_up_no_turns() -> None:
    slots: Slots[str] = Slots("ab")
    for _ in range(50):
        slots.renew("a", "a")
        await slots.take()
    taken = []
    for _ in range(10):
        slots.renew("a", "a")
        slots.renew("b", "b")
        taken.append(await slots.take())
    assert taken.count("a") == 5
