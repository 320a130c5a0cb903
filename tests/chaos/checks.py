"""What must be true after a run. Each check is a pure function from evidence to what is wrong, in words."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import median

from tests.chaos.evidence import Event, Evidence, Line, Sample

SHOWN = 5
"""Examples in one problem."""
GRACE_S = 5.0
"""How long two of a kind may be there: one is dying, the next begins."""
DESCRIPTORS_MORE = 2
MOST_ANONYMOUS_BYTES = 60 << 20
"""Of a daemon that holds about 25 MiB of its own."""
WARM_UP_S, LIFE_S = 20.0, 60.0
"""Of a life that is judged for growth: what does not count, and how long it must be."""
GROWTH_BYTES, GROWTH_BYTES_PER_HOUR = 6 << 20, 8 << 20
"""Between the first and the last quarter of a life after its warm-up."""
MOST_STATE_BYTES = 16 << 20
FED_EVERY_S = 30.0
"""The daemon means to feed systemd's watchdog every 5 s; its unit allows 120 s."""
REPEATS = 8
"""Of one and the same warning within a minute. A child that is killed as often as the plan allows says less."""
BROKER_SAVES_S = 3.0
"""mosquitto writes what it knows every second; when it is killed, it may have confirmed what nobody will hear of."""


def nothing_is_lost(evidence: Evidence) -> Iterable[str]:
    """The broker has confirmed a result for every task of every good picture."""
    confirmed = {event.id for event in evidence.confirmed}
    lost = [f"{e.source}/{e.name!r}" for i, e in evidence.expected.items() if i not in confirmed]
    if lost:
        yield f"{len(lost)} of {len(evidence.expected)} results were never confirmed: {some(lost)}"


def nothing_is_made_up(evidence: Evidence) -> Iterable[str]:
    """No result of what was never there, or never there whole; hostile files are never captioned."""
    strangers = {e.id: f"{e.source}/{e.file!r}" for e in evidence.published if e.id not in evidence.expected}
    if strangers:
        yield f"{len(strangers)} results of what was never put there: {some(strangers.values())}"


def one_result_is_one(evidence: Evidence) -> Iterable[str]:
    """All copies of a result say the same, but for `replayed`: it was made once, unless that was forgotten."""
    answers: dict[str, list[Event]] = defaultdict(list)
    for event in evidence.published:
        if event.body not in {known.body for known in answers[event.id]}:
            answers[event.id].append(event)
    twice = [a[0] for a in answers.values() if not all(is_forgotten(evidence, event) for event in a[:-1])]
    if twice:
        yield f"{len(twice)} pictures have different results: {some(f'{e.source}/{e.file!r}' for e in twice)}"


def words_belong_to_the_picture(evidence: Evidence) -> Iterable[str]:
    """A caption is the one of its own picture; one that was cut begins like it."""
    for event in unique(evidence.published):
        truth = evidence.expected[event.id].truth if event.id in evidence.expected else ""
        right = truth.startswith(event.words.rstrip(".… ")) if event.finish_reason == "memory" else event.words == truth
        if truth and not right:
            yield f"{event.source}/{event.file!r} is captioned {event.words!r} and shows {truth!r}"


def numbers_have_no_gap(evidence: Evidence) -> Iterable[str]:
    """`seq` counts from 1 without a gap, and no number is given twice."""
    for source in evidence.sources:
        given: dict[int, list[Event]] = defaultdict(list)
        for event in of(evidence.confirmed, source):
            if event.id not in {known.id for known in given[event.seq]}:
                given[event.seq].append(event)
        gaps = sorted(set(range(1, max(given, default=0) + 1)) - set(given))
        if gaps:
            yield f"source {source}: the numbers {some(gaps)} were never confirmed"
        if twice := [seq for seq, to in given.items() if not all(is_forgotten(evidence, event) for event in to[:-1])]:
            yield f"source {source}: the numbers {some(sorted(twice))} were given twice"


def the_subscriber_heard_all(evidence: Evidence) -> Iterable[str]:
    """But for what the broker took with it when it died."""
    missed = [
        event
        for event in unique(evidence.confirmed)
        if event.id not in evidence.heard
        and not any(start - BROKER_SAVES_S <= event.at_s <= end for start, end in evidence.deaf)
    ]
    if missed:
        yield f"{len(missed)} confirmed results were not heard: {some(f'{e.source}/{e.file!r}' for e in missed)}"


def hostile_files_are_reported(evidence: Evidence) -> Iterable[str]:
    """Each is told of in the journal."""
    told = "\n".join(line.text for line in evidence.journal)
    untold = [name for words, name in evidence.hostile.items() if words not in told]
    if untold:
        yield f"{len(untold)} of {len(evidence.hostile)} bad files were never reported: {some(map(repr, untold))}"


def good_pictures_are_not_blamed(evidence: Evidence) -> Iterable[str]:
    """A picture that was in work when something was killed is not given up for it."""
    given_up = re.compile(r"ended the grabber twice|the worker was ended|the worker said nothing")
    blamed = [line.text for line in evidence.journal if line.level == "WARNING" and given_up.search(line.text)]
    nobodys = re.compile(r"next start in|what a picture takes here is not known yet")  # of no picture that was dropped
    blamed = [text for text in blamed if not nobodys.search(text)]
    if blamed:
        yield f"{len(blamed)} pictures were given up: {some(blamed)}"


def retained_states_are_true(evidence: Evidence) -> Iterable[str]:
    """Whoever comes at the end hears: online, all is well, nothing waits, and the newest caption of each source."""
    health = json.loads(evidence.retained.get("health", "{}"))
    wanted = {"availability": "online", **{f"{source}/availability": "online" for source in evidence.sources}}
    for topic, payload in wanted.items():
        if (said := evidence.retained.get(topic)) != payload:
            yield f"{topic} says {said!r}, not {payload!r}"
    if health.get("state") != "ok":
        yield f"health says {health.get('state')!r}, not 'ok'"
    if (queued := health.get("mqtt", {}).get("queued")) != 0:
        yield f"health says that {queued} results wait"
    for source in evidence.sources:
        captions = [e for e in of(evidence.confirmed, source) if e.task == "caption" and not is_forgotten(evidence, e)]
        newest = max(captions, key=lambda e: e.seq, default=None)
        said = json.loads(evidence.retained.get(f"{source}/caption", "{}")).get("seq")
        if newest is not None and said != newest.seq:
            yield f"{source}/caption has number {said}, the newest is {newest.seq}"


def who_leaves_says_so(evidence: Evidence) -> Iterable[str]:
    """After a clean stop everything is offline."""
    for topic in ("availability", *(f"{source}/availability" for source in evidence.sources)):
        if (said := evidence.retained_after.get(topic)) != "offline":
            yield f"after the stop {topic} says {said!r}"


def the_protocol_is_kept(evidence: Evidence) -> Iterable[str]:
    """What the daemon sends is MQTT."""
    if evidence.malformed:
        yield f"the daemon sent what is no MQTT: {some(evidence.malformed)}"


def the_daemon_lives(evidence: Evidence) -> Iterable[str]:
    """It ends only when it is told to or killed, and then as it should."""
    if ends := [f"at {at_s:.0f} s: {how}" for at_s, how in evidence.ended]:
        yield f"the daemon ended {len(ends)} times: {some(ends)}"
    if any(line.text.startswith("Traceback") for line in evidence.journal):
        yield "the journal holds a traceback"


def no_process_is_left(evidence: Evidence) -> Iterable[str]:
    """After a clean stop none of its processes is there."""
    if evidence.left:
        yield f"{len(evidence.left)} processes were left: {some(evidence.left)}"


def one_child_of_each_kind(evidence: Evidence) -> Iterable[str]:
    """At most one worker, and one grabber a source, but for a moment."""
    counts = {"workers": [(s.at_s, s.workers) for s in evidence.samples]}
    for source in evidence.sources:
        counts[f"grabbers of {source}"] = [(s.at_s, s.grabbers.get(source, 0)) for s in evidence.samples]
    for what, samples in counts.items():
        since_s: float | None = None
        for at_s, count in samples:
            since_s = (at_s if since_s is None else since_s) if count > 1 else None
            if since_s is not None and awake_s(evidence, since_s, at_s) > GRACE_S:
                yield f"{count} {what} for more than {GRACE_S:.0f} s, from {since_s:.0f} s on"
                break


def no_descriptor_is_left(evidence: Evidence) -> Iterable[str]:
    """At rest it has as many files open as at its first rest."""
    first, last = evidence.descriptors_at_first, evidence.descriptors_at_last
    if last > first + DESCRIPTORS_MORE:
        yield f"the daemon had {first} file descriptors at its first rest and {last} at its last"


def memory_is_flat(evidence: Evidence) -> Iterable[str]:
    """In each long life of the daemon, and at most so much ever."""
    lives: dict[int, list[Sample]] = defaultdict(list)
    for sample in evidence.samples:
        if sample.pid and sample.anonymous_bytes:
            lives[sample.pid].append(sample)
    for pid, life in lives.items():
        peak = max(sample.anonymous_bytes for sample in life)
        if peak > MOST_ANONYMOUS_BYTES:
            yield f"the daemon (pid {pid}) had {peak >> 20} MiB"
        grown, hours = growth(life)
        allowed = GROWTH_BYTES + GROWTH_BYTES_PER_HOUR * hours
        if grown > allowed:
            most = f"{allowed / 2**20:.1f} are allowed"
            yield f"the daemon (pid {pid}) grew by {grown / 2**20:.1f} MiB in {hours:.2f} h; {most}"
    if not any(life[-1].at_s - life[0].at_s >= LIFE_S for life in lives.values()):
        yield f"no life of the daemon was long enough ({LIFE_S:.0f} s) to see whether it grows"


def growth(life: list[Sample]) -> tuple[float, float]:
    """Bytes by which a daemon grew from the first to the last quarter of its life, and its hours; 0 if it was short."""
    long = life[-1].at_s - life[0].at_s >= LIFE_S
    warm = [sample for sample in life if sample.at_s - life[0].at_s >= WARM_UP_S]
    if not long or len(warm) < 8:
        return 0.0, 0.0
    quarter = len(warm) // 4
    first, last = (median(s.anonymous_bytes for s in part) for part in (warm[:quarter], warm[-quarter:]))
    return last - first, (warm[-1].at_s - warm[0].at_s) / 3600


def the_state_stays_small(evidence: Evidence) -> Iterable[str]:
    """The state directory does not fill the card."""
    most = max((sample.state_bytes for sample in evidence.samples), default=0)
    if most > MOST_STATE_BYTES:
        yield f"the state directory grew to {most / 2**20:.1f} MiB"


def the_watchdog_is_fed(evidence: Evidence) -> Iterable[str]:
    """From READY on, as long as the daemon lives, and in time."""
    since_s: float | None = None
    told = [(at_s, words) for at_s, words in evidence.fed if words in ("READY=1", "WATCHDOG=1", "STOPPING=1", "gone")]
    if not any(words == "WATCHDOG=1" for _, words in told):
        yield "systemd was never told that the daemon lives"
    for at_s, words in told:
        if since_s is not None and (hungry_s := awake_s(evidence, since_s, at_s)) > FED_EVERY_S:
            yield f"systemd's watchdog was not fed for {hungry_s:.0f} s, from {since_s:.0f} s on"
        since_s = at_s if words in ("READY=1", "WATCHDOG=1") else None


def the_journal_says_it_once(evidence: Evidence) -> Iterable[str]:
    """No warning is repeated again and again."""
    times: dict[str, list[float]] = defaultdict(list)
    for line in evidence.journal:
        if line.level in ("WARNING", "ERROR", "CRITICAL"):
            times[without_numbers(line)].append(line.at_s)
    for text, at_s in times.items():
        most = max(sum(start <= s < start + 60 for s in at_s) for start in at_s)
        if most > REPEATS:
            yield f"{most} times within a minute: {text}"


def without_numbers(line: Line) -> str:
    """A line as it is compared with others: what stands in quotes is a name and counts, other numbers do not."""
    parts = re.split(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", line.text)
    return "".join(part if number % 2 else re.sub(r"\d+", "#", part) for number, part in enumerate(parts))


CHECKS: tuple[Callable[[Evidence], Iterable[str]], ...] = (
    nothing_is_lost,
    nothing_is_made_up,
    one_result_is_one,
    words_belong_to_the_picture,
    numbers_have_no_gap,
    the_subscriber_heard_all,
    hostile_files_are_reported,
    good_pictures_are_not_blamed,
    retained_states_are_true,
    who_leaves_says_so,
    the_protocol_is_kept,
    the_daemon_lives,
    no_process_is_left,
    one_child_of_each_kind,
    no_descriptor_is_left,
    memory_is_flat,
    the_state_stays_small,
    the_watchdog_is_fed,
    the_journal_says_it_once,
)


def judge(evidence: Evidence) -> dict[str, list[str]]:
    """What is wrong, by check; empty when all is well."""
    found = {check.__name__: list(check(evidence)) for check in CHECKS}
    return {name: problems for name, problems in found.items() if problems}


def unique(events: Iterable[Event]) -> list[Event]:
    """The first of each id."""
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.id, event)
    return list(first.values())


def some(items: Iterable[object]) -> str:
    """A few examples."""
    listed = list(map(str, items))
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def figures(evidence: Evidence) -> dict[str, object]:
    """What is worth knowing of a run, for its summary."""
    copies = Counter(event.id for event in evidence.confirmed)
    waits = [wait for deed in evidence.deeds if (wait := recovery_s(evidence, deed.until_s)) is not None]
    starts = len({sample.pid for sample in evidence.samples if sample.pid})
    lives = [[s for s in evidence.samples if s.pid == pid] for pid in {s.pid for s in evidence.samples if s.pid}]
    longest = max(lives, key=lambda life: life[-1].at_s - life[0].at_s, default=[])
    return {
        "results": len(copies),
        "expected": len(evidence.expected),
        "lost": len(evidence.expected.keys() - copies.keys()),
        "duplicates": sum(copies.values()) - len(copies),
        "replayed": sum(event.replayed for event in unique(evidence.confirmed)),
        "not_heard_from_a_dead_broker": len(copies.keys() - evidence.heard),
        "backwards": sum(b.seq < a.seq for s in evidence.sources for a, b in pairwise(of(evidence.confirmed, s))),
        "hostile": len(evidence.hostile),
        "daemon_starts": starts,
        "recovery_s": {"median": round(median(waits), 1), "longest": round(max(waits), 1)} if waits else None,
        "descriptors": [evidence.descriptors_at_first, evidence.descriptors_at_last],
        "daemon_peak_mib": round(max((s.anonymous_bytes for s in evidence.samples), default=0) / 2**20, 1),
        "daemon_grew_mib": round(growth(longest)[0] / 2**20, 2) if longest else None,
        "longest_life_s": round(longest[-1].at_s - longest[0].at_s) if longest else 0,
        "state_peak_kib": max((s.state_bytes for s in evidence.samples), default=0) >> 10,
        "left": len(evidence.left),
        "stalled_s": round(sum(end - start for start, end in evidence.stalls)),
    }


def is_forgotten(evidence: Evidence, event: Event) -> bool:
    """Whether the daemon could not remember this result."""
    return any(start <= event.at_s <= end for start, end in evidence.forgotten)


def awake_s(evidence: Evidence, from_s: float, until_s: float) -> float:
    """The time between, without that in which the machine slept."""
    stalled_s = sum(max(0.0, min(end, until_s) - max(start, from_s)) for start, end in evidence.stalls)
    return until_s - from_s - stalled_s


def of(events: Iterable[Event], source: str) -> list[Event]:
    """The results of one source."""
    return [event for event in events if event.source == source]


def recovery_s(evidence: Evidence, since_s: float) -> float | None:
    """From a moment to the next result that the broker confirmed."""
    return next((event.at_s - since_s for event in evidence.confirmed if event.at_s >= since_s), None)
