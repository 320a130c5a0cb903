"""Three minutes of chaos with the real daemon. Longer ones: python -m tests.chaos --minutes 60."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_daemon.demo.broker import find_mosquitto
from tests.conftest import missing

MINUTES, SEED = 3, 7


@pytest.mark.timeout(900)
def test_three_minutes_of_chaos_lose_and_leak_nothing() -> None:
    if find_mosquitto() is None:
        missing("mosquitto")
    argv = [sys.executable, "-m", "tests.chaos", "--minutes", str(MINUTES), "--seed", str(SEED)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["passed"]
    assert summary["lost"] == 0
    assert summary["results"] == summary["expected"] > 50
    assert summary["deeds"] > 15
    if os.environ.get("CI"):
        assert summary["skipped"] == {}, "this is CI: everything must be possible"
