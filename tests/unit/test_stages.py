"""The stages of the memory watchdog: in order down and up, no flapping, and straight to the end in an emergency."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon import memory
from edge_daemon.cgroup import Level
from edge_daemon.memory import CGROUP_RESERVE_BYTES, RESERVE_BYTES, Needs
from edge_daemon.readings import Pressure, Reading
from edge_daemon.stages import (
    CALM_S,
    IN_WORDS,
    LONGEST_CALM_S,
    MARGIN_BYTES,
    PATIENCE,
    TRIFLE_POSITIONS,
    Plan,
    Stage,
    Stages,
    View,
)
from edge_daemon.units import MIB

NEEDS = Needs(100 * MIB, 200 * MIB, 300 * MIB, 50 * MIB, 250 * MIB, MIB // 10, 730, 2048)
"""The full context takes 1055 MiB, the shortest cache 928, and with the vision encoder given back 728."""
WEIGHTS_MIB = 600
LOOK_S = 1.0


@dataclass
class Board:
    """A board on which others take memory, and a worker that does as it is told, from one look to the next."""

    free_mib: float = 4000.0
    """Without the worker."""
    worker_mib: float | None = WEIGHTS_MIB
    pressure: Pressure | None = None
    level_mib: tuple[float, float] | None = None
    """Limit of our cgroup, and what others take in it."""
    busy: bool = False
    needs: Needs = NEEDS
    less: Needs | None = None
    wanted: int | None = None
    positions: int = 2048
    now_s: float = 50.0
    stages: Stages = field(default_factory=Stages)
    plans: list[Plan] = field(default_factory=list)
    obeys: bool = True

    def view(self) -> View:
        held = self.worker_mib or 0
        level = None
        if self.level_mib is not None:
            level = Level(int(self.level_mib[0] * MIB), int((self.level_mib[1] + held) * MIB))
        worker_bytes = None if self.worker_mib is None else int(held * MIB)
        available = int(max(0.0, self.free_mib - held) * MIB)
        reading = Reading(worker_bytes, available, level, self.pressure)
        limit = memory.budget(memory.limits_of(reading, None))
        return View(reading, limit, self.needs, self.wanted, self.positions, self.busy, self.less)

    def look(self, times: int = 1) -> Plan:
        for _ in range(times):
            plan = self.stages.look(self.view(), self.now_s)
            self.plans.append(plan)
            self.now_s += LOOK_S
            if self.obeys:
                self.obey(plan)
        return plan

    def obey(self, plan: Plan) -> None:
        if plan.worker.startswith("end"):
            self.worker_mib = None
        elif plan.worker == "start":
            self.worker_mib, self.positions = WEIGHTS_MIB, plan.positions
        self.positions = plan.positions

    def entered(self) -> list[str]:
        """Every stage that was entered, in order."""
        names = [plan.stage.name.lower() for plan in self.plans]
        return [name for name, before in zip(names, ["", *names], strict=False) if name != before]


def room_mib(mib: float) -> float:
    """What has to be free, without the worker, that it may have so much."""
    return mib + RESERVE_BYTES / MIB


def test_with_much_memory_nothing_is_done() -> None:
    board = Board()
    plan = board.look(20)
    assert plan == Plan(Stage.OK, 2048, False, "keep", plan.reason)
    assert board.entered() == ["ok"]


def test_every_stage_is_entered_in_its_turn_and_left_in_its_turn() -> None:
    board = Board()
    board.look()
    board.free_mib = room_mib(WEIGHTS_MIB - 40)
    board.look(10)
    assert board.entered() == ["ok", "capped", "released", "paused", "recycled", "unloaded"]
    assert board.worker_mib is None
    down, board.free_mib = len(board.plans), 4000.0
    board.look(60)
    assert board.entered()[5:] == ["unloaded", "recycled", "paused", "released", "capped", "ok"]
    back = next(n for n, plan in enumerate(board.plans[down:]) if plan.stage == Stage.RELEASED)
    assert back * LOOK_S <= 3 * (CALM_S + LOOK_S), "captions begin again"
    assert board.positions == 2048
    assert board.worker_mib == WEIGHTS_MIB


def test_at_the_start_without_memory_nothing_is_loaded_until_there_is() -> None:
    board = Board(free_mib=room_mib(WEIGHTS_MIB), worker_mib=None, positions=0)
    plan = board.look(30)
    assert (plan.stage, plan.worker, board.worker_mib) == (Stage.UNLOADED, "keep", None)
    board.free_mib = 4000.0
    board.look(60)
    assert board.entered() == ["unloaded", "recycled", "paused", "released", "capped", "ok"]
    assert (board.worker_mib, board.positions) == (WEIGHTS_MIB, 2048)


def test_memory_that_was_back_before_the_first_look_is_no_story() -> None:
    board = Board(worker_mib=None, positions=0)
    board.look(3)
    assert board.entered() == ["ok"]


@pytest.mark.parametrize(
    ("may_have_mib", "rests_at", "positions"),
    [
        (1200, Stage.OK, 2048),
        (1000, Stage.CAPPED, 1500),
        (750, Stage.RELEASED, 778),
        (690, Stage.PAUSED, 778),
        (599, Stage.UNLOADED, 778),
    ],
)
def test_where_it_comes_to_rest(may_have_mib: float, rests_at: Stage, positions: int) -> None:
    board = Board()
    board.look()
    board.free_mib = room_mib(may_have_mib)
    plan = board.look(20)
    assert plan.stage == rests_at
    assert plan.positions == positions
    assert plan.releases_vision == (rests_at >= Stage.RELEASED)
    assert (board.worker_mib is None) == (rests_at == Stage.UNLOADED)


def test_a_step_down_takes_a_second_however_often_one_looks() -> None:
    board = Board()
    board.look()
    board.free_mib = room_mib(WEIGHTS_MIB - 40)
    start_s = board.now_s
    while board.worker_mib is not None:
        plan = board.stages.look(board.view(), board.now_s)
        board.obey(plan)
        board.now_s += 0.1
    assert 3.0 <= board.now_s - start_s <= 6.0


def test_the_cap_falls_at_once_and_rises_after_a_calm_time() -> None:
    board = Board(free_mib=room_mib(1000), positions=1500)
    assert board.look().stage == Stage.CAPPED
    board.free_mib = room_mib(990)
    assert board.look().positions == 1400
    board.free_mib = room_mib(1000) + MARGIN_BYTES / MIB
    plans = [board.look().positions for _ in range(6)]
    assert plans == [1400, 1400, 1400, 1500, 1500, 1500]


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=40))
def test_a_little_more_or_less_changes_nothing(wobble: list[float]) -> None:
    board = Board(free_mib=room_mib(1000), positions=1500)
    board.look()
    for mib in wobble:
        board.free_mib = room_mib(1000) + mib
        board.look()
    assert {plan.positions for plan in board.plans} == {1500}
    assert board.entered() == ["capped"]


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=60), st.booleans())
def test_whatever_others_take_stages_are_neighbours_but_in_an_emergency(free_mib: list[float], busy: bool) -> None:
    board = Board(busy=busy)
    for mib in free_mib:
        board.free_mib = mib
        view = board.view()
        before = board.stages.stage
        plan = board.look()
        if before is not None and not view.emergency:
            assert abs(plan.stage - before) <= 1
        if before is not None and view.emergency and view.there:
            assert (plan.stage, plan.worker) == (Stage.UNLOADED, "end at once")
        assert NEEDS.smallest_positions <= plan.positions <= NEEDS.max_positions
        if plan.stage >= Stage.PAUSED:
            assert plan.positions == NEEDS.smallest_positions


@given(st.floats(0, 3000))
def test_a_cap_is_within_what_the_worker_may_have(free_mib: float) -> None:
    board = Board()
    board.look()
    board.free_mib = free_mib
    for _ in range(12):
        view, plan = board.view(), board.look()
        if plan.stage < Stage.PAUSED and plan.positions > NEEDS.smallest_positions:
            needs = replace(NEEDS, releases_vision=plan.releases_vision)
            assert needs.at(plan.positions - TRIFLE_POSITIONS) <= view.limit.limit_bytes + MARGIN_BYTES


@given(st.floats(0, 4000))
def test_it_comes_to_rest(free_mib: float) -> None:
    board = Board()
    board.look()
    board.free_mib = free_mib
    board.look(60)
    board.plans.clear()
    board.look(120)
    assert len(board.entered()) == 1


def test_a_worker_that_just_fits_is_not_paused_for_what_a_grabber_takes() -> None:
    released_mib = replace(NEEDS, releases_vision=True).at(NEEDS.smallest_positions) / MIB
    board = Board(free_mib=room_mib(released_mib), positions=778)
    board.look()
    board.free_mib -= MARGIN_BYTES / MIB - 1
    assert board.look(60).stage == Stage.RELEASED
    board.free_mib -= 2
    assert board.look(60).stage == Stage.PAUSED


def test_memory_that_comes_and_goes_is_trusted_less_and_less() -> None:
    """Each time the model would be read again from the card."""
    board = Board()
    board.look()
    starts = []
    for _ in range(4):
        board.free_mib = room_mib(WEIGHTS_MIB - 40)
        board.look(12)
        begin, board.free_mib = len(board.plans), 4000.0
        while board.worker_mib is None:
            board.look()
        starts.append(len(board.plans) - begin)
    assert starts == sorted(starts)
    assert starts[-1] >= 4 * starts[0]
    assert starts[-1] <= LONGEST_CALM_S + 5
    board.look(600)
    assert board.plans[-1].stage == Stage.OK


@pytest.mark.parametrize(("more_mib", "calm_times"), [(1, PATIENCE), (MARGIN_BYTES / MIB + 1, 1)])
def test_where_it_just_fits_it_comes_back_later(more_mib: float, calm_times: int) -> None:
    board = Board()
    board.look()
    board.free_mib = room_mib(WEIGHTS_MIB - 40)
    board.look(10)
    released_mib = replace(NEEDS, releases_vision=True).at(NEEDS.smallest_positions) / MIB
    board.free_mib = room_mib(released_mib - 1)
    assert board.look(60).stage == Stage.UNLOADED
    board.free_mib = room_mib(released_mib + more_mib)
    returned_s = board.now_s
    while board.worker_mib is None:
        board.look()
    assert board.now_s - returned_s - LOOK_S == calm_times * CALM_S
    assert board.look(60).stage == Stage.RELEASED


# ---- emergencies


def test_an_emergency_ends_the_worker_at_once() -> None:
    board = Board(busy=True)
    board.look()
    board.free_mib = WEIGHTS_MIB + RESERVE_BYTES / MIB / 2 - 1
    plan = board.look()
    assert (plan.stage, plan.worker) == (Stage.UNLOADED, "end at once")


def test_a_cgroup_near_its_limit_is_an_emergency() -> None:
    left_mib = CGROUP_RESERVE_BYTES / MIB / 2
    board = Board(level_mib=(2000, 2000 - WEIGHTS_MIB - left_mib + 1))
    board.look()
    assert board.look().worker == "end at once"
    roomier = Board(level_mib=(2000, 2000 - WEIGHTS_MIB - left_mib - 1))
    roomier.look()
    assert roomier.look().stage < Stage.UNLOADED


def test_without_a_worker_there_is_nothing_to_end() -> None:
    board = Board()
    board.look()
    board.free_mib = 10.0
    board.look(3)
    assert board.worker_mib is None
    assert board.look(20).worker == "keep"
    assert board.plans[-1].stage == Stage.UNLOADED


# ---- the worker, between captions


def test_a_caption_in_flight_is_waited_for_before_the_worker_is_recycled() -> None:
    board = Board(busy=True)
    board.look()
    board.free_mib = room_mib(WEIGHTS_MIB - 40)
    assert board.look(30).stage == Stage.PAUSED
    board.busy = False
    board.look(3)
    assert board.worker_mib is None


def test_a_worker_that_is_not_yet_gone_is_asked_again() -> None:
    board = Board(obeys=False)
    board.look()
    board.free_mib = room_mib(WEIGHTS_MIB - 40)
    board.look(6)
    assert [plan.worker for plan in board.plans[-2:]] == ["end", "end"]
    assert board.plans[-1].stage == Stage.RECYCLED, "whether a fresh one fits can be seen when it has gone"


def test_a_fresh_worker_is_started_where_it_fits() -> None:
    """The old one had grown by itself: what it gives back is enough."""
    board = Board(worker_mib=1300)
    board.look()
    board.free_mib = room_mib(1260)
    board.needs = replace(NEEDS, runtime_bytes=NEEDS.runtime_bytes + 900 * MIB)  # what it grew by
    board.look(4)
    board.needs = NEEDS
    board.look(2)
    assert "unloaded" not in board.entered()
    assert [plan.worker for plan in board.plans if plan.worker != "keep"] == ["end", "start"]


@pytest.mark.parametrize(("busy", "pressure"), [(False, None), (True, None), (False, Pressure(50.0, 10.0))])
def test_a_worker_that_only_waits_is_replaced_by_one_that_can_do_with_less(
    busy: bool, pressure: Pressure | None
) -> None:
    """After a while, and neither in the middle of a caption nor while the board is short of memory."""
    board = Board(less=replace(NEEDS, text_bytes=100 * MIB))
    board.look()
    board.free_mib = room_mib(690)
    while board.look().stage != Stage.PAUSED:
        pass
    paused_s = board.stages.since_s
    board.busy, board.pressure = busy, pressure
    assert board.look(int(LONGEST_CALM_S) - 1).stage == Stage.PAUSED
    if busy or pressure:
        assert board.look(120).stage == Stage.PAUSED
        board.busy, board.pressure = False, None
    plan = board.look()
    assert (plan.stage, plan.worker) == (Stage.RECYCLED, "end")
    assert board.stages.since_s - paused_s >= LONGEST_CALM_S
    board.needs = board.less or NEEDS
    assert board.look().worker == "start"
    assert "unloaded" not in board.entered()


def test_a_worker_that_waits_is_kept_where_a_fresh_one_would_only_just_fit() -> None:
    board = Board(less=replace(NEEDS, text_bytes=240 * MIB))  # 668 MiB, and a margin of 32
    board.look()
    board.free_mib = room_mib(690)
    assert board.look(300).stage == Stage.PAUSED


# ---- pressure


def test_pressure_is_a_step_down_and_no_more() -> None:
    board = Board(pressure=Pressure(30.0, 1.0))
    board.look()
    plan = board.look(30)
    assert plan.stage == Stage.CAPPED
    assert plan.positions == NEEDS.useful_positions
    assert "waited for memory 30 % of the last 10 s" in plan.reason


@pytest.mark.parametrize(("some", "full", "strained"), [(20.0, 5.0, False), (20.1, 0.0, True), (0.0, 5.1, True)])
def test_where_pressure_begins(some: float, full: float, strained: bool) -> None:
    assert Board(pressure=Pressure(some, full)).view().strained is strained


def test_under_pressure_nothing_is_taken_back() -> None:
    board = Board()
    board.look()
    board.free_mib = room_mib(650)
    board.look(10)
    board.free_mib, board.pressure = 4000.0, Pressure(50.0, 10.0)
    assert board.look(60).stage == Stage.PAUSED
    board.pressure = Pressure(1.0, 0.0)
    assert board.look(60).stage == Stage.OK


def test_pressure_never_unloads() -> None:
    board = Board()
    board.look()
    board.free_mib, board.pressure = room_mib(650), Pressure(90.0, 60.0)
    assert board.look(60).stage == Stage.PAUSED


# ---- what the owner asked for


def test_a_wish_for_a_short_cache_is_no_lack() -> None:
    board = Board(wanted=1000, positions=1000, free_mib=room_mib(960))
    plan = board.look(5)
    assert (plan.stage, plan.positions) == (Stage.OK, 1000)


@pytest.mark.parametrize(("wanted", "positions"), [(5000, 2048), (2, 778)])
def test_a_wish_beyond_what_the_model_can_is_no_lack(wanted: int, positions: int) -> None:
    """Its context is shorter, and its shortest caption longer: nobody can have that, with any memory."""
    plan = Board(wanted=wanted, positions=positions).look(5)
    assert (plan.stage, plan.positions) == (Stage.OK, positions)


def test_a_small_board_is_released_from_its_start() -> None:
    """As the worker itself decided by `memory.fit`."""
    board = Board(free_mib=room_mib(750), positions=1000)
    plan = board.look()
    assert (plan.stage, plan.releases_vision, plan.positions) == (Stage.RELEASED, True, 1000)


def test_every_stage_has_words() -> None:
    assert set(IN_WORDS) == set(Stage)
    assert len(set(IN_WORDS.values())) == len(Stage)
