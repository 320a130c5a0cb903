"""The parent's side of a child: real processes that answer, hang, babble, die of everything and hold on."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from math import inf
from operator import gt
from pathlib import Path

import psutil
import pytest

from edge_daemon.child import KEPT_LINES, LINES_AT_ONCE, Child, exit_in_words
from edge_daemon.errors import ChildBootError, ChildDied, ChildError, ChildTimeout
from edge_daemon.messages import Frame, Next, Progress, Request

LONG_S = 60.0
"""A deadline that is not meant to pass."""
SHORT_S = 0.2
"""A deadline that is."""
BEGIN = """\
import json, os, signal, sys, time
def say(type, payload=b"", **fields):
    header = {"type": type, "fields": fields, "payload_bytes": len(payload)}
    os.write(1, json.dumps(header).encode() + b"\\n" + payload)
def err(data):
    while data: data = data[os.write(2, data):]
def hear():
    header = json.loads(sys.stdin.buffer.readline())
    return header, sys.stdin.buffer.read(header["payload_bytes"])
"""
REQUEST = Request(512, 512, [], 64, 0.0, 1.0, bytes(512 * 512 * 3))


@asynccontextmanager
async def running(code: str) -> AsyncIterator[Child]:
    """A child that runs `code`, and is gone afterwards."""
    child = await Child.start("tester", [sys.executable, "-S", "-c", BEGIN + code])
    try:
        yield child
    finally:
        await child.kill()
        assert not alive(child.pid)


def alive(pid: int) -> bool:
    """Whether the process exists, and be it as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_message_goes_there_and_comes_back() -> None:
    echo = "header, payload = hear()\nsay('Progress', step=header['type'] + str(len(payload)))\nhear()"
    async with running(echo) as child:
        await child.send(REQUEST, LONG_S)
        assert await child.receive(LONG_S) == Progress("Request786432")


async def test_a_large_payload_arrives_whole() -> None:
    frame = (
        "captured_at_s=0, width_px=1, height_px=1, original_width_px=1, original_height_px=1, thumbnail_hex='', "
        "capture_ms=0, decode_ms=0, file=None"
    )
    code = (
        f"pixels = bytes(range(256)) * 40000\n"
        f"header = dict(type='Frame', fields=dict({frame}), payload_bytes=len(pixels))\n"
        f"data = json.dumps(header).encode() + b'\\n' + pixels\n"
        f"while data: data = data[os.write(1, data):]"
    )
    async with running(code) as child:
        answer = await child.receive(LONG_S)
        assert isinstance(answer, Frame)
        assert answer.payload == bytes(range(256)) * 40000


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(0)", "the tester ended with exit code 0"),
        ("sys.exit(3)", "the tester ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (perhaps out of memory)"),
        ("os.kill(os.getpid(), signal.SIGILL)", "was ended by SIGILL (a program made for a newer processor)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "was ended by signal 40"),
        ("raise RuntimeError('no camera')", "exit code 1; its last words: RuntimeError: no camera"),
        ("say('Progress', step='a')\nos.write(1, b'{\"type\"')\nsys.exit(3)", "ended with exit code 3"),
        (
            "header = dict(type='Frame', fields={}, payload_bytes=99)\n"
            "os.write(1, json.dumps(header).encode() + b'\\nhalf')\nos.kill(os.getpid(), signal.SIGKILL)",
            "was ended by SIGKILL (perhaps out of memory)",
        ),
        ("os.write(1, b'Hello!\\n')\ntime.sleep(600)", "sent something that is not a message"),
        ("say('Gossip')\ntime.sleep(600)", "unknown message type 'Gossip'"),
        ("say('Progress', step=1)\ntime.sleep(600)", "Progress.step"),
        ("os.close(1)\ntime.sleep(600)", "closed its pipe and was killed"),
    ],
)
async def test_every_death_is_told_in_words(code: str, words: str) -> None:
    async with running(code) as child:
        with pytest.raises(ChildDied) as caught:  # noqa: PT012  whether a message comes first depends on the child
            while True:
                await child.receive(LONG_S)
        assert words in str(caught.value)
        assert not alive(child.pid)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (None, "does not react"),
        (0, "ended with exit code 0"),
        (78, "ended with exit code 78"),
        (-15, "was ended by SIGTERM"),
        (-6, "was ended by SIGABRT"),
        (-7, "was ended by SIGBUS"),
        (-99, "was ended by signal 99"),
    ],
)
def test_an_exit_status_in_words(returncode: int | None, words: str) -> None:
    assert exit_in_words(returncode) == words


async def test_silence_beyond_the_deadline_ends_in_sigkill() -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('Progress', step='alive')\nwhile True: time.sleep(600)"
    async with running(code) as child:
        assert await child.receive(LONG_S) == Progress("alive")
        with pytest.raises(ChildTimeout, match="tester sent nothing for 0 s and was killed"):
            await child.receive(SHORT_S)
        assert not alive(child.pid)


async def test_half_a_message_beyond_the_deadline_ends_in_sigkill() -> None:
    half = "header = dict(type='Progress', fields=dict(step=''), payload_bytes=9)\n"
    async with running(half + "os.write(1, json.dumps(header).encode() + b'\\nhalf')\ntime.sleep(600)") as child:
        with pytest.raises(ChildTimeout):
            await child.receive(SHORT_S)
        assert not alive(child.pid)


async def test_a_child_that_takes_no_message_is_killed() -> None:
    async with running("say('Progress', step='deaf')\ntime.sleep(600)") as child:
        await child.receive(LONG_S)
        with pytest.raises(ChildTimeout, match="accepted no message"):
            await child.send(REQUEST, SHORT_S)
        assert not alive(child.pid)


async def test_a_message_to_a_dead_child_says_how_it_died() -> None:
    async with running("os.close(0)\nerr(b'out of words\\n')\nsys.exit(5)") as child:
        with pytest.raises(ChildDied, match="exit code 5; its last words: out of words"):
            await child.send(REQUEST, LONG_S)


@pytest.mark.parametrize("babble", ["while True: os.write(1, b'x' * 65536)", "os.write(1, b'x' * (6 << 20))"])
async def test_a_babbler_is_killed_and_buried(babble: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it wrote lies in the pipe unread; asyncio ends its wait for the process only when the pipe has ended."""
    async with running(babble + "\ntime.sleep(600)") as child:
        with pytest.raises(ChildDied, match="longer than"):
            await child.receive(LONG_S)
        assert not alive(child.pid)
    assert "cannot be killed" not in caplog.text


async def test_a_child_that_is_killed_with_megabytes_unread_is_buried(caplog: pytest.LogCaptureFixture) -> None:
    code = "say('Progress', step='begin')\nos.write(1, b'x' * (6 << 20))"
    async with running(code) as child:
        await child.receive(LONG_S)
        await asyncio.sleep(0)
        await child.stop(SHORT_S)
        assert not alive(child.pid)
    assert "cannot be killed" not in caplog.text


async def test_a_child_that_leaves_when_asked_is_not_killed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running("assert not sys.stdin.buffer.read()\nerr(b'goodbye\\n')") as child:
        await child.stop(LONG_S)
        assert child._process.returncode == 0
    assert "tester: goodbye" in caplog.text
    assert "killed" not in caplog.text


async def test_a_child_that_does_not_leave_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(600)"
    async with running(code) as child:
        await child.stop(SHORT_S)
        assert child._process.returncode == -signal.SIGKILL
    assert "did not end within 0 s and is killed" in caplog.text


async def test_stopping_and_killing_the_dead_is_nothing() -> None:
    async with running("sys.exit(0)") as child:
        with pytest.raises(ChildDied):
            await child.receive(LONG_S)
        for _ in range(2):
            await child.stop(SHORT_S)
            await child.kill()


async def test_its_stderr_is_logged_and_the_last_lines_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = "".join(f"err(b'line {number}\\n\\n')\n" for number in range(KEPT_LINES + 10))
    async with running(lines + "sys.exit(1)") as child:
        with pytest.raises(ChildDied, match=f"last words: line {KEPT_LINES + 9}$"):
            await child.receive(LONG_S)
        assert len(child._last_lines) == KEPT_LINES
    assert [record.message for record in caplog.records if record.name == "edge_daemon.child"] == [
        f"tester: line {number}" for number in range(KEPT_LINES + 10)
    ]


@pytest.mark.parametrize("noise", ["err(b'x' * (5 << 20) + b'\\n')", "err(b'\\xff\\x00\\x1b[31m\\n')"])
async def test_noise_on_stderr_does_not_hide_the_last_words(noise: str) -> None:
    async with running(f"{noise}\nerr(b'the reason')\nsys.exit(1)") as child:
        with pytest.raises(ChildDied, match="last words: the reason"):
            await child.receive(LONG_S)


async def test_endless_words_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running("for number in range(300): err(b'noise\\n' * 1000)\nerr(b'the reason')\nsys.exit(1)") as child:
        with pytest.raises(ChildDied, match="last words: the reason"):
            await child.receive(LONG_S)
    lines = [record.message for record in caplog.records if record.name == "edge_daemon.child"]
    assert LINES_AT_ONCE <= len(lines) < LINES_AT_ONCE + 100


async def test_who_writes_to_stderr_for_ever_keeps_nobody_from_work() -> None:
    async with running("while True: err(b'\\n'.join([b'x'] * 30000))") as child:
        with pytest.raises(ChildTimeout):
            await child.receive(SHORT_S)
        assert not alive(child.pid)


async def test_ctrl_c_at_the_terminal_does_not_reach_it() -> None:
    async with running("say('Progress', step=str(os.getsid(0)))\nhear()") as child:
        assert await child.receive(LONG_S) == Progress(str(child.pid))
        assert os.getsid(child.pid) != os.getsid(0)


async def test_what_a_child_has_started_is_killed_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"  # ends when nobody holds the other side
    os.mkfifo(fifo)
    ours = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        f"os.open({str(fifo)!r}, os.O_WRONLY)\nif os.fork() == 0: time.sleep(600)\nsay('Progress', step='we are two')\n"
    )
    async with running(code + "time.sleep(600)") as child:
        await child.receive(LONG_S)
        await child.kill()
        assert select.select([ours], [], [], LONG_S)[0]
        assert os.read(ours, 1) == b""
    os.close(ours)


async def test_what_a_child_has_left_behind_is_killed_after_its_death(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ours = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    code = f"os.open({str(fifo)!r}, os.O_WRONLY)\nif os.fork() == 0: os.close(1); time.sleep(600)\nos._exit(7)"
    async with running(code) as child:
        with pytest.raises(ChildDied, match="exit code 7"):
            await child.receive(LONG_S)
        assert select.select([ours], [], [], LONG_S)[0]
        assert os.read(ours, 1) == b""
    os.close(ours)


async def test_who_left_the_session_with_its_pipes_hides_neither_the_death_nor_a_descriptor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A grandchild that nobody can find holds the other ends; what it does with them is not awaited."""
    code = (
        "keep = os.dup(2)\n"
        "if os.fork() == 0:\n"
        "    os.setsid(); os.close(0); os.close(1); signal.alarm(30); time.sleep(600)\n"
        "err(b'the reason\\n'); os._exit(9)"
    )
    before = sorted(os.listdir("/proc/self/fd"))
    async with running(code) as child:
        with pytest.raises(ChildDied, match="exit code 9; its last words: the reason"):
            await child.receive(LONG_S)
    await asyncio.sleep(0)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert "cannot be killed" not in caplog.text


async def test_a_receive_that_is_cancelled_leaves_the_child_alone() -> None:
    async with running("hear()\nsay('Progress', step='late')\nhear()") as child:
        receiving = asyncio.create_task(child.receive(LONG_S))
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert alive(child.pid)
        await child.send(Next(), LONG_S)
        assert await child.receive(LONG_S) == Progress("late")


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ChildBootError, match=r"the tester cannot be started: .*no-such-program"):
        await Child.start("tester", ["/no-such-program"])


async def test_no_file_descriptor_is_left_for_a_child() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 4, hard))
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(OSError):
            while True:
                held.enter_context(open("/dev/null"))  # noqa: ASYNC230
        with pytest.raises(ChildBootError, match=r"cannot be started: .*Too many open files"):
            await Child.start("tester", [sys.executable])
    assert sorted(os.listdir("/proc/self/fd")) == before


DEATHS = [
    "exit 1",
    "kill -KILL $$",
    "kill -SEGV $$",
    "exec head -c 4000000 /dev/zero",
    "exec 1>&-; exec sleep 600",
    "exec sleep 600",
    "head -c 100000 /dev/zero >&2; echo ?",
    "sleep 600 & exit 0",
    'printf \'{"type": "Frame", "fields": {}, "payload_bytes": 9999999999}\\n\'; exec sleep 600',
    'printf \'{"type": "Progress", "fields": {}, "payload_bytes": 60000000}\\n\'; exec sleep 600',
]


async def test_hundreds_of_deaths_leave_nothing_behind() -> None:
    """Processes, file descriptors, threads and tasks are as before, whatever the children died of."""

    async def one(code: str) -> None:
        child = await Child.start("tester", ["/bin/sh", "-c", code])
        try:
            await child.receive(SHORT_S)
        except ChildError:
            pass
        finally:
            await child.stop(SHORT_S)

    def held() -> list[float]:
        children = len(psutil.Process().children(recursive=True))
        return [children, len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd"))]

    async def settled(most: list[float]) -> list[float]:
        """What is held when it is no more than that: the loop closes its pipes a few rounds after a process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONG_S):
                while any(map(gt, held(), most)):
                    await asyncio.sleep(0.01)
        return held()

    await asyncio.gather(*map(one, DEATHS))  # what is made once is made now
    before = await settled([0, 1, inf, inf])
    for _ in range(2):
        await asyncio.gather(*map(one, DEATHS * 10))
    after = await settled(before)
    assert not any(map(gt, after, before)), (before, after)
