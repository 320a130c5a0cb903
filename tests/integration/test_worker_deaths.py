"""A processor that is too old for the libraries: the whole service, in words, and without an endless loop."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from edge_daemon import exit_codes, restart_policy
from edge_daemon.config import Config
from edge_daemon.daemon import Daemon
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.errors import ChildBootError
from edge_daemon.mqtt_config import MqttConfig
from edge_daemon.outbox import Outbox
from edge_daemon.source_config import FolderConfig
from tests.integration.service import Service, running

STAND_IN = Path(__file__).with_name("stand_in.py")
TORCH = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
"""What the wheel of torch 2.10 is to a Raspberry Pi 4 (github.com/pytorch/pytorch, issue 174344)."""


def test_the_service_ends_for_good_when_torch_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site/torch").mkdir(parents=True)
    (tmp_path / "site/torch/__init__.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with running(Service(tmp_path, port=1)) as service:
        assert service.process is not None
        assert service.process.wait(120) == exit_codes.CONFIG, "the unit does not start it again after this"
        log = service.log()
    assert "was ended by SIGILL" in log
    assert "the model cannot run here" in log
    assert "pip install torch==2.9.1" in log
    assert "Traceback" not in log


async def test_and_when_it_dies_of_every_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is not blamed for it: the next torch will caption it."""
    monkeypatch.setattr(restart_policy, "FIRST_DELAY_S", 0.01)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    sample_pictures(inbox, 1, 3)
    (tmp_path / "plan.json").write_text(json.dumps([["ready", "die of sigill"]]))
    config = Config(
        state_dir=tmp_path,
        mqtt=MqttConfig(port=1),
        sources={"inbox": FolderConfig(type="folder", path=inbox, settle_s=0.1)},
    )
    changed = asyncio.Event()
    outbox = Outbox(tmp_path / "outbox.db", on_change=changed.set)
    daemon = Daemon(config, tmp_path, outbox, changed)
    daemon.captioner._command = (sys.executable, str(STAND_IN), str(tmp_path))
    with pytest.raises(ChildBootError, match=r"SIGILL.*pip install torch"):
        await daemon.run()
    assert daemon.captioner.state.restarts == 2
    assert daemon.captures["inbox"].state.problems == 0
    outbox.close()
