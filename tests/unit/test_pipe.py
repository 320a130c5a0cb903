"""The child's side of the pipe, in real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from edge_daemon import messages, wire
from edge_daemon.messages import Progress

BEGIN = "import os, sys, signal\nfrom edge_daemon import messages, pipe\ndaemon = pipe.Pipe()\n"
"""How every child begins."""


def start(code: str, **options: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", BEGIN + code]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, **options)


def steps(output: bytes) -> list[str]:
    """The Progress messages that a child has sent, and nothing else may be there."""
    found, lines = [], output.splitlines(keepends=True)
    for line in lines:
        message = wire._parse(line)
        found.append(messages.unpack(wire.Message(message[0], message[1])).step)
    return found


def test_a_stray_print_does_not_reach_the_protocol() -> None:
    child = start(
        "print('stray print', flush=True); os.write(1, b'stray write\\n'); os.system('echo stray shell')\n"
        "daemon.write(messages.Progress('clean'))\n"
        "print('last words')"
    )
    output, errors = child.communicate()
    assert steps(output) == ["clean"]
    assert errors.decode().split("\n") == ["stray print", "stray write", "stray shell", "last words", ""]
    assert child.returncode == 0


def test_stdin_is_not_there_for_others() -> None:
    child = start(
        "daemon.write(messages.Progress(repr(sys.stdin.read())))\ndaemon.write(messages.Progress(daemon.read().step))"
    )
    output, _ = child.communicate(wire.encode(messages.pack(Progress("for the pipe"))))
    assert steps(output) == ["''", "for the pipe"]


def test_the_end_of_the_daemon_is_none() -> None:
    output, _ = start("assert daemon.read() is None\ndaemon.write(messages.Progress('left'))").communicate()
    assert steps(output) == ["left"]


def test_half_a_message_is_no_end() -> None:
    child = start("daemon.read()")
    _, errors = child.communicate(wire.encode(messages.pack(Progress("half")))[:-3])
    assert child.returncode == 1
    assert b"WireError" in errors


def test_writing_to_a_daemon_that_has_gone_raises() -> None:
    child = start(
        "daemon.read()\n"
        "try: daemon.write(messages.Progress('hello?'))\n"
        "except BrokenPipeError: sys.stderr.write('noticed'); sys.stderr.flush(); os._exit(0)"
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.stdin.close()
    assert child.stderr.read() == b"noticed"
    assert child.wait() == 0


def test_it_volunteers_for_the_oom_killer() -> None:
    child = start(
        "pipe.volunteer_for_oom(700)\ndaemon.write(messages.Progress(open('/proc/self/oom_score_adj').read().strip()))"
    )
    assert steps(child.communicate()[0]) == ["700"]


@pytest.mark.parametrize("asks", [True, False])
def test_a_stuck_child_dies_with_its_daemon(asks: bool) -> None:
    """The child holds one end of a pipe for as long as it lives, and reads nothing."""
    ours, childs = os.pipe()
    child = BEGIN + ("pipe.die_with_parent()\n" if asks else "") + f"os.write({childs}, b'%d' % os.getpid())\n"
    child += "signal.pause()"
    run_it = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], close_fds=False)"
    daemon = subprocess.Popen([sys.executable, "-c", run_it], pass_fds=[childs])
    os.close(childs)
    try:
        pid = int(os.read(ours, 20))
        daemon.kill()
        daemon.wait()
        if asks:
            assert os.read(ours, 1) == b""  # the child has ended
        else:
            os.kill(pid, 0)  # the child lives on: without asking, this test would prove nothing
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(ours)
