"""The real service in a memory cgroup that others have filled when it starts: it comes up, says so, and waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon.demo.broker import Broker
from edge_daemon.units import MIB
from tests.chaos.confinement import Memory, Missing
from tests.chaos.deeds import HOG
from tests.conftest import missing
from tests.hostile import encode, scene
from tests.integration.service import Service, running, subscribed, wait_for


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A cgroup of our own of 640 MiB, of which the service with the demo model takes 350."""
    try:
        made = Memory(f"start-{os.getpid()}")
    except Missing as error:
        missing(str(error))
    yield made
    made.remove()


@pytest.mark.parametrize("left_mib", [150, 320])
def test_it_waits_for_memory_and_captions_when_there_is_some(
    tmp_path: Path, memory: Memory, broker: Broker, monkeypatch: pytest.MonkeyPatch, left_mib: int
) -> None:
    """With 150 MiB there is no room for the worker's program; with 320 there is, and it says what it needs."""
    taking = [sys.executable, "-c", HOG, str(memory.left_bytes() - left_mib * MIB)]
    hog = subprocess.Popen(taking, stdin=subprocess.PIPE, text=True)
    memory.take_in(hog.pid)
    assert hog.stdin is not None
    with hog.stdin:
        hog.stdin.write("\n")
    wait_for("the memory is taken", lambda: memory.left_bytes() < (left_mib + 20) * MIB)
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "notify"))
    ear.settimeout(120.0)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    service = Service(tmp_path, broker.port)
    with ear, subscribed(broker.port) as heard, running(service):
        assert service.process is not None
        memory.take_in(service.process.pid)
        while "READY=1" not in ear.recv(65536).decode():
            pass
        waiting = wait_for(
            "it says that it waits",
            lambda: (h := heard.last_health()) and h["memory"]["stage"] == "unloaded" and h,
        )
        assert (waiting["state"], waiting["worker"]["state"]) == ("degraded", "unloaded")
        assert "the cgroup's limit of 640 MiB" in waiting["memory"]["reason"]
        (service.inbox / "waits.jpg").write_bytes(encode(scene(), "JPEG"))
        hog.kill()
        hog.wait()
        (result,) = wait_for("a caption", heard.results)
        assert result["file"] == "waits.jpg"
        wait_for("all is well", lambda: (h := heard.last_health()) and h["state"] == "ok" and h)
        assert memory.oom_kills() == 0
        assert service.log().count("the model is waiting for memory") == 1
        assert service.end() == 0


def test_what_can_never_fit_ends_at_once_with_words(tmp_path: Path, broker: Broker) -> None:
    service = Service(tmp_path, broker.port, model={"memory_limit_mib": 200})
    with running(service):
        assert service.process is not None
        assert service.process.wait(120.0) == 69
    assert "MiB of memory are missing" in service.log()
    assert "the budget is 200 MiB (model.memory_limit_mib)" in service.log()
