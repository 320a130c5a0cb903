"""A million broken files, told in a few lines, of which none is lost."""

from __future__ import annotations

from edge_daemon.broken_files import EVERY_S, TOLD, BrokenFiles


def test_the_first_are_told_and_then_their_number_now_and_then() -> None:
    broken, told = BrokenFiles(), []
    for number in range(100_000):
        now_s = number / 100
        told.append(broken.another(f"{number} is broken", now_s))
    lines = [words for words in told if words]
    assert lines[:TOLD] == [f"{number} is broken" for number in range(TOLD)]
    sums = lines[TOLD:]
    assert len(sums) == now_s // EVERY_S
    assert sums[0] == f"6000 more files could not be read; the last one: {TOLD + 5999} is broken"
    rest = broken.due(now_s + EVERY_S)
    assert sum(int(words.split()[0]) for words in [*sums, rest]) == 100_000 - TOLD
    assert broken.due(now_s + 9 * EVERY_S) == ""


def test_a_good_one_ends_the_row() -> None:
    broken = BrokenFiles()
    for number in range(TOLD + 3):
        broken.another(f"{number} is broken", 0.0)
    assert broken.due(EVERY_S - 0.1) == ""
    assert broken.over(1.0) == f"3 more files could not be read; the last one: {TOLD + 2} is broken"
    assert broken.over(1.0) == ""
    assert broken.another("the next is broken", 1.0) == "the next is broken"
