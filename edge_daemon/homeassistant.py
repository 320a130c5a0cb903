"""What Home Assistant is told: one device with all its entities, in one message. Pure.

MQTT discovery by device (Home Assistant 2024.11 and later): home-assistant.io/integrations/mqtt, "Device discovery
payload"; the keys of each platform are on its own page there. Key names are written out, as people read them in their
broker. A state may have 255 characters, so longer words are cut in the template and stand whole in the attributes.
Where a value is not known, a template says None (Home Assistant's PAYLOAD_NONE); the word None becomes "none".
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge_daemon.config import Config
from edge_daemon.source_config import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, AnySource, Question
from edge_daemon.topics import Topics, json_bytes

SUPPORT_URL = "https://github.com/edge-daemon/edge-daemon"
LONGEST_STATE = 255
"""Characters; Home Assistant takes a longer state for unknown (MAX_LENGTH_STATE_STATE)."""
DIAGNOSTIC = {"entity_category": "diagnostic"}

Component = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the configuration does not say."""

    device_id: str
    """From `device_id`."""
    version: str
    board: str = ""
    """Such as Raspberry Pi 5 Model B; empty if it is not known."""
    intervals: frozenset[str] = frozenset()
    """The sources that take a picture every so often; a folder does not."""


def device_id(machine_id: str, node: str, state_dir: str) -> str:
    """An id that stays when the host is renamed: a hash of /etc/machine-id, which is not to be shown itself.

    Of the node's name where there is no machine id; `machine-id(5)` asks for a keyed hash of ours alone. Two nodes on
    one machine have a state directory each, which the outbox sees to.
    """
    known = f"{machine_id.strip() or node}\0{state_dir}"
    return f"edge_daemon_{hmac.new(b'edge-daemon', known.encode(), hashlib.sha256).hexdigest()[:16]}"


def document(config: Config, topics: Topics, facts: Facts) -> dict[str, Any]:
    """The discovery message."""
    entities = list(_of_the_node(topics))
    for name, source in config.sources.items():
        entities += _of_a_source(name, source, topics, facts)
    device = {
        "identifiers": [facts.device_id],
        "name": _human(config.node),
        "manufacturer": "edge-daemon",
        **({"model": facts.board} if facts.board else {}),
        "sw_version": facts.version,
    }
    return {
        "device": device,
        "origin": {"name": "edge-daemon", "sw_version": facts.version, "support_url": SUPPORT_URL},
        "availability": [{"topic": topics.availability}],
        "qos": 1,
        "components": {
            f"{key}.{component['platform']}": {**component, "unique_id": f"{facts.device_id}.{key}"}
            for key, component in entities
        },
    }


def messages(wanted: dict[str, Any] | None, earlier: bytes) -> list[bytes]:
    """What to publish in turn, retained, when the broker has the message `earlier`; `wanted` None: nothing any more.

    Entities that are gone are named once with their platform alone, which removes them, and then left out.
    """
    if wanted is None:
        return [b""] if earlier else []
    gone = removals(platforms(earlier), wanted["components"])
    last = json_bytes(wanted)
    return [json_bytes({**wanted, "components": {**wanted["components"], **gone}}), last] if gone else [last]


def removals(old: dict[str, str], new: dict[str, Any]) -> dict[str, Component]:
    """The components that remove those of `old` (key → platform) that are not in `new`."""
    return {key: {"platform": platform} for key, platform in old.items() if key not in new}


def platforms(message: bytes) -> dict[str, str]:
    """The platform of every component of a message that we sent earlier; none of what is no such message."""
    try:
        components = json.loads(message)["components"]
        return {key: str(component["platform"]) for key, component in components.items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


# ---- the node -------------------------------------------------------------------------------------------


def _of_the_node(topics: Topics) -> Iterator[tuple[str, Component]]:
    """Diagnostics; each reads the health document."""

    def sensor(name: str, template: str, **keys: Any) -> Component:
        keys |= {"name": name, "state_topic": topics.health, "value_template": template}
        return {"platform": "sensor", **keys, **DIAGNOSTIC}

    states = ["starting", "ok", "degraded", "failed"]
    yield "state", sensor("State", "{{ value_json.state }}", device_class="enum", options=states)
    memory = "{{ ((value_json.rss_bytes + value_json.worker.rss_bytes) / 1048576) | round | int }}"
    yield "memory", sensor("Memory", memory, **_measured("data_size", "MiB"))
    temperature = "{{ value_json.thermal.temperature_c }}"
    yield "temperature", sensor("Temperature", temperature, **_measured("temperature", "°C"))
    yield "throttled", {**sensor("Throttled", THROTTLED, device_class="problem"), "platform": "binary_sensor"}
    yield "queue", sensor("Results waiting", "{{ value_json.mqtt.queued }}", state_class="measurement")
    model = {"json_attributes_topic": topics.health, "json_attributes_template": "{{ value_json.model | tojson }}"}
    yield "model", sensor("Model", "{{ value_json.model.name | default('None', true) }}", **model)
    error = f"{{{{ (value_json.worker.last_death or 'none')[:{LONGEST_STATE}] }}}}"
    yield "last_error", sensor("Last error", error)


THROTTLED = (
    "{% set board = value_json.thermal %}"
    "{{ 'ON' if board.throttled or board.under_voltage else"
    " 'None' if board.throttled is none and board.under_voltage is none else 'OFF' }}"
)


# ---- a source -------------------------------------------------------------------------------------------


def _of_a_source(name: str, source: AnySource, topics: Topics, facts: Facts) -> Iterator[tuple[str, Component]]:
    """What a source says needs node and source; what changes it needs the node alone, or nobody could switch it on."""
    both = [{"topic": topics.availability}, {"topic": topics.of(name, "availability")}]
    for key, component in [*_said(name, source, topics), *_done(name, topics)]:
        yield f"{name}.{key}", {**_named(name, component), "availability": both, "availability_mode": "all"}
    for key, component in _set(name, topics, facts):
        yield f"{name}.{key}", _named(name, component)


def _named(source: str, component: Component) -> Component:
    return {**component, "name": f"{_human(source)} {component['name']}"}


def _said(name: str, source: AnySource, topics: Topics) -> Iterator[tuple[str, Component]]:
    """What comes from the pictures."""
    if source.caption != "none":
        yield "caption", _words("caption", topics.of(name, "caption"), "caption")
    if source.image.enabled:
        image = {"image_topic": topics.of(name, "image"), "content_type": "image/jpeg"}
        yield "image", {"platform": "image", "name": "picture", **image}
    for question in source.questions:
        topic = topics.of(name, f"answer/{question.id}")
        yield f"answer.{question.id}", {"name": _human(question.id).lower(), **_answer(question, topic)}
    for thing in source.detect:
        component = {"platform": "sensor", "name": f"{_human(thing.id).lower()} count", "state_class": "measurement"}
        found = _read(topics.of(name, f"answer/{thing.id}"), "objects", "said | count if said is not none else 'None'")
        yield f"answer.{thing.id}", {**component, **found}
    ids = [question.id for question in source.questions] + [thing.id for thing in source.detect]
    first = "caption" if source.caption != "none" else f"answer/{ids[0]}"
    seconds = _state("latency_ms", "(said.total / 1000) | round(1) if said is not none else 'None'")
    latency = {"state_topic": topics.of(name, first), "value_template": seconds}
    yield (
        "latency",
        {"platform": "sensor", "name": "processing time", **latency, **_measured("duration", "s"), **DIAGNOSTIC},
    )


def _answer(question: Question, topic: str) -> Component:
    """The entity of a configured question. What its topic holds may be the answer to what was asked before."""
    shown = {"device_class": question.device_class} if question.device_class else {}
    if question.type == "yes_no":
        value = "('ON' if said else 'OFF') if said is boolean else 'None'"
        return {"platform": "binary_sensor", **shown, **_read(topic, "value", value)}
    if question.type == "number":
        unit = {"unit_of_measurement": question.unit} if question.unit else {}
        value = "said if said is number and said is not boolean else 'None'"
        return {"platform": "sensor", "state_class": "measurement", **unit, **shown, **_read(topic, "value", value)}
    if question.type == "choice":
        options = {"device_class": "enum", "options": ["none" if c == "None" else c for c in question.choices]}
        known = json.dumps(question.choices, ensure_ascii=False)
        value = f"'None' if said not in {known} else 'none' if said == 'None' else said"
        return {"platform": "sensor", **options, **_read(topic, "value", value)}
    return _words("", topic, "answer")


def _words(name: str, topic: str, key: str) -> Component:
    """A sensor of a text."""
    text = f"'none' if said == 'None' else (said or 'None')[:{LONGEST_STATE}]"
    return {"platform": "sensor", **({"name": name} if name else {}), **_read(topic, key, text)}


def _read(topic: str, key: str, state: str) -> Component:
    """The state by an expression of what the document says under `key`, and as attributes what else it says of that."""
    attributes = {"json_attributes_topic": topic, "json_attributes_template": ATTRIBUTES}
    return {"state_topic": topic, "value_template": _state(key, state), **attributes}


def _state(key: str, state: str) -> str:
    """A template; `said` is none where there is no such key, or no document: a topic is emptied when it is gone."""
    return f"{{% set said = value_json.get('{key}') if value_json is defined else none %}}{{{{ {state} }}}}"


MACHINERY = (
    "schema",
    "node",
    "source",
    "model",
    "note",
    "engine",
    "precision",
    "tokens",
    "kv_tokens",
    "latency_ms",
    "seq",
)
"""Said of how a result was made. Home Assistant's recorder writes all attributes of every state to the disk."""
ATTRIBUTES = (
    "{% set said = (value_json if value_json is defined else {}).items() %}"
    f"{{{{ dict(said | rejectattr(0, 'in', {MACHINERY})) | tojson }}}}"
)


def _done(name: str, topics: Topics) -> Iterator[tuple[str, Component]]:
    """What a source is asked to do, once."""
    yield "now", {"platform": "button", "name": "caption now", "command_topic": topics.trigger(name)}
    question = {"command_topic": topics.set(name, "question"), "state_topic": topics.state(name, "question")}
    shown = {"max": LONGEST_STATE, "value_template": f"{{{{ value[:{LONGEST_STATE}] }}}}"}
    yield "question", {"platform": "text", "name": "question", **shown, **question}
    yield "question.answer", _words("answer to the question", topics.asked(name), "answer")


def _set(name: str, topics: Topics, facts: Facts) -> Iterator[tuple[str, Component]]:
    """What holds for a source from now on, and what is wrong with it."""

    def setting(what: str) -> Component:
        return {"command_topic": topics.set(name, what), "state_topic": topics.state(name, what)}

    yield "enabled", {"platform": "switch", "name": "enabled", **setting("enabled")}
    if name in facts.intervals:
        seconds = {"min": SHORTEST_INTERVAL_S, "max": LONGEST_INTERVAL_S, "step": 0.1, "mode": "box"}
        seconds |= {"unit_of_measurement": "s"}
        number = {"platform": "number", "name": "interval", "device_class": "duration", "entity_category": "config"}
        yield "interval", {**number, **seconds, **setting("interval")}
    # health may come without the source before Home Assistant hears that it is gone
    reason = f"value_json.sources.get('{name}', {{}}).get('last_problem', {{}}).get('reason') or 'none'"
    problem = {"state_topic": topics.health, "value_template": f"{{{{ ({reason})[:{LONGEST_STATE}] }}}}"}
    yield "problem", {"platform": "sensor", "name": "last problem", **problem, **DIAGNOSTIC}


def _measured(device_class: str, unit: str) -> Component:
    return {"device_class": device_class, "unit_of_measurement": unit, "state_class": "measurement"}


def _human(name: str) -> str:
    """A name as people write it: `front-door_2` is "Front door 2"."""
    words = name.replace("-", " ").replace("_", " ").strip() or name
    return words[0].upper() + words[1:]
