"""A configuration that is read again: what holds at once, what needs a restart, and what then runs."""

from __future__ import annotations

from typing import Any

from edge_daemon.config import Config
from edge_daemon.reload import reloaded


def configured(porch: dict[str, Any] | None = None, **top: Any) -> Config:
    folder = {"type": "folder", "path": "/srv"}
    sources = {"porch": {**folder, **(porch or {})}, **top.pop("more", {})}
    return Config.model_validate({"node": "test", "sources": sources, **top})


OLD = configured()


def test_nothing_has_changed() -> None:
    outcome = reloaded(OLD, configured())
    assert (outcome.running, outcome.applied, outcome.restart) == (OLD, [], [])


def test_what_is_looked_at_for_every_picture_holds_at_once() -> None:
    keys: dict[str, Any] = {
        "caption": "long",
        "detect": ["car"],
        "questions": [{"id": "gate", "ask": "Open?"}],
        "enabled": False,
    }
    keys["image"] = {"enabled": True}
    new = configured(keys, log_level="debug")
    outcome = reloaded(OLD, new)
    assert set(outcome.applied) == {"log_level", *(f"sources.porch.{key}" for key in keys)}
    assert outcome.restart == []
    assert outcome.running == new


def test_the_rest_needs_a_restart_and_does_not_hold_before() -> None:
    new = configured({"path": "/other", "caption": "long"}, thermal={"limit_at_c": 79}, model={"max_tokens": 5})
    outcome = reloaded(OLD, new)
    assert outcome.restart == ["model", "thermal", "sources.porch.path"]
    assert outcome.running == configured({"caption": "long"})
    again = reloaded(outcome.running, new)
    assert (again.applied, again.restart) == ([], outcome.restart)


def test_the_broker_holds_at_once_but_for_the_topics() -> None:
    new = configured(mqtt={"host": "elsewhere", "password": "x", "username": "y", "base_topic": "cams"})
    outcome = reloaded(OLD, new)
    assert (outcome.applied, outcome.restart) == (["mqtt"], ["mqtt.base_topic"])
    assert outcome.running.mqtt == new.mqtt.model_copy(update={"base_topic": "edge-daemon"})
    again = reloaded(outcome.running, new)
    assert (again.applied, again.restart) == ([], ["mqtt.base_topic"])


def test_another_name_of_the_node_needs_a_restart() -> None:
    outcome = reloaded(OLD, OLD.model_copy(update={"node": "other"}))
    assert (outcome.applied, outcome.restart, outcome.running) == ([], ["node"], OLD)


def test_sources_that_come_and_go_need_a_restart() -> None:
    more = configured(more={"shed": {"type": "folder", "path": "/shed"}})
    assert reloaded(OLD, more).restart == reloaded(more, OLD).restart == ["sources.shed"]
    assert reloaded(OLD, more).running == OLD
    assert reloaded(more, OLD).running == more


def test_what_a_source_of_another_kind_has_needs_a_restart() -> None:
    camera = {"type": "command", "command": ["/bin/cat"], "interval_s": 5, "caption": "long"}
    new = Config.model_validate({"node": "test", "sources": {"porch": camera}})
    outcome = reloaded(OLD, new)
    assert outcome.applied == ["sources.porch.caption"]
    assert outcome.running == configured({"caption": "long"})
    assert {"sources.porch.type", "sources.porch.interval_s", "sources.porch.gate"} <= set(outcome.restart)
