"""How many threads: what is tried, what is picked, and a record that survives whatever happened to its file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.demo import MODEL_DIR
from edge_daemon.moondream import threads
from edge_daemon.moondream.config import load_config
from edge_daemon.moondream.threads import CLOSE, Board, candidates, cpu_name, pick, read, threads_for, write

BOARD = Board("0x41 0xd08 0x0", 4, "2.13.0", "float32", "moondream-0.5b")
TIMINGS = st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1e3), min_size=1)


class Stopwatch:
    """Seconds for numbers of threads, as they are given; counts how often it was asked."""

    def __init__(self, timings_s: dict[int, float]) -> None:
        self.timings_s = timings_s
        self.asked: list[int] = []

    def begin(self) -> Callable[[int], float]:
        return self.measure

    def measure(self, number: int) -> float:
        self.asked.append(number)
        return self.timings_s[number]


@pytest.mark.parametrize(("cores", "tried"), [(1, [1]), (2, [2]), (3, [3]), (4, [4, 3]), (8, [8, 7])])
def test_one_core_is_left_free_only_where_there_are_four(cores: int, tried: list[int]) -> None:
    assert candidates(cores) == tried


@given(TIMINGS)
def test_the_fastest_is_picked_or_fewer_that_come_close(timings_s: dict[int, float]) -> None:
    chosen = pick(timings_s)
    best_s = min(timings_s.values())
    assert timings_s[chosen] <= best_s * (1 + CLOSE)
    assert all(taken_s > best_s * (1 + CLOSE) for number, taken_s in timings_s.items() if number < chosen)


def test_it_is_measured_once_on_a_board(tmp_path: Path) -> None:
    record, watch = tmp_path / "threads.json", Stopwatch({4: 1.0, 3: 0.8})
    assert threads_for(BOARD, record, watch.begin) == (3, "measured: 4 threads 1000 ms, 3 threads 800 ms")
    assert threads_for(BOARD, record, watch.begin) == (3, "measured earlier on this board")
    assert watch.asked == [4, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["threads.json"]


@pytest.mark.parametrize(
    "other",
    [
        Board("another", 4, "2.13.0", "float32", "moondream-0.5b"),
        Board(BOARD.cpu, 6, "2.13.0", "float32", "moondream-0.5b"),
        Board(BOARD.cpu, 4, "2.14.0", "float32", "moondream-0.5b"),
        Board(BOARD.cpu, 4, "2.13.0", "int8", "moondream-0.5b"),
        Board(BOARD.cpu, 4, "2.13.0", "float32", "moondream-2b"),
    ],
)
def test_what_else_matters_is_measured_anew_and_nothing_is_forgotten(tmp_path: Path, other: Board) -> None:
    record, watch = tmp_path / "threads.json", Stopwatch({6: 1.0, 5: 1.0, 4: 1.0, 3: 2.0})
    threads_for(BOARD, record, watch.begin)
    threads_for(other, record, watch.begin)
    assert len(watch.asked) == 4
    assert len(read(record)) == 2
    assert threads_for(BOARD, record, watch.begin) == (4, "measured earlier on this board")


def test_two_cores_are_both_taken_without_a_measurement(tmp_path: Path) -> None:
    watch = Stopwatch({})
    small = Board("x", 2, "2.13.0", "float32", "m")
    assert threads_for(small, tmp_path / "threads.json", watch.begin) == (2, "all 2 cores")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, json.dumps({BOARD.key: "3"}).encode()]
    + [json.dumps({BOARD.key: number}).encode() for number in (0, -1, 17, 3.0, True, None)],
)
def test_a_damaged_record_is_measured_anew_and_mended(tmp_path: Path, content: bytes) -> None:
    record, watch = tmp_path / "threads.json", Stopwatch({4: 1.0, 3: 0.5})
    record.write_bytes(content)
    assert threads_for(BOARD, record, watch.begin)[0] == 3
    assert watch.asked == [4, 3]
    assert read(record) == {BOARD.key: 3}


def test_a_record_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = tmp_path / "nowhere" / "threads.json"
    assert threads_for(BOARD, record, Stopwatch({4: 1.0, 3: 2.0}).begin)[0] == 4
    assert "the number of threads is not remembered: No such file or directory" in caplog.text
    taken = tmp_path / "threads.json"
    taken.mkdir()
    write(taken, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["threads.json"], "and nothing half-made is left"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: fpu\n", "AMD EPYC 7B13"),
        ("CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n", "0x41 0xd0b 0x4"),
        ("", "unknown"),
    ],
)
def test_the_processor_has_a_name(cpuinfo: str, name: str) -> None:
    assert cpu_name(cpuinfo) == name


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_products_in_the_models_shapes_take_time(precision: str) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        measure = threads.measuring(load_config(MODEL_DIR / "config.json"), precision)
        assert measure(1) > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_only_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= threads.cores_here() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert threads.cores_here() == 1
