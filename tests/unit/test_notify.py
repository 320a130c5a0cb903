"""Words to systemd, at a real socket of the kind that systemd listens on."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge_daemon import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens at $NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@edge-daemon-{uuid.uuid4()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(address.replace("@", "\0", 1))
        listener.setblocking(False)
        yield listener


def test_what_is_said_arrives(systemd: socket.socket) -> None:
    for state in ("READY=1", "STATUS=watching ü\nWATCHDOG=1", "STOPPING=1"):
        assert notify.notify(state)
        assert systemd.recv(4096).decode() == state


def test_the_datagram_itself_says_the_same(systemd: socket.socket) -> None:
    """The way without systemd-python, also where that is installed."""
    assert notify._send(os.environ["NOTIFY_SOCKET"], "READY=1")
    assert systemd.recv(4096) == b"READY=1"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        else:
            monkeypatch.setenv("NOTIFY_SOCKET", value)
        assert not notify.notify("READY=1")


@pytest.mark.parametrize("address", ["/no/such/socket", "@nobody", "relative", "x" * 200])
def test_a_broken_address_is_no_reason_to_die(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.notify("READY=1")


def test_a_socket_that_nobody_reads_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(address))
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    assert not notify.notify("READY=1")


def test_a_systemd_that_does_not_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full; a word more or less does not matter."""
    monkeypatch.setattr(notify, "SEND_S", 0.05)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(tmp_path / "notify"))
        while notify._send(str(tmp_path / "notify"), "WATCHDOG=1"):
            pass
        listener.recv(100)
        assert notify._send(str(tmp_path / "notify"), "WATCHDOG=1")


def test_no_descriptor_is_left_open(systemd: socket.socket) -> None:
    notify.notify("READY=1")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        notify.notify("WATCHDOG=1")
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("environment", "expected_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_rhythm_of_the_watchdog(
    environment: dict[str, str], expected_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_interval_s() == expected_s
