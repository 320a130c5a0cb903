"""One picture, many tasks: caption, typed answers, detections and the image, through the whole service."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image, ImageChops, ImageStat

from edge_daemon.demo.broker import Broker
from edge_daemon.demo.scenes import sample_pictures
from tests.integration.service import BASE, Service, running, subscribed, wait_for

SCHEMA = json.loads((Path(__file__).parents[2] / "configs/result.schema.json").read_text())
QUESTIONS = [
    {"id": "count", "ask": "How many shapes are there?", "type": "number", "unit": "shapes"},
    {"id": "circle", "ask": "Is there a circle?", "type": "yes_no", "for_frames": 2},
    {"id": "words", "ask": "How many shapes are there?"},
]
SOURCE = {
    "questions": QUESTIONS,
    "detect": ["shape", {"id": "dogs", "what": "dog"}],
    "image": {"enabled": True, "boxes": True},
}


def test_everything_about_one_picture(tmp_path: Path, broker: Broker) -> None:
    (tmp_path / "samples").mkdir()
    samples = sample_pictures(tmp_path / "samples", 2, 7)
    with subscribed(broker.port) as heard, running(Service(tmp_path, broker.port, source=SOURCE)) as service:
        wait_for("health", heard.last_health)
        for number, (path, _) in enumerate(samples, 1):
            path.rename(service.inbox / path.name)
            wait_for("its results", lambda n=number: len(heard.on("inbox/event")) == 6 * n)  # type: ignore[misc]
        results = heard.results()
        for result in results:
            jsonschema.validate(result, SCHEMA)
        assert [r["task"] for r in results] == ["caption", "count", "circle", "words", "shape", "dogs"] * 2
        for (_, truth), said in zip(samples, (results[:6], results[6:]), strict=True):
            check_one(said, truth)
        assert results[2]["value"] == "unknown"
        if results[2]["answer"] == results[8]["answer"]:
            assert results[8]["value"] is results[8]["answer"].startswith("Yes")
        assert heard.results("inbox/answer/shape")[-1]["objects"] == results[10]["objects"]
        order = [m.topic.removeprefix(f"{BASE}/inbox/") for m in heard.messages if m.topic.startswith(f"{BASE}/inbox/")]
        assert [t for t in order if t in ("image", "caption")] == ["image", "caption"] * 2
        images = heard.on("inbox/image")
        assert [image.qos for image in images] == [0, 0]
        assert service.end() == 0
    with subscribed(broker.port) as later:
        retained = wait_for("the last image", lambda: later.on("inbox/image"))
        assert retained[0].payload == images[-1].payload
    shown = Image.open(io.BytesIO(images[-1].payload))
    with Image.open(service.inbox / samples[-1][0].name) as drawn:
        frame = drawn.convert("RGB").resize(shown.size)
    assert max(shown.size) == 512
    assert ImageStat.Stat(ImageChops.difference(shown, frame)).mean < [20.0] * 3, "this picture, and some frames"


def test_an_image_that_does_not_fit_leaves_the_topic_empty_and_is_told_once(tmp_path: Path, broker: Broker) -> None:
    (tmp_path / "samples").mkdir()
    samples = sample_pictures(tmp_path / "samples", 2, 7)
    source = {"image": {"enabled": True, "max_kib": 1}}
    with subscribed(broker.port) as heard, running(Service(tmp_path, broker.port, source=source)) as service:
        for path, _ in samples:
            path.rename(service.inbox / path.name)
        results = wait_for("both captions", lambda: r if len(r := heard.results()) == 2 else None)
        assert {r["caption"] for r in results} == {truth for _, truth in samples}
        assert [image.payload for image in heard.on("inbox/image")] == [b""]
        assert service.end() == 0
    assert service.log().count("at quality 20; image.max_kib allows 1: it is not published") == 1


@pytest.mark.parametrize("questions", [[], [{"id": "words", "ask": "What colour is the star?"}]], ids=["", "an answer"])
def test_a_length_that_the_model_has_not_is_told(tmp_path: Path, broker: Broker, questions: list[Any]) -> None:
    """Nothing counts as captioned of which nothing came."""
    (tmp_path / "samples").mkdir()
    ((path, _),) = sample_pictures(tmp_path / "samples", 1, 7)
    source = {"caption": "long", "questions": questions}
    with subscribed(broker.port) as heard, running(Service(tmp_path, broker.port, source=source)) as service:
        path.rename(service.inbox / path.name)

        def told() -> Any:
            health = heard.last_health()
            return health and health["sources"]["inbox"]["last_problem"] and health

        state = wait_for("the problem", told)["sources"]["inbox"]
        assert "demo-shapes has no 'long' caption; it has: short, normal" in state["last_problem"]["reason"]
        assert state["problems"] == 1
        wait_for("answers", lambda: len(heard.results()) == len(questions))
        counted = wait_for("health", lambda: (h := heard.last_health()) and h["sources"]["inbox"])
        assert counted["captioned"] <= len(questions)
        assert service.end() == 0


def check_one(said: list[dict[str, Any]], truth: str) -> None:
    """The results of one picture."""
    caption, count, circle, words, shapes, dogs = said
    assert caption["caption"] == truth
    assert (type(count["value"]), count["unit"], count["type"]) == (int, "shapes", "number")
    assert words["value"] == words["answer"] == count["answer"]
    assert circle["type"] == "yes_no"
    assert shapes["count"] == len(shapes["objects"]) == count["value"]
    assert (dogs["target"], dogs["count"], dogs["objects"]) == ("dog", 0, [])
    times = [(r["latency_ms"]["prefill"], r["latency_ms"]["generate"]) for r in (caption, count, circle, words)]
    assert len(set(times)) == 1, "they went together"
