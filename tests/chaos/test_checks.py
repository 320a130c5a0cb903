"""Each check, seen to pass on clean evidence and to fail on its own fault: a check that cannot fail shows nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edge_daemon.units import MIB
from tests.chaos import checks
from tests.chaos.checks import judge
from tests.chaos.evidence import Done, Event, Evidence, Expected, Line, Sample


def event(number: int, **changes: Any) -> Event:
    """The result of picture `number`."""
    values: dict[str, Any] = {
        "at_s": 10.0 + number,
        "id": f"id-{number}",
        "source": "porch",
        "task": "caption",
        "seq": number,
        "file": f"{number}.jpg",
        "words": f"Scene {number} here.",
        "finish_reason": "eos",
        "replayed": False,
        "body": f"body-{number}",
    }
    return Event(**{**values, **changes})


def sample(at_s: float, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "at_s": at_s,
        "pid": 100,
        "anonymous_bytes": 25 * MIB,
        "descriptors": 19,
        "workers": 1,
        "grabbers": {"porch": 1},
        "state_bytes": MIB,
    }
    return Sample(**{**values, **changes})


EVENTS = tuple(event(number) for number in range(1, 6))
SAMPLES = tuple(sample(at_s / 2) for at_s in range(240))
FED = ((1.0, "READY=1"), *((float(at_s), "WATCHDOG=1") for at_s in range(5, 120, 5)), (119.0, "gone"))
HEALTH = {"state": "ok", "mqtt": {"queued": 0}}
RETAINED = {
    "availability": "online",
    "porch/availability": "online",
    "health": json.dumps(HEALTH),
    "porch/caption": json.dumps({"seq": 5}),
}
BAD = Line(20.0, "WARNING", "source porch: '/p/bad.jpg': not a picture")
CLEAN = Evidence(
    sources=("porch",),
    expected={e.id: Expected(e.source, e.file, e.words) for e in EVENTS},
    hostile={"source porch: '/p/bad.jpg': ": "bad.jpg"},
    published=(*EVENTS, event(5, replayed=True)),
    confirmed=(*EVENTS, event(5, replayed=True)),
    heard=frozenset(e.id for e in EVENTS),
    retained=RETAINED,
    retained_after={"availability": "offline", "porch/availability": "offline"},
    samples=SAMPLES,
    descriptors_at_first=19,
    descriptors_at_last=20,
    journal=(BAD,),
    fed=FED,
    deeds=(Done("kill the worker", 12.0, 12.5, "SIGKILL"),),
)


def with_(**changes: Any) -> Evidence:
    return replace(CLEAN, **changes)


def published(*events: Event) -> Evidence:
    newest = json.dumps({"seq": max(e.seq for e in events)})
    return with_(published=events, confirmed=events, retained={**RETAINED, "porch/caption": newest})


def growing(per_s: float) -> tuple[Sample, ...]:
    return tuple(replace(s, anonymous_bytes=int(25 * MIB + s.at_s * per_s)) for s in SAMPLES)


def journal(*lines: tuple[float, str, str]) -> Evidence:
    return with_(journal=(BAD, *(Line(*line) for line in lines)))


FAULTS: dict[str, list[Evidence]] = {
    "nothing_is_lost": [with_(confirmed=EVENTS[:-1], retained={**RETAINED, "porch/caption": '{"seq": 4}'})],
    "nothing_is_made_up": [with_(published=(*EVENTS, event(9)))],
    "one_result_is_one": [with_(published=(*EVENTS, event(2, body="another")))],
    "words_belong_to_the_picture": [
        with_(published=(*EVENTS[:-1], event(5, words="Scene 4 here."))),
        with_(published=(*EVENTS[:-1], event(5, words="Scene"))),
        with_(published=(*EVENTS[:-1], event(5, words="Another", finish_reason="memory"))),
    ],
    "numbers_have_no_gap": [
        published(*EVENTS[:-1], event(5, seq=6)),
        published(*EVENTS[:-1], event(5, seq=4)),
        published(*EVENTS[1:], event(1, seq=6)),
    ],
    "the_subscriber_heard_all": [
        with_(heard=frozenset(["id-1", "id-2"])),
        with_(heard=frozenset(e.id for e in EVENTS[1:]), deaf=((14.5, 16.0),)),
    ],
    "hostile_files_are_reported": [with_(journal=())],
    "good_pictures_are_not_blamed": [
        journal((30.0, "WARNING", "source porch: '/p/1.jpg': reading it ended the grabber twice: SIGSEGV")),
        journal((30.0, "WARNING", "source porch: '/p/1.jpg': the worker was ended by SIGKILL")),
    ],
    "retained_states_are_true": [
        with_(retained={**RETAINED, "availability": "offline"}),
        with_(retained={**RETAINED, "porch/availability": "offline"}),
        with_(retained={**RETAINED, "health": json.dumps({**HEALTH, "state": "degraded"})}),
        with_(retained={**RETAINED, "health": json.dumps({**HEALTH, "mqtt": {"queued": 1}})}),
        with_(retained={**RETAINED, "porch/caption": '{"seq": 4}'}),
        with_(retained={}),
    ],
    "who_leaves_says_so": [
        with_(retained_after={"availability": "offline", "porch/availability": "online"}),
        with_(retained_after={"availability": "online", "porch/availability": "offline"}),
    ],
    "the_protocol_is_kept": [with_(malformed=("a client sends no packet of type 2",))],
    "the_daemon_lives": [
        with_(ended=((30.0, "exit code 1"),)),
        journal((30.0, "", "Traceback (most recent call last):")),
    ],
    "no_process_is_left": [with_(left=("python -m edge_daemon.worker",))],
    "one_child_of_each_kind": [
        with_(samples=tuple(replace(s, workers=2) if s.at_s > 50 else s for s in SAMPLES)),
        with_(samples=tuple(replace(s, grabbers={"porch": 2}) if 50 < s.at_s < 60 else s for s in SAMPLES)),
    ],
    "no_descriptor_is_left": [with_(descriptors_at_last=22)],
    "memory_is_flat": [
        with_(samples=growing(0.2 * MIB)),
        with_(samples=tuple(replace(s, anonymous_bytes=61 * MIB) for s in SAMPLES)),
        with_(samples=tuple(replace(s, pid=int(s.at_s) // 30 + 1) for s in SAMPLES)),
    ],
    "the_state_stays_small": [with_(samples=(*SAMPLES, sample(121.0, state_bytes=17 * MIB)))],
    "the_watchdog_is_fed": [
        with_(fed=()),
        with_(fed=tuple(f for f in FED if not 50 < f[0] < 90)),
        with_(fed=(*FED[:-1], (160.0, "gone"))),
    ],
    "the_journal_says_it_once": [
        journal(*((30.0 + number, "WARNING", f"the broker is gone: error {number}") for number in range(9)))
    ],
}
CASES = [(name, number) for name, faults in FAULTS.items() for number in range(len(faults))]


def test_clean_evidence_passes() -> None:
    assert judge(CLEAN) == {}


def test_every_check_has_a_fault_that_it_must_find() -> None:
    assert [check.__name__ for check in checks.CHECKS] == list(FAULTS)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_fault_is_found_by_its_check_and_no_other(name: str, number: int) -> None:
    assert set(judge(FAULTS[name][number])) == {name}


def test_what_was_forgotten_comes_again_under_another_number() -> None:
    again = published(*EVENTS, event(1, at_s=30.0, seq=3, body="another"), event(6, at_s=31.0, seq=4))
    again = replace(
        again, expected={**CLEAN.expected, "id-6": Expected("porch", "6.jpg")}, heard=CLEAN.heard | {"id-6"}
    )
    again = replace(again, retained={**RETAINED, "porch/caption": json.dumps({"seq": 4})})
    assert judge(replace(again, forgotten=((0.0, 20.0),))) == {}
    assert set(judge(again)) == {"one_result_is_one", "numbers_have_no_gap", "retained_states_are_true"}


def test_what_a_dead_broker_took_with_it_is_no_loss() -> None:
    taken = with_(heard=frozenset(e.id for e in EVENTS[:-1]), deaf=((15.5, 18.0),))
    assert judge(taken) == {}
    assert checks.figures(taken)["not_heard_from_a_dead_broker"] == 1


def test_a_caption_that_was_cut_for_memory_is_right_as_far_as_it_goes() -> None:
    cut = event(5, words="Scene 5", finish_reason="memory")
    assert judge(published(*EVENTS[:-1], cut)) == {}


def test_two_of_a_kind_for_a_moment_are_a_change_of_guard() -> None:
    assert judge(with_(samples=tuple(replace(s, workers=2) if 50 < s.at_s < 55 else s for s in SAMPLES))) == {}


def test_a_machine_that_slept_is_no_fault_of_the_daemon() -> None:
    asleep = with_(fed=tuple(f for f in FED if not 50 < f[0] < 90), stalls=((52.0, 88.0),))
    assert judge(asleep) == {}


def test_warnings_about_different_things_are_no_repetition() -> None:
    lines = [(30.0 + n, "WARNING", f"source porch: '/p/{n}.jpg': damaged or incomplete JPEG") for n in range(20)]
    slow = [(30.0 + 10 * n, "WARNING", "the broker is gone") for n in range(20)]
    assert judge(journal(*lines, *slow)) == {}


def test_figures_count_what_they_say() -> None:
    found = checks.figures(with_(confirmed=(*EVENTS[:-1], event(2, at_s=20.0)), samples=growing(0.1 * MIB)))
    assert (found["results"], found["expected"], found["lost"], found["duplicates"]) == (4, 5, 1, 1)
    assert found["backwards"] == 1
    assert found["daemon_starts"] == 1
    assert found["recovery_s"] == {"median": 0.5, "longest": 0.5}
    assert 7 < float(str(found["daemon_grew_mib"])) < 8
