"""Power cuts, and a disk that fills up, becomes read-only or goes away: with real files, mounts and processes."""

from __future__ import annotations

import datetime
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox
from tests.conftest import missing
from tests.integration.service import Service, Subscriber, running, subscribed, wait_for
from tests.integration.test_line import drop, wait_ready, wait_results

# ---- power cuts -------------------------------------------------------------------------------------------

WRITER = """\
import os, sys
from pathlib import Path
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
for number in range(1, 100_000):
    results = [{"task": task, "number": number, "padding": os.urandom(150).hex()} for task in ("caption", "open")]
    outbox.put("porch", results, FileKey(f"{number}.jpg", number, number))
    os.write(1, b"%d\\n" % number)
    if number % 3 == 0:
        outbox.delete(outbox.head(4))
"""
"""Puts two results and a file, says so, and sometimes forgets what is old: two thirds of it."""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def wait_for_number(child: subprocess.Popen[bytes], number: int) -> int:
    """Read what it says until it has come so far."""
    assert child.stdout is not None
    said = 0
    while said < number:
        said = int(child.stdout.readline())
    return said


def said_until_now(child: subprocess.Popen[bytes], before: int) -> int:
    """The last that it has promised; it is stopped."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    rest = (child.stdout.read() or b"").split(b"\n")[:-1]
    os.set_blocking(child.stdout.fileno(), True)
    return int(rest[-1]) if rest else before


def copy(path: Path, directory: Path, log_bytes: int | None = None, tail: bytes = b"") -> Path:
    """The database and so much of its log, with another tail, elsewhere."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    shutil.copy(path, directory)
    log = path.with_name("outbox.db-wal").read_bytes()
    (directory / "outbox.db-wal").write_bytes(log[:log_bytes] + tail)
    return directory / path.name


def check(path: Path, promised: int) -> int:
    """Nothing that was promised is missing, nothing is half; the last picture there is."""
    outbox = Outbox(path)
    assert outbox.damaged_files() == []
    entries = outbox.head(1_000_000)
    last = max((entry.body["number"] for entry in entries), default=0)
    assert last >= promised
    seqs = [entry.body["seq"] for entry in entries]
    assert seqs == list(range(2 * last + 1 - len(seqs), 2 * last + 1)), "what was not forgotten is there, in order"
    assert [entry.body["number"] for entry in entries] == [(seq + 1) // 2 for seq in seqs], "of each picture both"
    assert len(seqs) >= 2 * last - 4 * (last // 3), "no more is forgotten than was asked for"
    files = [FileKey(f"{number}.jpg", number, number) for number in range(1, last + 3)]
    assert outbox.wanted("porch", files) == [False] * last + [True] * 2
    outbox.close()
    return last


def test_kill_9_in_the_middle_of_thousands_of_results(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with writing(path) as child:
        promised = wait_for_number(child, 1000)
        child.send_signal(signal.SIGKILL)
        child.wait()
        promised = said_until_now(child, promised)
    assert check(path, promised) <= promised + 1


def test_the_files_as_they_are_at_any_moment_hold_what_was_promised(tmp_path: Path) -> None:
    """The writer is stopped wherever it is, also in the middle of a checkpoint, and its files are looked at."""
    path, promised, rng = tmp_path / "outbox.db", 0, random.Random(1)
    with writing(path) as child:
        for _ in range(15):
            promised = wait_for_number(child, promised + rng.randrange(1, 60))
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            promised = said_until_now(child, promised)
            snapshot = copy(path, tmp_path / "snapshot")
            child.send_signal(signal.SIGCONT)
            assert check(snapshot, promised) <= promised + 1


def test_whatever_of_the_log_did_not_reach_the_card_only_what_was_not_promised_is_missing(tmp_path: Path) -> None:
    """The log is cut at every frame and at random bytes, and what is behind the cut is nothing, zeros or noise."""
    path, rng = tmp_path / "outbox.db", random.Random(2)
    log, outbox, promises = path.with_name("outbox.db-wal"), Outbox(path), []
    for number in range(1, 31):
        results = [{"task": task, "number": number} for task in ("caption", "open")]
        outbox.put("porch", results, FileKey(f"{number}.jpg", number, number))
        promises.append(log.stat().st_size)  # put has returned: so much is on the card
        if number % 3 == 0:
            outbox.delete(outbox.head(4))
    frame, header, size = 1024 + 24, 32, log.stat().st_size
    cuts = [*range(header, size, frame), *(rng.randrange(promises[0], size) for _ in range(40)), size]
    kept = set()
    for cut in cuts:
        behind = rng.choice([b"", bytes(size - cut), rng.randbytes(size - cut)])
        promised = sum(promise <= cut for promise in promises)
        if promised:
            kept.add(check(copy(path, tmp_path / "cut", cut, behind), promised))
    assert kept == set(range(1, 31)), "as much as the cut leaves"
    outbox.close()


# ---- a disk that cannot be used ---------------------------------------------------------------------------

ON_A_SMALL_DISK = """\
import os, subprocess, sys
from pathlib import Path
from edge_daemon import outbox as module
from edge_daemon.messages import FileKey
from edge_daemon.outbox import Outbox
now_s = 0.0
disk = Path(sys.argv[1])
def mount(*words):
    subprocess.run(["mount", *words], check=True)
def put(*numbers):
    for number in numbers:
        outbox.put("porch", [{"task": "caption", "number": number, "padding": os.urandom(400).hex()}],
                   FileKey(f"{number}.jpg", number, number))
def numbers():
    return [entry.body["number"] for entry in outbox.head(10_000)]
def later():
    global now_s
    now_s += module.RETRY_S
    outbox.tend()
def wanted(*numbers):
    return outbox.wanted("porch", [FileKey(f"{number}.jpg", number, number) for number in numbers])
def opened():
    return Outbox(disk / "state" / "outbox.db", monotonic=lambda: now_s)
def fill():
    try:
        with (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
    except OSError as error:
        assert "No space left" in str(error)
mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk))
"""
FULL = """\
outbox = opened()
put(*range(10))
fill()
put(*range(10, 400))
assert numbers() == list(range(400)), "nothing is lost"
assert outbox.problem.startswith(f"the disk is full: free some space where {disk}/state is; "), outbox.problem
assert outbox.in_memory() > 200
assert wanted(5, 200, 400) == [False, False, True]
outbox.delete(outbox.head(300))
assert numbers() == list(range(300, 400))
later()
assert outbox.problem and numbers() == list(range(300, 400)), "still full"
(disk / "filler").unlink()
later()
assert (outbox.problem, outbox.in_memory()) == ("", 0)
put(400)
outbox.close()
outbox = opened()
assert numbers() == list(range(300, 401))
assert wanted(5, 200, 400, 401) == [False, False, False, True]
"""
READ_ONLY_AT_START = """\
outbox = opened()
put(1, 2)
outbox.close()
mount("-o", "remount,ro", str(disk))
outbox = opened()
put(3)
assert outbox.problem.startswith(f"the disk is read-only: mount {disk}/state writable"), outbox.problem
assert numbers() == [3] and outbox.in_memory() == 1
mount("-o", "remount,rw", str(disk))
later()
assert (outbox.problem, numbers(), outbox.in_memory()) == ("", [1, 2, 3], 0)
outbox.close()
outbox = opened()
assert numbers() == [1, 2, 3] and wanted(1, 2, 3, 4) == [False, False, False, True]
"""
AWAY = """\
outbox = opened()
put(1, 2)
mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(disk))  # something else is where the disk was
put(3, 4)
assert "is read-only" in outbox.problem, outbox.problem
assert numbers() == [1, 2, 3, 4]
outbox.delete(outbox.head(1))
subprocess.run(["umount", str(disk)], check=True)
later()
assert (outbox.problem, numbers(), outbox.in_memory()) == ("", [2, 3, 4], 0)
outbox.close()
outbox = opened()
assert numbers() == [2, 3, 4]
"""


@pytest.mark.parametrize("story", [FULL, READ_ONLY_AT_START, AWAY], ids=["full", "read-only at start", "away"])
def test_a_disk_that_cannot_be_written_for_a_while_costs_nothing(tmp_path: Path, story: str) -> None:
    done = subprocess.run([*in_own_mounts(), sys.executable, "-c", ON_A_SMALL_DISK + story, str(tmp_path)], check=False)
    assert done.returncode == 0


def in_own_mounts() -> list[str]:
    """What makes a command see mounts of its own."""
    argv = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*argv, "true"], check=False, capture_output=True).returncode:
        missing("unshare with namespaces of one's own")
    return argv


# ---- the whole service ------------------------------------------------------------------------------------


def start_beside_a_small_disk(service: Service) -> Path:
    """The service with a state directory of 256 KiB of its own; where we see that directory."""
    state = service.directory / "state"
    state.mkdir()
    script = 'mount -t tmpfs -o size=256k tmpfs "$1"; shift; exec "$@"'
    argv = [sys.executable, "-m", "edge_daemon", "run", "-c", str(service.config)]
    with (service.directory / "service.log").open("ab") as log:
        service.process = subprocess.Popen(
            [*in_own_mounts(), "sh", "-ec", script, "sh", str(state), *argv], stdout=log, stderr=log
        )
    return Path(f"/proc/{service.process.pid}/root") / state.relative_to("/")


def test_the_service_goes_on_while_its_disk_is_full(tmp_path: Path, broker: Broker) -> None:
    service = Service(tmp_path, broker.port)
    service.start = lambda: None  # type: ignore[method-assign]
    with subscribed(broker.port) as subscriber, running(service):
        state = start_beside_a_small_disk(service)
        wait_ready(subscriber)
        with pytest.raises(OSError, match="No space left"):
            write_for_ever(state / "filler")
        dropped = drop(service, 12, seed=7)
        results = wait_results(subscriber, 12)
        health = wait_for("health says it", lambda: (h := subscriber.last_health()) and h["outbox"]["problem"] and h)
        assert health["state"] == "degraded"
        assert health["outbox"]["problem"].startswith("the disk is full: free some space where ")
        (state / "filler").unlink()
        wait_for("it is well again", lambda: (h := subscriber.last_health()) and h["state"] == "ok" and h)
        assert service.end() == 0
    assert [result["file"] for result in results] == [name for name, _ in dropped]
    assert service.log().count("the disk is full") == 1
    assert service.log().count("on disk again") == 1


def write_for_ever(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


CLOCK = """\
import os, time
real, path = time.time, os.environ["TEST_CLOCK"]
def jumped():
    with open(path) as file:
        return real() + float(file.read() or 0)
time.time = jumped
time.time_ns = lambda: int(jumped() * 1e9)
"""
"""Every Python process of the service has a clock that we set."""


def test_the_clock_of_the_service_jumps_by_decades_both_ways(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    (tmp_path / "clock").write_text("0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TEST_CLOCK", str(tmp_path / "clock"))
    with subscribed(broker.port) as subscriber, running(Service(tmp_path, broker.port)) as service:
        wait_ready(subscriber)
        for seed, years in enumerate((0, 40, -40, 0), 1):
            (tmp_path / "new").write_text(str(years * 365 * 86400))
            os.replace(tmp_path / "new", tmp_path / "clock")
            drop(service, 2, seed)
            wait_results(subscriber, 2 * seed)
            year = datetime.datetime.now(datetime.UTC).year + years
            wait_for(f"health is of the year {year}", partial(is_of, subscriber, year))
        health = subscriber.last_health()
        assert service.end() == 0
    assert health is not None
    assert (health["outbox"]["dropped_old"], health["sources"]["inbox"]["problems"]) == (0, 0)
    assert [r["seq"] for r in subscriber.results()] == list(range(1, 9))
    assert not any(r["replayed"] for r in subscriber.results())


def is_of(subscriber: Subscriber, year: int) -> bool:
    """Whether the last health is of that year; leap days may make it the one before."""
    health = subscriber.last_health()
    return health is not None and abs(int(health["at"][:4]) - year) <= 1
