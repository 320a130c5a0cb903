"""Stamps that can be compared although the clock jumps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_daemon.clock import STEP_S, Clock, Stamp, age_s, corrected, kernel_says, same_boot

YEAR_S = 365 * 86400.0
EARLY = Stamp(0.0, 50.0, "one", False)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (EARLY, Stamp(1.8e9, 60.0, "one", True), 10.0),
        (EARLY, Stamp(-YEAR_S, 60.0, "one", None), 10.0),
        (Stamp(1.8e9, 50.0, "one", True), Stamp(1.8e9 + 86400, 5.0, "two", True), 86400.0),
        (Stamp(1.8e9, 50.0, "one", True), Stamp(1.8e9 + 86400, 5.0, "two", False), None),
        (Stamp(1.8e9, 50.0, "one", False), Stamp(1.8e9 + 86400, 5.0, "two", True), None),
        (Stamp(1.8e9, 50.0, "one", None), Stamp(1.8e9 + 86400, 5.0, "two", True), None),
        (Stamp(1.8e9, 50.0, "", False), Stamp(1.8e9, 60.0, "", False), None),
    ],
)
def test_an_age_is_known_in_the_same_boot_or_by_two_right_clocks(
    then: Stamp, now: Stamp, expected: float | None
) -> None:
    assert age_s(then, now) == expected


def test_a_stamp_is_corrected_once_the_clock_is_right_in_the_same_boot() -> None:
    assert corrected(EARLY, Stamp(1.8e9, 60.0, "one", True)) == Stamp(1.8e9 - 10.0, 50.0, "one", True)
    assert corrected(EARLY, Stamp(1.8e9, 60.0, "one", False)) == EARLY
    assert corrected(EARLY, Stamp(1.8e9, 60.0, "two", True)) == EARLY
    right = Stamp(1.7e9, 50.0, "one", True)
    assert corrected(right, Stamp(1.8e9, 60.0, "one", True)) == right, (
        "what was right stays, whoever set the clock since"
    )


class Board:
    """A board whose time, kernel and time server are set by hand."""

    def __init__(self, directory: Path) -> None:
        self.unix_s, self.boot_s = 1000.0, 10.0
        self.kernel: bool | None = False
        self.flag = directory / "timesync" / "synchronized"
        self.clock = Clock(lambda: self.kernel, self.flag, lambda: self.unix_s, lambda: self.boot_s)

    def touch(self, when_ns: int) -> None:
        self.flag.parent.mkdir(exist_ok=True)
        self.flag.touch()
        os.utime(self.flag, ns=(when_ns, when_ns))

    def pass_by(self, seconds: float) -> None:
        self.unix_s += seconds
        self.boot_s += seconds

    @property
    def synced(self) -> bool | None:
        return self.clock().synced


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_the_kernel_knows_and_is_believed_for_the_rest_of_the_boot(board: Board) -> None:
    assert board.synced is False
    board.unix_s, board.kernel = 1.8e9, True
    assert board.synced is True
    board.kernel = False  # as after nine hours without a network
    board.pass_by(100_000)
    assert board.synced is True


def _kernel(board: Board) -> None:
    board.kernel = True


def _flag(board: Board) -> None:
    board.touch(2)


@pytest.mark.parametrize("set_right", [_kernel, _flag])
@pytest.mark.parametrize("jump_s", [10 * YEAR_S, -10 * YEAR_S, STEP_S + 1])
def test_a_clock_that_somebody_sets_is_not_believed_until_it_is_synchronised_again(
    board: Board, jump_s: float, set_right: Callable[[Board], None]
) -> None:
    board.touch(1)
    assert board.synced is True
    board.pass_by(5)
    board.unix_s += jump_s
    assert board.synced is False
    set_right(board)
    assert board.synced is True


def test_where_the_kernel_may_not_be_asked_the_file_tells(board: Board) -> None:
    board.kernel = None
    assert board.synced is None, "no time service that we know"
    board.flag.parent.mkdir()
    assert board.synced is False, "it runs, and has not reached a server"
    board.unix_s = 1.8e9
    board.touch(1)
    assert board.synced is True


def test_the_real_one() -> None:
    stamp = Clock()()
    assert abs(stamp.unix_s - time.time()) < 60
    assert 0 < stamp.boot_s <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert stamp.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert same_boot(stamp, Clock()())
    assert kernel_says() in (True, False)


def test_a_board_that_is_told_where_it_is_shows_the_hours_of_there_at_once() -> None:
    moves = "import os; from edge_daemon.clock import on_the_wall as wall; before = wall(); os.environ['TZ'] = 'JST-9'"
    code = f"{moves}; print(before.utcoffset(), wall().utcoffset())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"TZ": "UTC"}, check=True)
    assert ran.stdout == "0:00:00 9:00:00\n"
