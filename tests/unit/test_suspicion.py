"""Which message a broker does not take: found whatever else goes on, and nobody innocent is blamed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.suspicion import CAREFUL_MESSAGES, FLAPS, QUICK_S, SHORT_S, STRIKES, WINDOW, Suspicion


def converse(queue: list[str], poison: set[str], said: Suspicion, seed: int = 0, limit: int = 1000) -> list[str]:
    """A broker that hangs up at poison, some confirmations lost with it; the topics found guilty, in order."""
    chance, guilty, now_s = random.Random(seed), [], 0.0
    left = list(queue)
    for _ in range(limit):
        now_s += 1.0
        said.connected(now_s)
        said.sent(now_s)
        said.confirmed("birth")
        while left:
            sent = left[: said.window]
            said.sent(now_s)
            bad = next((i for i, topic in enumerate(sent) if topic in poison), None)
            arrived = len(sent) if bad is None else chance.randint(0, bad)
            for topic in sent[:arrived]:
                said.confirmed(topic)
                left.remove(topic)
            if bad is not None:
                found = said.hung_up(sent[arrived:], now_s + 0.1)
                if found:
                    guilty.append(found)
                    left.remove(found)
                break
        else:
            return guilty
    raise AssertionError(f"still {left} after {limit} connections")


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers())
def test_poison_is_found_and_only_poison(poisoned: list[bool], seed: int) -> None:
    queue = [f"message {number}" for number in range(len(poisoned))]
    poison = {topic for topic, bad in zip(queue, poisoned, strict=True) if bad}
    assert converse(queue, poison, Suspicion(), seed) == [topic for topic in queue if topic in poison]


def test_a_poison_costs_few_connections() -> None:
    converse([f"{n}" for n in range(50)], {"25"}, Suspicion(), limit=STRIKES + 2)


@given(st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=30), st.floats(0, 100)), max_size=50))
def test_who_arrives_between_two_hang_ups_is_not_to_blame(ends: list[tuple[list[str], float]]) -> None:
    said, now_s = Suspicion(), 0.0
    for on_their_way, lasted_s in ends:
        said.connected(now_s)
        said.sent(now_s)
        for topic in "abc":
            said.confirmed(topic)
        now_s += lasted_s
        assert said.hung_up(on_their_way, now_s) is None


def test_one_at_a_time_until_all_that_was_on_its_way_is_through() -> None:
    said = Suspicion()
    said.connected(0.0)
    assert said.window == WINDOW
    assert said.hung_up(["a", "b"], 1.0) is None
    for _ in range(CAREFUL_MESSAGES):
        assert said.window == 1
        said.confirmed("a")
    assert said.window == WINDOW
    said.confirmed("a")
    assert said.window == WINDOW


def test_an_end_long_after_the_message_has_another_reason() -> None:
    said = Suspicion()
    for _ in range(2 * STRIKES):
        said.connected(0.0)
        said.confirmed("birth")
        said.sent(0.0)
        assert said.hung_up(["a"], QUICK_S) is None


def test_where_nothing_arrives_no_message_is_to_blame_but_the_first_topic_is_named() -> None:
    said = Suspicion()
    said.connected(0.0)
    said.confirmed("availability")  # of an earlier connection
    for number in range(2 * STRIKES):
        assert bool(said.unwelcome) == (number > STRIKES)
        said.connected(0.0)
        said.sent(0.0)
        assert said.hung_up(["availability"], 0.1) is None
    assert said.unwelcome == "availability"
    said.confirmed("availability")
    assert not said.unwelcome


@pytest.mark.parametrize("between", [None, "unreachable", "lost", "long"])
def test_again_and_again(between: str | None) -> None:
    """Thrown out in turn; a broker that restarts, or a network that comes and goes, looks otherwise."""
    said, delays, flapping, start_s = Suspicion(), [], [], 1e6
    for _ in range(FLAPS + 3):
        said.connected(start_s)
        if between == "lost":
            said.lost(start_s + 1.0)
        else:
            said.hung_up([], start_s + (SHORT_S if between == "long" else 1.0))
        if between == "unreachable":
            said.unreachable()
        delays.append(said.delay_s)
        flapping.append(said.flapping)
    assert flapping == [between is None and number >= FLAPS for number in range(1, FLAPS + 4)]
    assert delays == ([1, 2, 4, 8, 16, 30, 30] if between in (None, "lost") else [1] * 7)
