"""How many threads, where nobody has said it."""

from __future__ import annotations

import os

import pytest

from edge_daemon.moondream import threads


@pytest.mark.parametrize(("cores", "number"), [(1, 1), (2, 2), (3, 3), (4, 3), (6, 5), (8, 7)])
def test_one_core_is_left_free_from_four_on(cores: int, number: int) -> None:
    chosen, reason = threads.automatic(cores)
    assert chosen == number
    assert ("left to the rest of the system" in reason) == (number < cores)


def test_only_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= threads.cores_here() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert threads.cores_here() == 1
