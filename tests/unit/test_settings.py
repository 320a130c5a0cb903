"""What was set over MQTT stays, goes before the file, and never keeps the service from starting."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edge_daemon import config
from edge_daemon.config import Config
from edge_daemon.errors import ConfigError
from edge_daemon.settings import Settings
from edge_daemon.source_config import FolderConfig

GATE = {"id": "gate", "ask": "Is it open?", "type": "yes_no", "for_frames": 2}


def configured(**keys: Any) -> Config:
    return Config.model_validate({"sources": {"porch": {"type": "folder", "path": "/srv", **keys}}})


def porch(settings: Settings, **keys: Any) -> FolderConfig:
    """The source as it is in the end."""
    source = settings.over(configured(**keys)).sources["porch"]
    assert isinstance(source, FolderConfig)
    return source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


def test_nothing_was_set(path: Path) -> None:
    assert Settings(path).over(configured()) == configured()
    assert not path.exists()


def test_what_was_set_holds_after_a_restart_and_the_rest_is_the_files(path: Path) -> None:
    questions = config.questions([GATE])
    assert Settings(path).change("porch", {"caption": "long", "questions": questions}) == ""
    made = porch(Settings(path), recursive=False)
    assert (made.caption, made.questions, made.recursive, made.enabled) == ("long", questions, False, True)


def test_settings_add_up(path: Path) -> None:
    settings = Settings(path)
    settings.change("porch", {"caption": "long"})
    settings.change("porch", {"enabled": False})
    settings.change("shed", {"enabled": False})
    made = porch(Settings(path))
    assert (made.caption, made.enabled) == ("long", False)
    path.unlink()
    assert porch(Settings(path)).enabled, "whoever deletes the file goes back to the configuration"


def test_what_does_not_fit_the_file_any_more_is_told_and_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Settings(path).change("porch", {"questions": config.questions([GATE])})
    made = porch(Settings(path), detect=["gate"])
    assert not made.questions
    assert "no longer applies: the id 'gate' is there twice" in caplog.text


def test_what_was_switched_off_stays_off_whatever_else_does_not_fit(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Settings(path).change("porch", {"questions": config.questions([GATE]), "caption": "none", "enabled": False})
    made = porch(Settings(path), detect=["gate"])
    assert (made.enabled, made.caption, made.questions) == (False, "none", ())
    (told,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert told.startswith("source porch: questions, set over MQTT")


def test_keys_that_hold_together_only_hold(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Settings(path).change("porch", {"caption": "none", "questions": config.questions([GATE])})
    made = porch(Settings(path))
    assert (made.caption, [question.id for question in made.questions]) == ("none", ["gate"])
    Settings(path).change("porch", {"caption": "short", "questions": ()})
    made = porch(Settings(path), caption="none", questions=[GATE])
    assert (made.caption, made.questions) == ("short", ())
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b'{"porch": 5}', b"\xff", b"[" * 100_000, b'{"porch": {"enabled": 3}}']
)
def test_a_damaged_file_is_as_good_as_none(path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(content)
    settings = Settings(path)
    assert porch(settings) == configured().sources["porch"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    settings.change("porch", {"enabled": False})
    assert not porch(Settings(path)).enabled


def test_only_what_can_be_set_is_taken_from_the_file(path: Path) -> None:
    path.write_text(json.dumps({"porch": {"path": "/etc", "caption": "long"}}))
    made = porch(Settings(path))
    assert (str(made.path), made.caption) == ("/srv", "long")


def test_what_cannot_be_written_holds_until_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(tmp_path / "file" / "settings.json")
    assert "cannot be written: Not a directory" in settings.change("porch", {"enabled": False})
    assert not porch(settings).enabled


def test_a_change_is_under_the_rules_of_the_file() -> None:
    source = configured().sources["porch"]
    with pytest.raises(ConfigError, match=r"^this source has nothing to do"):
        config.changed(source, {"caption": "none"})
    with pytest.raises(ConfigError, match=r"^enabled: "):
        config.changed(source, {"enabled": 5})
    assert config.changed(source, {"enabled": False}).enabled is False
