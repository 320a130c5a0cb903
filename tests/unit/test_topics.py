"""The topics, as the README promises them, and the messages of a result."""

from __future__ import annotations

import json

import pytest

from edge_daemon.config import RESERVED_SOURCE_NAMES
from edge_daemon.topics import EVENT_EXPIRY_S, Topics, discovery, home_assistant_status, json_bytes, publications

TOPICS = Topics("home/edge", "shed")


def test_the_topics_of_a_node() -> None:
    assert TOPICS.availability == "home/edge/shed/availability"
    assert TOPICS.health == "home/edge/shed/health"
    assert TOPICS.of("porch", "availability") == "home/edge/shed/porch/availability"


def test_the_topics_of_commands() -> None:
    assert TOPICS.request("caption") == "home/edge/shed/request/caption"
    assert TOPICS.response("caption") == "home/edge/shed/response/caption"
    assert TOPICS.trigger("porch") == "home/edge/shed/porch/trigger"
    assert TOPICS.set("porch", "enabled") == "home/edge/shed/porch/enabled/set"
    assert TOPICS.state("porch", "enabled") == "home/edge/shed/porch/enabled/state"
    assert TOPICS.asked("porch") == "home/edge/shed/porch/question/answer"
    assert TOPICS.incoming == ["home/edge/shed/request/+", "home/edge/shed/+/trigger", "home/edge/shed/+/+/set"]


@pytest.mark.parametrize(
    ("topic", "addressed"),
    [
        (TOPICS.request("caption"), ("request", "caption")),
        (TOPICS.trigger("porch"), ("porch", "trigger")),
        (TOPICS.set("porch", "enabled"), ("porch", "enabled/set")),
        ("home/edge/shed/request", None),
        ("home/edge/shed//trigger", None),
        ("home/edge/shed/porch/", None),
        ("home/edge/barn/request/caption", None),
        ("request/caption", None),
        ("", None),
    ],
)
def test_who_is_addressed(topic: str, addressed: tuple[str, str] | None) -> None:
    assert TOPICS.addressed(topic) == addressed


def test_the_topics_of_home_assistant() -> None:
    assert discovery("ha/main", "edge_daemon_1") == "ha/main/device/edge_daemon_1/config"
    assert home_assistant_status("ha/main") == "ha/main/status"


def test_no_source_can_take_a_topic_of_the_node() -> None:
    for topic in (TOPICS.availability, TOPICS.health):
        assert topic.split("/")[3] in RESERVED_SOURCE_NAMES


def test_a_caption_is_an_event_a_document_and_words() -> None:
    result = {"task": "caption", "caption": "A red circle – on grey.", "seq": 7}
    body = json_bytes(result)
    assert [(p.topic, p.payload, p.retain, p.qos) for p in publications(TOPICS, "porch", result)] == [
        ("home/edge/shed/porch/event", body, False, 1),
        ("home/edge/shed/porch/caption", body, True, 1),
        ("home/edge/shed/porch/caption/text", "A red circle – on grey.".encode(), True, 1),
    ]
    assert json.loads(body) == result


def test_what_mqtt_5_can_say_beside_a_result() -> None:
    result = {"schema": 1, "model": "demo", "replayed": True, "task": "caption", "caption": "A cat."}
    messages = publications(TOPICS, "porch", result)
    assert [message.content_type for message in messages] == ["application/json"] * 2 + ["text/plain; charset=utf-8"]
    assert [message.expiry_s for message in messages] == [EVENT_EXPIRY_S, None, None]
    assert {message.user for message in messages} == {(("schema", "1"), ("model", "demo"), ("replayed", "true"))}


def test_an_answer_is_an_event_and_a_document_of_its_own() -> None:
    result = {"task": "gate-open", "answer": "no"}
    assert [(p.topic, p.retain) for p in publications(TOPICS, "porch", result)] == [
        ("home/edge/shed/porch/event", False),
        ("home/edge/shed/porch/answer/gate-open", True),
    ]


@pytest.mark.parametrize("name", ["ü.jpg", b"\xff.jpg".decode("utf-8", "surrogateescape"), "\ud83d", "\0\n"])
def test_any_file_name_is_json(name: str) -> None:
    body = json_bytes({"file": name})
    assert body.isascii()
    assert json.loads(body)["file"] == name
