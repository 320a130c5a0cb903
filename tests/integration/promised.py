"""Whether what a service publishes is what configs/*.schema.json and the README promise, topic by topic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

CONFIGS = Path(__file__).parents[2] / "configs"
RESULT, HEALTH, RESPONSE = (
    jsonschema.Draft202012Validator(json.loads((CONFIGS / f"{name}.schema.json").read_text()))
    for name in ("result", "health", "response")
)
WORDS = {"availability": ("online", "offline"), "enabled/state": ("ON", "OFF")}
TO_THE_SERVICE = r"request/.+|[^/]+/(trigger|[^/]+/set)"
"""What others write, whatever it is."""
TAKEN_OFF = r"availability|caption|caption/text|answer/[^/]+|image|(enabled|interval|question)/state|question/answer"
"""Of a source that is gone, or of something that is not wished any more: the message is empty."""


def broken(topic: str, payload: bytes) -> str:
    """What is wrong with a message of a topic below the node; nothing, if it is as promised."""
    if re.fullmatch(TO_THE_SERVICE, topic):
        return ""
    last = topic.partition("/")[2] or topic
    if not payload and "/" in topic and re.fullmatch(TAKEN_OFF, last):
        return ""
    try:
        if topic == "health":
            HEALTH.validate(json.loads(payload))
        elif topic.startswith("response/"):
            _check_response(topic, json.loads(payload))
        elif last in ("event", "caption") or last.startswith("answer/"):
            RESULT.validate(json.loads(payload))
        elif last == "question/answer":
            said = json.loads(payload)
            assert {"question", "answer", "value"} <= said.keys()
            assert not said.get("error") or (said["answer"], said["value"]) == ("", "unknown")
        elif last in WORDS:
            assert payload.decode() in WORDS[last]
        elif last == "interval/state":
            assert 0.1 <= float(payload) <= 86_400
        elif last in ("caption/text", "question/state"):
            payload.decode()
        elif last == "image":
            assert not payload or payload.startswith(b"\xff\xd8")
        else:
            return f"{topic}: no such topic is promised"
    except (AssertionError, ValueError, jsonschema.ValidationError) as error:
        return f"{topic}: {str(error)[:500]}: {payload[:2000]!r}"
    return ""


def _check_response(topic: str, answer: dict[str, Any]) -> None:
    RESPONSE.validate(answer)
    if topic.removeprefix("response/") in ("caption", "ask", "detect") and answer["status"] == "ok":
        RESULT.validate({"seq": 1, "replayed": False, "source": "none", **answer["data"]})
