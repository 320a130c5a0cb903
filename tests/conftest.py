"""What all tests share: coroutines as tests, a clock that stands still, a real broker."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from edge_daemon.demo.broker import Broker, find_mosquitto
from tests.clock import Clock

settings.register_profile("edge-daemon", deadline=None, database=None, print_blob=True)
settings.load_profile("edge-daemon")


def missing(tool: str) -> NoReturn:
    """A tool is not there: the test is skipped on a laptop and fails in CI, where everything must be."""
    if os.environ.get("CI"):
        pytest.fail(f"{tool} is missing, and this is CI")
    pytest.skip(f"{tool} is not installed")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A running mosquitto on a free port of loopback."""
    if find_mosquitto() is None:
        missing("mosquitto")
    directory = tmp_path / "broker"
    directory.mkdir()
    with Broker(directory) as started:
        yield started
