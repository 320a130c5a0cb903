"""Two workers at a time (`pytest -n 2 -p tests.workers`, as deploy/test has it): which of them runs what.

A file is run by one worker, so that its fixtures are made once. So are all files that need the large model: it takes
gigabytes and by far the most time, so it is made once and comes first. Knows nothing of what the tests show.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
LARGE = "half_billion"
"""The fixture of tests/model that writes the full 0.5B shape."""
LAST = ("model", "integration", "unit")
"""Below tests/. What waits most runs beside the large model; units are short, so that the workers end together."""


@cache
def share(file: str) -> str:
    """What goes to one worker together with a file of tests."""
    return LARGE if f"{LARGE}: Path" in (ROOT / file).read_text(encoding="utf-8") else file


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """As `--dist loadfile`, by `share`; `--dist loadgroup` sets `_nodeid`, which pytest 9 does not read."""

    def _split_scope(self, nodeid: str) -> str:
        return share(file_of(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False  # the order below, and not by how many tests a file has
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (share(file_of(item.nodeid)) != LARGE, place(item.path.parent.name)))


def place(directory: str) -> int:
    return LAST.index(directory) if directory in LAST else -1


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What was printed may hold half a character, on purpose; xdist ends over it."""
    return sendable((yield))


def sendable(value: Any) -> Any:
    """The same with texts that UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(sendable(item) for item in value)
    return value
