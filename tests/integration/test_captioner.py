"""The captioner with real children that boot, hang, die, babble, refuse and hold on."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from edge_daemon import rehearsal, restart_policy
from edge_daemon.captioner import Captioner
from edge_daemon.config import ModelConfig
from edge_daemon.deaths import Witness
from edge_daemon.errors import (
    BudgetError,
    CaptionError,
    ChildBootError,
    ChildDied,
    ChildEnded,
    ChildError,
    ChildTimeout,
    ModelError,
)
from edge_daemon.memory import CGROUP_RESERVE_BYTES
from edge_daemon.memory_watchdog import MemoryWatchdog
from edge_daemon.messages import Request, Task
from edge_daemon.readings import Files
from tests.integration.paper_cgroup import PaperFiles
from tests.integration.service import wait_for

STAND_IN = Path(__file__).with_name("stand_in.py")
SILENCE_S = 2.0
TASKS = [Task("caption", "caption", "short"), Task("gate", "query", "Is it open?")]
REQUEST = Request(512, 512, TASKS, 64, 0.0, 1.0, bytes(512 * 512 * 3))
GOOD = ["ready", "answer"]


@dataclass
class Theatre:
    """A captioner whose workers follow a plan."""

    directory: Path
    beats: int = 0
    states: list[str] = field(default_factory=list)
    """Every state that was announced."""

    def captioner(
        self, *lives: list[str], start_timeout_s: float = 60.0, silence_s: float | Literal["auto"] = SILENCE_S
    ) -> Captioner:
        (self.directory / "plan.json").write_text(json.dumps(lives))
        config = ModelConfig(
            threads=2, memory_limit_mib=300, start_timeout_s=start_timeout_s, silence_timeout_s=silence_s
        )
        command = [sys.executable, str(STAND_IN), str(self.directory)]

        def changed() -> None:
            self.states.append(made.state.phase)

        made = Captioner(config, Path("/models/none"), self.beat, changed, command)
        return made

    def beat(self) -> None:
        self.beats += 1

    def lives(self) -> list[dict[str, object]]:
        """What the workers left behind, in their order."""
        files = sorted(self.directory.glob("life-*.json"), key=lambda path: int(path.stem[5:]))
        return [json.loads(path.read_text()) for path in files]

    def caps(self) -> list[list[int]]:
        """KV positions and whether to release, as the last worker was told."""
        files = list(self.directory.glob("caps-*.json"))
        return json.loads(files[-1].read_text()) if files else []  # type: ignore[no-any-return]

    def alive(self) -> list[int]:
        """Pids of workers that are still there."""
        return [pid for life in self.lives() if Path(f"/proc/{(pid := int(str(life['pid'])))}").exists()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    """Restarts come at once; whatever happens, no worker is left."""
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.01)
    made = Theatre(tmp_path)
    yield made
    assert made.alive() == []


async def test_a_worker_starts_and_answers(stage: Theatre) -> None:
    captioner = stage.captioner(GOOD)
    report = await captioner.ready()
    assert (report.model, report.note, report.kv_positions) == ("stand-in", "knows nothing", 256)
    results = await captioner.run(REQUEST)
    assert [(task.id, task.text) for task in results.tasks] == [
        ("caption", "short of 786432 bytes"),
        ("gate", "Is it open? of 786432 bytes"),
    ]
    assert captioner.state.rss_bytes == 6 << 20
    assert (await captioner.run(REQUEST)).tasks == results.tasks
    assert stage.states == ["starting", "ready"]
    assert len(stage.lives()) == 1
    await captioner.stop(60)


async def test_it_is_told_its_budget_and_its_options(stage: Theatre) -> None:
    captioner = stage.captioner(GOOD)
    await captioner.ready()
    await captioner.stop(60)
    arguments = stage.lives()[0]["arguments"]
    assert isinstance(arguments, list)
    assert arguments[:2] == ["--model", "/models/none"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["--threads"] == "2"
    assert options["--kv-positions"] == "auto"
    assert (options["--device"], options["--precision"]) == ("auto", "auto")
    assert options["--kv-precision"] == "auto"
    assert 0 < int(options["--budget-bytes"]) <= 300 << 20
    assert options["--budget-reason"]


@pytest.mark.parametrize(("ours", "workers"), [(None, "2"), ("5", "5")])
async def test_its_c_library_keeps_two_arenas_unless_the_owner_says_otherwise(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch, ours: str | None, workers: str
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if ours is not None:
        monkeypatch.setenv("MALLOC_ARENA_MAX", ours)
    captioner = stage.captioner(GOOD)
    await captioner.ready()
    await captioner.stop(60)
    assert stage.lives()[0]["arenas"] == workers


async def test_a_rehearsal_tells_what_a_picture_takes(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer slowly", "answer"], silence_s="auto")
    await captioner.ready()
    assert captioner.pace.interval_s is None
    await captioner.rehearse(rehearsal.request())
    assert captioner.state.rehearsal == {"encode_s": 0.001, "prefill_s": 0.001, "token_s": 0.0007}
    rehearsed_s = captioner.pace.interval_s
    assert rehearsed_s is not None
    assert rehearsed_s >= 8 * 0.4, "it takes this long to answer slowly"
    assert captioner.pace.silence_s == restart_policy.SHORTEST_SILENCE_S
    await captioner.run(REQUEST)
    assert captioner.pace.interval_s < rehearsed_s, "a real picture counts more"
    await captioner.stop(60)


async def test_the_longest_silence_sets_the_deadline(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "SHORTEST_SILENCE_S", 0.0)
    captioner = stage.captioner(["ready", "answer slowly"], silence_s="auto")
    await captioner.run(REQUEST)
    interval_s = captioner.pace.interval_s
    assert interval_s is not None
    assert 10 * 0.4 <= captioner.pace.silence_s < 10 * interval_s, "of a step, not of the whole"
    await captioner.stop(60)


async def test_a_worker_is_held_to_the_measured_deadline(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "SHORTEST_SILENCE_S", 1.0)
    captioner = stage.captioner(["ready", "answer", "hang"], silence_s="auto")
    await captioner.run(REQUEST)
    with pytest.raises(ChildTimeout, match="sent nothing for 1 s and was killed"):
        await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_a_rehearsal_without_a_caption_is_an_error_and_costs_nothing(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer with an error", "answer"])
    with pytest.raises(CaptionError, match="no such length"):
        await captioner.rehearse(rehearsal.request())
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 0
    assert captioner.state.rehearsal == {}
    await captioner.stop(60)


async def test_who_stops_waiting_for_a_rehearsal_ends_the_worker(
    stage: Theatre, caplog: pytest.LogCaptureFixture
) -> None:
    """The service stops: nobody waits for a caption that nobody asked for."""
    captioner = stage.captioner(["ready", "chatter"])
    asking = asyncio.create_task(captioner.rehearse(rehearsal.request()))
    while stage.beats < 5:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert stage.alive() == []
    await captioner.stop(60)
    assert "did not end" not in caplog.text


async def test_a_regrettable_wish_is_warned_of_once(stage: Theatre, caplog: pytest.LogCaptureFixture) -> None:
    captioner = stage.captioner(
        ["ready with a warning", "answer", "die of sigkill"], ["ready with a warning", "answer"]
    )
    await captioner.run(REQUEST)
    with pytest.raises(ChildDied):
        await captioner.run(REQUEST)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 1
    assert [r.levelname for r in caplog.records if r.getMessage() == "bfloat16 is emulated here"] == ["WARNING"]
    assert captioner.state.ready is not None
    assert captioner.state.ready.warning
    await captioner.stop(60)


async def test_every_step_is_a_beat(stage: Theatre) -> None:
    captioner = stage.captioner(GOOD)
    await captioner.ready()
    assert stage.beats == 2  # importing, ready
    await captioner.run(REQUEST)
    assert stage.beats == 5  # encode and two tasks
    await captioner.stop(60)


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("die of sigill", "was ended by SIGILL (a program made for a newer processor)"),
        ("die of sigill", "pip install torch==2.9.1"),
        ("die of sigsegv", "edge-daemon model verify"),
        ("die with words", "ended with exit code 1; its last words: RuntimeError: no room for tensors"),
        ("babble", "sent something that is not a message"),
        ("begin with results", "first message was Results"),
    ],
)
async def test_a_worker_that_can_never_start_is_given_up(stage: Theatre, deed: str, words: str) -> None:
    captioner = stage.captioner([deed])
    with pytest.raises(ChildBootError) as caught:
        await captioner.ready()
    assert words in str(caught.value)
    assert words in captioner.state.last_death
    assert len(stage.lives()) == captioner.state.restarts == 2
    assert stage.states == ["starting", "restarting", "starting", "failed"]


async def test_a_worker_that_is_killed_at_its_start_again_and_again_is_not_given_up(stage: Theatre) -> None:
    """Whatever takes the memory of a board when it boots gives it back one day."""
    captioner = stage.captioner(["die of sigkill"], ["die of sigkill"], GOOD)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 2
    assert "was ended by SIGKILL, not by the kernel" in captioner.state.last_death
    await captioner.stop(60)


@pytest.mark.parametrize("deed", ["hang", "chatter"])
async def test_a_worker_that_is_never_ready_is_given_up(stage: Theatre, deed: str) -> None:
    captioner = stage.captioner([deed], start_timeout_s=0.5)
    with pytest.raises(ChildBootError, match="the worker was not ready within 0 s"):
        await captioner.ready()
    assert captioner.state.restarts == 2
    assert stage.alive() == []


async def test_a_start_that_failed_once_is_tried_again(stage: Theatre) -> None:
    captioner = stage.captioner(["die of sigkill"], ["die with words"], ["babble"], GOOD)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 3
    assert stage.states[-1] == "ready"
    await captioner.stop(60)


@pytest.mark.parametrize(
    ("deed", "error"),
    [("refuse for memory", BudgetError), ("refuse for ever", BudgetError), ("refuse the model", ModelError)],
)
async def test_a_refusal_at_the_first_start_is_final(stage: Theatre, deed: str, error: type[Exception]) -> None:
    captioner = stage.captioner([deed])
    with pytest.raises(error, match=r"is not there|are missing"):
        await captioner.ready()
    assert stage.states == ["starting", "failed"]
    assert captioner.state.last_death in ("100 MiB of memory are missing", "config.json is not there")
    assert len(stage.lives()) == 1


async def test_memory_that_others_have_at_the_first_start_is_waited_for(stage: Theatre, tmp_path: Path) -> None:
    """A cgroup of paper has it; the rest is real. From the refusal on it is the watchdog that starts the worker."""
    captioner = stage.captioner(["refuse for now"], ["refuse for now"], ["ready with needs", "answer"])
    files = captioner.witness.files = PaperFiles.made(tmp_path, 4096 << 20, 3846 << 20)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    with pytest.raises(ChildEnded, match="100 MiB of memory are missing"):
        await captioner.ready()
    assert (stage.states, captioner.pid) == (["starting", "unloaded"], None)
    with pytest.raises(ChildEnded, match="not enough free memory"):
        await captioner.ready()
    await looked(watchdog, 30)
    with pytest.raises(ChildEnded, match="not enough free memory"):
        await captioner.run(REQUEST)
    document = watchdog.document()
    assert document["stage"] == "unloaded"
    assert "no model is loaded; it may use 186 (the cgroup's limit of 4096 MiB" in document["reason"]
    assert len(stage.lives()) == 1, "nothing is tried in vain"

    files.use(20 << 20)
    now_s = 100.0
    while not captioner.is_ready:  # the second one is refused as well
        await looked(watchdog, 1, now_s)
        await asyncio.sleep(0.01)
        now_s += 1.0
    await looked(watchdog, 30, now_s)
    assert watchdog.state.stage.name == "OK"
    assert (captioner.state.restarts, len(stage.lives())) == (0, 3)
    await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_where_its_program_alone_has_no_room_no_worker_is_started(stage: Theatre, tmp_path: Path) -> None:
    """It would be killed before it could say what it needs. Here it never says that."""
    captioner = stage.captioner(GOOD)
    files = captioner.witness.files = PaperFiles.made(tmp_path, 4096 << 20, 3896 << 20)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    with pytest.raises(ChildEnded, match=r"it may use 136 MiB .* its program alone takes 160"):
        await captioner.ready()
    for second in range(3):
        await looked(watchdog, 1, float(second))
        await asyncio.sleep(0.05)
    assert stage.lives() == []
    assert captioner.state.phase == "unloaded"
    document = watchdog.document()
    assert document["stage"] == "unloaded"
    assert "its program alone takes 160" in document["reason"]
    with pytest.raises(ChildEnded):
        await captioner.run(REQUEST)

    files.use(50 << 20)
    while not captioner.is_ready:
        await looked(watchdog, 1)
        await asyncio.sleep(0.01)
    await looked(watchdog, 1)
    assert watchdog.document()["stage"] == "ok"
    await asyncio.wait_for(captioner.until_allowed(), 60)
    await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_a_first_worker_that_dies_when_memory_is_back_is_followed_by_another(
    stage: Theatre, tmp_path: Path
) -> None:
    """Nobody may ask for one yet, so that it is for the watchdog to start it. Many looks start no two at a time."""
    captioner = stage.captioner(["die of sigkill"], GOOD)
    files = captioner.witness.files = PaperFiles.made(tmp_path, 4096 << 20, 3896 << 20)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    with pytest.raises(ChildEnded):
        await captioner.ready()
    files.use(50 << 20)
    async with asyncio.timeout(60):
        while not captioner.is_ready:
            await looked(watchdog, 1)
            await asyncio.sleep(0.001)
    await looked(watchdog, 3)
    assert captioner.is_allowed
    await captioner.run(REQUEST)
    assert (captioner.state.restarts, len(stage.lives())) == (1, 2)
    await captioner.stop(60)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [("refuse for memory", "100 MiB of memory are missing"), ("refuse the model", "config.json is not there")],
)
async def test_what_was_there_once_is_waited_for(stage: Theatre, deed: str, reason: str) -> None:
    captioner = stage.captioner(["ready", "die of sigkill"], *[[deed]] * 4, GOOD)
    await captioner.ready()
    with pytest.raises(ChildDied):
        await captioner.run(REQUEST)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 5
    assert captioner.state.last_death == reason
    await captioner.stop(60)


async def test_also_while_nobody_asks_anything(stage: Theatre) -> None:
    captioner = stage.captioner(["ready with needs"], *[["refuse the model"]] * 2, ["ready with needs"])
    watchdog = MemoryWatchdog(captioner, lambda: None)
    await captioner.ready()
    await captioner.end("there is none")
    while captioner.state.restarts < 2 or not captioner.is_ready:
        await looked(watchdog, 1)
        await asyncio.sleep(0.01)
    assert stage.states[-1] == "ready"
    await captioner.stop(60)


@pytest.mark.parametrize(
    ("deed", "error", "words"),
    [
        ("die of sigkill", ChildDied, "was ended by SIGKILL, not by the kernel"),
        ("die of sigill", ChildDied, "was ended by SIGILL"),
        ("die with words", ChildDied, "its last words: RuntimeError: no room for tensors"),
        ("babble", ChildDied, "sent something that is not a message"),
        ("hang", ChildTimeout, "sent nothing for 2 s and was killed"),
        ("answer with idle", ChildError, "sent an unexpected answer: Idle"),
        ("answer another question", ChildError, "sent an unexpected answer: Results"),
    ],
)
async def test_a_worker_that_dies_of_a_request_is_replaced(
    stage: Theatre, deed: str, error: type[Exception], words: str
) -> None:
    captioner = stage.captioner(["ready", "answer", deed], GOOD)
    await captioner.run(REQUEST)
    with pytest.raises(error) as caught:
        await captioner.run(REQUEST)
    assert words in str(caught.value)
    assert stage.alive() == []
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 1
    assert words in captioner.state.last_death
    assert stage.states == ["starting", "ready", "restarting", "starting", "ready"]
    await captioner.stop(60)


async def test_a_worker_that_died_while_nobody_asked_is_replaced(stage: Theatre) -> None:
    """And no picture is to blame: the next one is asked of the next worker."""
    captioner = stage.captioner(["ready", "answer and die"], GOOD)
    await captioner.run(REQUEST)
    while captioner.is_ready:
        await asyncio.sleep(0.01)
    await captioner.run(REQUEST)
    assert "SIGKILL" in captioner.state.last_death
    assert (captioner.state.restarts, captioner.state.recycles) == (1, 0)
    await captioner.stop(60)


async def test_a_slow_worker_is_not_a_silent_one(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer slowly"])
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 0
    await captioner.stop(60)


async def test_a_request_that_fails_does_not_cost_the_worker(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "fail", "fail", "answer"])
    for _ in range(2):
        with pytest.raises(CaptionError, match="these are no pixels"):
            await captioner.run(REQUEST)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 0
    assert len(stage.lives()) == 1
    await captioner.stop(60)


async def test_a_worker_that_does_not_leave_is_killed(stage: Theatre, caplog: pytest.LogCaptureFixture) -> None:
    captioner = stage.captioner(["stay"])
    await captioner.ready()
    await captioner.stop(0.1)
    assert "did not end" in caplog.text


async def test_a_worker_that_leaves_in_time_is_not_killed(stage: Theatre, caplog: pytest.LogCaptureFixture) -> None:
    captioner = stage.captioner(GOOD)
    await captioner.ready()
    await captioner.stop(60)
    await captioner.stop(60)
    assert "killed" not in caplog.text


@pytest.mark.parametrize("deed", ["hang", "chatter"])
async def test_who_stops_waiting_for_the_start_leaves_no_worker(stage: Theatre, deed: str) -> None:
    captioner = stage.captioner([deed])
    starting = asyncio.create_task(captioner.ready())
    while not stage.lives():
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await captioner.stop(60)


async def test_who_stops_waiting_for_an_answer_leaves_no_worker(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "chatter"])
    asking = asyncio.create_task(captioner.run(REQUEST))
    while stage.beats < 5:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await captioner.stop(0.1)


def left_open() -> tuple[int, int, int]:
    """Descriptors, threads and tasks."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(asyncio.all_tasks())


async def test_many_deaths_leave_nothing_open(stage: Theatre) -> None:
    deaths = [["ready", "die of sigkill"], ["ready", "babble"], ["ready", "answer with idle"], ["die with words"]]
    captioner = stage.captioner(["ready", "answer", "die of sigkill"], *deaths, GOOD)
    await captioner.run(REQUEST)
    gc.collect()  # of what tests before this one left open
    before = left_open()
    for _ in range(4):
        with pytest.raises(ChildError):
            await captioner.run(REQUEST)
    await captioner.run(REQUEST)
    assert captioner.state.restarts == 5
    assert [now for now, then in zip(left_open(), before, strict=True) if now > then] == []
    await captioner.stop(60)


# ---- ended on purpose: that is no death


async def test_a_worker_that_is_ended_is_no_dead_one(stage: Theatre) -> None:
    captioner = stage.captioner(GOOD)
    await captioner.run(REQUEST)
    await captioner.end("a test")
    assert stage.alive() == []
    assert (captioner.state.phase, captioner.state.restarts, captioner.state.recycles) == ("unloaded", 0, 1)
    assert captioner.pid is None
    await captioner.end("there is none")
    await captioner.run(REQUEST)
    assert (captioner.state.phase, captioner.state.recycles, captioner.state.last_death) == ("ready", 1, "")
    await captioner.stop(60)


async def test_it_is_ended_between_two_captions(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer slowly"])
    asking = asyncio.create_task(captioner.run(REQUEST))
    while stage.beats < 4:
        await asyncio.sleep(0.01)
    assert captioner.busy
    await captioner.end("a test")
    await captioner.end("asked for twice")
    assert stage.alive() != []
    assert (await asking).tasks
    assert stage.alive() == []
    assert captioner.state.recycles == 1


@pytest.mark.parametrize("deed", ["chatter", "hang"])
async def test_or_at_once_and_then_nobody_is_to_blame(stage: Theatre, deed: str) -> None:
    captioner = stage.captioner(["ready", deed], GOOD, silence_s=60.0)
    await captioner.ready()
    asking = asyncio.create_task(captioner.run(REQUEST))
    while not captioner.busy:
        await asyncio.sleep(0.01)
    await captioner.end("memory is gone", at_once=True)
    with pytest.raises(ChildEnded, match="memory is gone"):
        await asking
    assert stage.alive() == []
    assert (captioner.state.restarts, captioner.state.recycles, captioner.state.last_death) == (0, 1, "")
    await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_a_start_is_given_up(stage: Theatre) -> None:
    captioner = stage.captioner(["hang"], GOOD)
    starting = asyncio.create_task(captioner.ready())
    while not stage.lives():
        await asyncio.sleep(0.01)
    await captioner.end("memory is gone")
    with pytest.raises(ChildEnded, match="memory is gone"):
        await starting
    assert stage.alive() == []
    assert (captioner.state.restarts, captioner.pid) == (0, None)
    await captioner.ready()
    await captioner.stop(60)


async def test_while_nobody_may_ask_no_worker_is_started_but_on_purpose(stage: Theatre) -> None:
    captioner = stage.captioner(GOOD)
    captioner.forbid()
    for call in (captioner.run(REQUEST), captioner.ready()):
        with pytest.raises(ChildEnded, match="not enough free memory"):
            await call
    assert stage.lives() == []
    await captioner.ready(whatever=True)
    with pytest.raises(ChildEnded):
        await captioner.run(REQUEST)
    captioner.allow()
    await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_a_start_on_purpose_that_fails_is_for_who_asked_to_repeat(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer"], ["refuse for memory"], GOOD)
    await captioner.run(REQUEST)
    await captioner.end("a test")
    with pytest.raises(ChildEnded, match="100 MiB of memory are missing"):
        await captioner.ready(whatever=True)
    assert len(stage.lives()) == 2
    await captioner.ready(whatever=True)
    await captioner.stop(60)


async def test_an_instruction_that_is_missing_is_missing_the_next_time(stage: Theatre) -> None:
    """Ready, and dead of the first picture: that would go on for ever."""
    captioner = stage.captioner(["ready", "die of sigill"])
    with pytest.raises(ChildDied, match=r"SIGILL.*pip install torch"):
        await captioner.run(REQUEST)
    with pytest.raises(ChildBootError, match=r"the model cannot run here: .*SIGILL"):
        await captioner.run(REQUEST)
    assert captioner.state.phase == "failed"


async def test_but_not_where_there_were_answers(stage: Theatre) -> None:
    captioner = stage.captioner(["ready", "answer", "die of sigill"])
    for _ in range(3):
        await captioner.run(REQUEST)
        with pytest.raises(ChildDied, match="SIGILL"):
            await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_after_a_kill_for_memory_the_next_one_has_less(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counter is the only part that is not real: test_memory_max.py has a real one."""
    captioner = stage.captioner(["ready with needs", "die of sigkill"], GOOD)
    await captioner.ready()
    reading = captioner.witness.files.read(captioner.pid)
    captioner.witness.note(replace(reading, worker_bytes=200 << 20))
    monkeypatch.setattr(Witness, "killed_by_kernel", lambda *_: True)
    with pytest.raises(ChildDied, match="the kernel was out of memory"):
        await captioner.run(REQUEST)
    await captioner.run(REQUEST)
    arguments = stage.lives()[1]["arguments"]
    assert isinstance(arguments, list)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert int(options["--budget-bytes"]) == 180 << 20
    assert options["--budget-reason"] == "the kernel killed a worker that used more"
    await captioner.stop(60)


# ---- watched


async def looked(watchdog: MemoryWatchdog, times: int, from_s: float = 0.0) -> None:
    for second in range(times):
        await watchdog.look(from_s + second)


async def test_a_worker_that_leaks_is_replaced_between_two_captions(stage: Theatre) -> None:
    captioner = stage.captioner(["ready with needs", "answer and leak"], ["ready with needs", "answer"])
    watchdog = MemoryWatchdog(captioner, lambda: None)
    await captioner.ready()
    replaced = None
    for picture in range(40):
        await captioner.run(REQUEST)
        await watchdog.look(float(picture))
        if captioner.state.recycles:
            replaced = picture
            break
    assert replaced is not None
    assert 10 + 6 <= replaced <= 10 + 12, "64 MiB over the first ten, of which the median lags"
    while not captioner.is_ready:
        await looked(watchdog, 1, 100.0)
        await asyncio.sleep(0.01)
    assert (captioner.state.restarts, captioner.state.recycles, len(stage.lives())) == (0, 1, 2)
    await captioner.run(REQUEST)
    await captioner.stop(60)


async def test_a_worker_that_died_at_rest_is_noticed(stage: Theatre) -> None:
    captioner = stage.captioner(["ready with needs", "answer and die"], ["ready with needs", "answer"])
    watchdog = MemoryWatchdog(captioner, lambda: None)
    await captioner.run(REQUEST)
    while len(stage.lives()) < 2 or not captioner.is_ready:
        await looked(watchdog, 1)
        await asyncio.sleep(0.01)
    assert "SIGKILL" in captioner.state.last_death
    await captioner.stop(60)


async def test_the_worker_is_told_its_cap_and_nobody_asks_while_it_rests(stage: Theatre, tmp_path: Path) -> None:
    """A cgroup of paper takes the memory away; the rest is real."""
    captioner = stage.captioner(["ready with needs", "answer"], ["ready with needs", "answer"])
    await captioner.ready()
    files = captioner.witness.files = PaperFiles.made(tmp_path, 300 << 20, 100 << 20)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    await looked(watchdog, 3)
    assert watchdog.state.stage.name == "OK"
    held_bytes = captioner.witness.files.read(captioner.pid).worker_bytes
    assert held_bytes is not None
    room_bytes = (60 << 20) - held_bytes  # with this it may have 60 MiB, and needs 100 at least
    files.use((300 << 20) - CGROUP_RESERVE_BYTES - room_bytes)
    await looked(watchdog, 1, 10.0)
    wait_for("a cap", lambda: stage.caps() == [[148, 0]])
    await looked(watchdog, 3, 11.0)
    wait_for("another cap", lambda: stage.caps() == [[148, 0], [148, 1]])
    assert watchdog.state.stage.name == "PAUSED"
    with pytest.raises(ChildEnded):
        await captioner.run(REQUEST)
    files.use(100 << 20)
    await looked(watchdog, 30, 20.0)
    assert watchdog.state.stage.name == "OK"
    await captioner.run(REQUEST)
    assert stage.caps()[-1] == [256, 0]
    assert len(stage.lives()) == 1
    await captioner.stop(60)


class OffFiles(Files):
    """Of Raspberry Pi OS as it comes."""

    @property
    def membership(self) -> str:
        return "0::/system.slice/edge-daemon.service"


async def test_that_limits_have_no_effect_is_said_once(
    stage: Theatre, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io pids\n")
    captioner = stage.captioner(["ready with needs", "answer"])
    await captioner.ready()
    beats: list[int] = []
    captioner.witness.files = OffFiles(cgroups=tmp_path)
    watchdog = MemoryWatchdog(captioner, lambda: None)
    watching = asyncio.create_task(watchdog.run(lambda: beats.append(1)))
    while len(beats) < 3:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert caplog.text.count("cgroup_enable=memory") == 1
    document = watchdog.document()
    assert "/boot/firmware/cmdline.txt" in document["cgroup"]["advice"]
    assert document["cgroup"]["controlled"] is False
    assert (document["stage"], document["kv_positions"], document["kv_positions_full"]) == ("ok", 256, 256)
    assert 0 < document["worker_bytes"] < document["available_bytes"]
    assert document["pss_bytes"] > 0
    assert json.dumps(document)
    await captioner.stop(60)


async def test_a_start_that_is_hopeless_comes_out_of_the_watchdog(stage: Theatre) -> None:
    """Then the service ends, as it does when the first start is."""
    captioner = stage.captioner(["ready with needs", "die of sigill"], ["die of sigill"])
    with pytest.raises(ChildDied):
        await captioner.run(REQUEST)
    await captioner.end("there is none")
    watchdog = MemoryWatchdog(captioner, lambda: None)
    watchdog._begin_start()
    with pytest.raises(ChildBootError, match="SIGILL"):
        await asyncio.wait_for(watchdog.run(lambda: None), 60)
