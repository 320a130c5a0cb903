"""The plan: the same for the same seed, nothing twice on one part at a time, everything in its turn."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.chaos.deeds import DEEDS
from tests.chaos.plan import DEATHS, DEATHS_IN_S, KINDS, LIVES_FROM, LONG_S, SHORT_RUN_S, Deed, plan

NAMED = {kind.name: kind for kind in KINDS}
SEEDS = range(30)


def drawn(seed: int, run_s: float) -> list[Deed]:
    return plan(random.Random(seed), run_s)


def test_every_kind_can_be_done() -> None:
    assert set(DEEDS) == set(NAMED)


def test_a_seed_is_a_plan() -> None:
    assert drawn(1, 130) == drawn(1, 130)
    assert drawn(1, 130) != drawn(2, 130)


@pytest.mark.parametrize("run_s", [130.0, 2600.0])
def test_deeds_on_one_part_do_not_overlap(run_s: float) -> None:
    for seed in SEEDS:
        deeds = drawn(seed, run_s)
        for part in {deed.part for deed in deeds}:
            for first, second in pairwise(deed for deed in deeds if deed.part == part):
                assert second.at_s >= first.at_s + first.for_s


def test_a_short_run_does_nearly_everything_and_a_long_one_all() -> None:
    short = [len({deed.kind for deed in drawn(seed, 130)}) for seed in SEEDS]
    assert min(short) >= len(KINDS) * 2 // 3
    assert all({deed.kind for deed in drawn(seed, 2600)} == set(NAMED) for seed in SEEDS)


def test_the_last_life_of_the_daemon_is_long() -> None:
    for seed in SEEDS:
        for run_s in (130.0, 2600.0):
            ends = [deed.at_s for deed in drawn(seed, run_s) if NAMED[deed.kind].ends_daemon]
            assert max(ends, default=0.0) <= LIVES_FROM * run_s


def test_no_child_dies_more_often_than_it_is_started_in_time() -> None:
    for seed in SEEDS:
        since_s: dict[str, list[float]] = {}
        for deed in drawn(seed, 2600):
            kind = NAMED[deed.kind]
            if kind.ends_daemon:
                since_s.clear()
            if kind.ends_child:
                since_s.setdefault(deed.part, []).append(deed.at_s)
                recent = [at_s for at_s in since_s[deed.part] if deed.at_s - at_s < DEATHS_IN_S]
                assert len(recent) <= DEATHS


def test_what_lasts_long_has_no_place_in_a_short_run() -> None:
    assert not [deed for seed in SEEDS for deed in drawn(seed, SHORT_RUN_S - 1) if deed.for_s > LONG_S]


def test_there_is_quiet_now_and_then() -> None:
    for seed in SEEDS:
        starts = [deed.at_s for deed in drawn(seed, 130)]
        assert max(b - a for a, b in pairwise(starts)) >= 9
