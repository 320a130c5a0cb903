"""What Home Assistant is told, against the keys that it documents; its templates, filled in by Jinja.

The schema is written from Home Assistant's documentation; that it catches what Home Assistant refuses is tested too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.config import Config
from edge_daemon.device_classes import FOR_YES_NO, UNITS_FOR_NUMBER
from edge_daemon.homeassistant import Facts, device_id, document, messages, platforms, removals
from edge_daemon.topics import Topics

SCHEMA = json.loads((Path(__file__).parents[1] / "homeassistant.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
TOPICS = Topics("edge-daemon", "shed")
FACTS = Facts("edge_daemon_1f", "1.2.3", "Raspberry Pi 5", frozenset({"porch"}))
QUESTIONS = [
    {"id": "gate", "ask": "Is it open?", "type": "yes_no", "device_class": "door"},
    {"id": "people", "ask": "How many?", "type": "number", "unit": "people"},
    {"id": "warmth", "ask": "How warm?", "type": "number", "unit": "°C", "device_class": "temperature"},
    {"id": "colour", "ask": "Which?", "type": "choice", "choices": ["red", "blue"]},
    {"id": "who", "ask": "Who is it?"},
]
PORCH: dict[str, Any] = {
    "type": "folder",
    "path": "/srv",
    "questions": QUESTIONS,
    "detect": ["red car"],
    "image": {"enabled": True},
}


def configured(**sources: dict[str, Any]) -> Config:
    return Config.model_validate({"node": "shed", "sources": sources})


def told(facts: Facts = FACTS, /, **sources: dict[str, Any]) -> dict[str, Any]:
    """The message, which has to fit the schema."""
    made = document(configured(**sources), TOPICS, facts)
    VALIDATOR.validate(made)
    return made


EMPTIED: Any = object()
"""In place of a document: the topic was emptied, and Home Assistant's templates have no `value_json`."""


def rendered(template: str, document: object) -> str:
    """As Home Assistant fills a template in; a name that leads nowhere is an error here."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render({} if document is EMPTIED else {"value_json": document})


def state(component: dict[str, Any], document: object) -> str:
    return rendered(component["value_template"], document)


PORCH_TOLD = told(porch=PORCH)["components"]


# ---- the message ----------------------------------------------------------------------------------------


def test_the_device_and_who_tells_of_it() -> None:
    made = told(porch=PORCH)
    assert made["device"] == {
        "identifiers": ["edge_daemon_1f"],
        "name": "Shed",
        "manufacturer": "edge-daemon",
        "model": "Raspberry Pi 5",
        "sw_version": "1.2.3",
    }
    assert made["origin"]["name"] == "edge-daemon"
    assert made["availability"] == [{"topic": "edge-daemon/shed/availability"}]


def test_every_entity_that_was_promised() -> None:
    assert set(PORCH_TOLD) == {
        *("state.sensor", "memory.sensor", "temperature.sensor", "throttled.binary_sensor", "queue.sensor"),
        *("model.sensor", "last_error.sensor"),
        *("porch.caption.sensor", "porch.image.image", "porch.latency.sensor", "porch.problem.sensor"),
        *("porch.answer.gate.binary_sensor", "porch.answer.people.sensor", "porch.answer.warmth.sensor"),
        *("porch.answer.colour.sensor", "porch.answer.who.sensor", "porch.answer.red-car.sensor"),
        *("porch.now.button", "porch.question.text", "porch.question.answer.sensor"),
        *("porch.enabled.switch", "porch.interval.number"),
    }


def test_what_is_off_or_not_there_has_no_entity() -> None:
    made = told(Facts("x", "1"), porch={**PORCH, "caption": "none", "image": {}})["components"]
    assert not {"porch.caption.sensor", "porch.image.image", "porch.interval.number"} & set(made)
    assert made["porch.latency.sensor"]["state_topic"] == "edge-daemon/shed/porch/answer/gate"
    assert "model" not in told(Facts("x", "1"), porch=PORCH)["device"]


def test_a_source_without_a_caption_may_only_look_for_things() -> None:
    made = told(porch={"type": "folder", "path": "/srv", "caption": "none", "detect": ["car"]})["components"]
    assert made["porch.latency.sensor"]["state_topic"] == "edge-daemon/shed/porch/answer/car"


def test_names_are_for_people() -> None:
    names = {component["name"] for component in told(**{"front-door_2": PORCH})["components"].values()}
    assert {"Front door 2 caption", "Front door 2 gate", "Front door 2 caption now", "Temperature"} <= names
    assert told(_={"type": "folder", "path": "/srv"})["components"]["_.caption.sensor"]["name"] == "_ caption"


def test_a_source_that_is_switched_off_can_be_switched_on() -> None:
    both = [{"topic": "edge-daemon/shed/availability"}, {"topic": "edge-daemon/shed/porch/availability"}]
    needing_both = {key for key, component in PORCH_TOLD.items() if component.get("availability") == both}
    assert {key for key, component in PORCH_TOLD.items() if component.get("availability_mode")} == needing_both
    of_porch = {key for key in PORCH_TOLD if key.startswith("porch.")}
    assert of_porch - needing_both == {"porch.enabled.switch", "porch.interval.number", "porch.problem.sensor"}


NAMES = st.text("ab_-", min_size=1, max_size=4)


@given(st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=3), min_size=1, max_size=3))
def test_no_two_entities_have_one_id(sources: dict[str, list[str]]) -> None:
    questions = {name: [{"id": id, "ask": "?"} for id in ids] for name, ids in sources.items()}
    config = configured(**{n: {"type": "folder", "path": "/srv", "questions": asked} for n, asked in questions.items()})
    made = document(config, TOPICS, Facts("x", "1"))
    ids = [component["unique_id"] for component in made["components"].values()]
    assert len(set(ids)) == len(ids)
    assert len(ids) == 7 + sum(7 + len(asked) for asked in questions.values())


def test_an_id_does_not_depend_on_what_may_change() -> None:
    before, after = (
        document(configured(porch={**PORCH, "questions": [asked]}), topics, Facts("x", version))["components"]
        for asked, topics, version in (
            ({"id": "gate", "ask": "Is it open?"}, TOPICS, "1"),
            ({"id": "gate", "ask": "Open?"}, Topics("other", "node"), "2"),
        )
    )
    assert {k: c["unique_id"] for k, c in before.items()} == {k: c["unique_id"] for k, c in after.items()}


def test_the_id_of_the_device_is_stable_and_does_not_show_the_machine_id() -> None:
    machine_id = "0123456789abcdef0123456789abcdef"
    here, renamed = device_id(f"{machine_id}\n", "shed", "/var/lib"), device_id(machine_id, "barn", "/var/lib")
    assert here == renamed == "edge_daemon_07c04c766142a1e1"
    assert device_id("", "shed", "/var/lib") != device_id("", "barn", "/var/lib")
    assert device_id(machine_id, "barn", "/srv") != renamed, "a second node on this machine"
    assert machine_id[:8] not in here


def test_twenty_sources_fit_into_a_small_brokers_packet() -> None:
    config = configured(**{f"source-{number}": PORCH for number in range(20)})
    made = document(config, TOPICS, FACTS)
    size_bytes = len(messages(made, b"")[0])
    print(f"\n{len(made['components'])} entities of 20 sources: {size_bytes / 1024:.0f} KiB")
    assert size_bytes < 256 << 10


# ---- templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entity", "value", "shown"),
    [
        ("gate.binary_sensor", True, "ON"),
        ("gate.binary_sensor", False, "OFF"),
        ("gate.binary_sensor", "unknown", "None"),
        ("people.sensor", 3, "3"),
        ("people.sensor", 0, "0"),
        ("warmth.sensor", 21.5, "21.5"),
        ("warmth.sensor", "unknown", "None"),
        ("colour.sensor", "red", "red"),
        ("colour.sensor", "unknown", "None"),
    ],
)
def test_answers_become_states(entity: str, value: object, shown: str) -> None:
    assert state(PORCH_TOLD[f"porch.answer.{entity}"], {"value": value, "answer": "words"}) == shown


@pytest.mark.parametrize(
    ("entity", "earlier"),
    [
        ("gate.binary_sensor", {"value": 1}),
        ("gate.binary_sensor", {"value": "Yes."}),
        ("people.sensor", {"value": "three"}),
        ("people.sensor", {"value": True}),
        ("colour.sensor", {"value": "green"}),
        ("colour.sensor", {"value": 3}),
        ("red-car.sensor", {"value": 3}),
        ("who.sensor", {"objects": []}),
    ],
)
def test_the_answer_to_what_was_asked_before_is_unknown(entity: str, earlier: dict[str, Any]) -> None:
    assert state(PORCH_TOLD[f"porch.answer.{entity}"], earlier) == "None"


def test_what_a_choice_may_be_is_whatever_can_be_written() -> None:
    choices = ["it's", 'a "b"', "back\\slash", "{{ 1 }} %}", "äö😀"]
    question = {"id": "q", "ask": "?", "type": "choice", "choices": choices}
    component = told(porch={**PORCH, "questions": [question]})["components"]["porch.answer.q.sensor"]
    assert [state(component, {"value": choice}) for choice in choices] == choices == component["options"]


def test_none_is_a_word() -> None:
    """And not Home Assistant's for what is not known."""
    question = {"id": "q", "ask": "?", "type": "choice", "choices": ["None", "some"]}
    component = told(porch={**PORCH, "questions": [question]})["components"]["porch.answer.q.sensor"]
    assert component["options"] == ["none", "some"]
    assert [state(component, {"value": value}) for value in ("None", "some", "unknown")] == ["none", "some", "None"]
    words = PORCH_TOLD["porch.answer.who.sensor"]
    assert [state(words, {"answer": answer}) for answer in ("None", "None here.", "")] == ["none", "None here.", "None"]


def test_a_topic_that_is_emptied_is_unknown_and_no_error() -> None:
    of_pictures = {key: c for key, c in PORCH_TOLD.items() if "value_json.get(" in c.get("value_template", "")}
    assert len(of_pictures) == 9
    assert {state(component, EMPTIED) for component in of_pictures.values()} == {"None"}
    attributes = [c["json_attributes_template"] for c in of_pictures.values() if "json_attributes_topic" in c]
    assert {rendered(template, EMPTIED) for template in attributes} == {"{}"}


def test_the_attributes_are_what_is_said_and_not_how_it_was_made() -> None:
    example = re.search(r"^\{\n  \"schema\".*?^\}", (Path(__file__).parents[2] / "README.md").read_text(), re.M | re.S)
    assert example is not None
    said = json.loads(example[0]) | {"caption": "A <cat>'s “home” {{ 1 }}"}
    shown = json.loads(rendered(PORCH_TOLD["porch.caption.sensor"]["json_attributes_template"], said))
    assert shown == {key: said[key] for key in shown}
    assert set(shown) == {
        *("id", "captured_at", "task", "caption", "length", "file", "finish_reason", "trigger", "replayed"),
    }


@pytest.mark.parametrize(
    ("entity", "key"), [("caption", "caption"), ("answer.who", "answer"), ("question.answer", "answer")]
)
def test_long_words_are_cut_and_stand_whole_in_the_attributes(entity: str, key: str) -> None:
    component = PORCH_TOLD[f"porch.{entity}.sensor"]
    assert state(component, {key: "ä" * 1000}) == "ä" * 255
    assert state(component, {key: "A cat's “home”. {{ 1 }}"}) == "A cat's “home”. {{ 1 }}"
    assert component["json_attributes_topic"] == component["state_topic"]


def test_a_long_question_that_came_another_way_is_cut() -> None:
    template = PORCH_TOLD["porch.question.text"]["value_template"]
    assert jinja2.Environment().from_string(template).render(value="?" * 1000) == "?" * 255


def test_boxes_are_counted() -> None:
    component = PORCH_TOLD["porch.answer.red-car.sensor"]
    assert [state(component, {"objects": [{}] * count}) for count in (0, 2)] == ["0", "2"]


def test_the_time_of_a_caption_is_in_seconds() -> None:
    assert state(PORCH_TOLD["porch.latency.sensor"], {"latency_ms": {"total": 12345.6}}) == "12.3"


HEALTH: dict[str, Any] = {
    "state": "ok",
    "rss_bytes": 40 << 20,
    "model": {},
    "worker": {"rss_bytes": 1000 << 20, "last_death": ""},
    "thermal": {"temperature_c": None, "throttled": None, "under_voltage": None},
    "mqtt": {"queued": 7},
    "sources": {"porch": {"last_problem": {}}},
}


@pytest.mark.parametrize(
    ("entity", "change", "shown"),
    [
        ("state.sensor", {}, "ok"),
        ("memory.sensor", {}, "1040"),
        ("queue.sensor", {}, "7"),
        ("model.sensor", {}, "None"),
        ("model.sensor", {"model": {"name": "moondream-0.5b"}}, "moondream-0.5b"),
        ("last_error.sensor", {}, "none"),
        ("last_error.sensor", {"worker": {"last_death": "x" * 999}}, "x" * 255),
        ("temperature.sensor", {}, "None"),
        ("temperature.sensor", {"thermal": {"temperature_c": 61.3}}, "61.3"),
        ("throttled.binary_sensor", {}, "None"),
        ("throttled.binary_sensor", {"thermal": {"throttled": [], "under_voltage": None}}, "OFF"),
        ("throttled.binary_sensor", {"thermal": {"throttled": None, "under_voltage": False}}, "OFF"),
        ("throttled.binary_sensor", {"thermal": {"throttled": ["frequency_capped"], "under_voltage": False}}, "ON"),
        ("throttled.binary_sensor", {"thermal": {"throttled": None, "under_voltage": True}}, "ON"),
        ("porch.problem.sensor", {}, "none"),
        ("porch.problem.sensor", {"sources": {}}, "none"),
        ("porch.problem.sensor", {"sources": {"porch": {"last_problem": {"reason": "y" * 999}}}}, "y" * 255),
    ],
)
def test_health_becomes_diagnostics(entity: str, change: dict[str, Any], shown: str) -> None:
    component = PORCH_TOLD[entity]
    assert component["state_topic"] == "edge-daemon/shed/health"
    assert component["entity_category"] == "diagnostic"
    assert state(component, HEALTH | change) == shown


def test_the_model_has_its_facts_as_attributes() -> None:
    template = PORCH_TOLD["model.sensor"]["json_attributes_template"]
    facts = {"name": "demo", "note": 'knows <shapes> & "colours"'}
    assert json.loads(rendered(template, {"model": facts})) == facts


# ---- what is gone ---------------------------------------------------------------------------------------


def test_a_source_that_is_gone_is_removed_and_then_left_out() -> None:
    earlier = messages(told(porch=PORCH, barn=PORCH), b"")[-1]
    wanted = told(porch=PORCH)
    first, last = map(json.loads, messages(wanted, earlier))
    VALIDATOR.validate(first)
    gone = {key: c for key, c in first["components"].items() if key not in wanted["components"]}
    assert set(gone) == {key for key in platforms(earlier) if key.startswith("barn.")}
    assert gone["barn.enabled.switch"] == {"platform": "switch"}
    assert last == wanted


def test_a_question_of_another_type_is_another_entity() -> None:
    def with_type(kind: str) -> dict[str, Any]:
        return told(porch={"type": "folder", "path": "/srv", "questions": [{"id": "g", "ask": "?", "type": kind}]})

    gone = removals(platforms(messages(with_type("yes_no"), b"")[0]), with_type("text")["components"])
    assert gone == {"porch.answer.g.binary_sensor": {"platform": "binary_sensor"}}


def test_what_is_as_before_is_sent_once() -> None:
    wanted = told(porch=PORCH)
    (only,) = messages(wanted, messages(wanted, b"")[0])
    assert json.loads(only) == wanted


def test_switched_off_takes_everything_back() -> None:
    assert messages(None, messages(told(porch=PORCH), b"")[0]) == [b""]
    assert messages(None, b"") == []


@given(
    st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["components", "platform", "a"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_a_broker_keeps_is_no_error(kept: bytes) -> None:
    assert all(isinstance(platform, str) for platform in platforms(kept).values())
    assert platforms(b"[" * 100_000) == {}


# ---- the schema itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entity", "change"),
    [
        ("porch.caption.sensor", {"value_tmplate": "{{ value }}"}),
        ("porch.caption.sensor", {"state_topic": "a/+/b"}),
        ("porch.caption.sensor", {"entity_category": "config"}),
        ("porch.caption.sensor", {"device_class": "door"}),
        ("porch.caption.sensor", {"platform": "sensr"}),
        ("porch.caption.sensor", {"unique_id": ""}),
        ("porch.caption.sensor", {"availability_mode": "both"}),
        ("porch.caption.sensor", {"availability": [{}]}),
        ("porch.answer.warmth.sensor", {"unit_of_measurement": "C"}),
        ("porch.answer.warmth.sensor", {"state_class": "total"}),
        ("porch.answer.colour.sensor", {"options": []}),
        ("porch.answer.colour.sensor", {"state_class": "measurement"}),
        ("porch.answer.gate.binary_sensor", {"device_class": "temperature"}),
        ("porch.question.text", {"max": 256}),
        ("porch.now.button", {"state_topic": "a"}),
        ("porch.enabled.switch", {"retain": True}),
        ("porch.interval.number", {"mode": "list"}),
        ("porch.image.image", {"url_topic": "a"}),
    ],
)
def test_the_schema_refuses_what_home_assistant_would(entity: str, change: dict[str, Any]) -> None:
    made = told(porch=PORCH)
    made["components"][entity] = made["components"][entity] | change
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(made)


@pytest.mark.parametrize("key", ["device", "origin", "components"])
def test_the_schema_refuses_a_message_with_a_part_missing(key: str) -> None:
    made = {name: value for name, value in told(porch=PORCH).items() if name != key}
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(made)


def test_every_class_and_unit_that_a_question_can_have_is_home_assistants() -> None:
    yes_no = [{"type": "yes_no", "device_class": name} for name in sorted(FOR_YES_NO)]
    units = [(name, unit) for name, known in UNITS_FOR_NUMBER.items() for unit in known]
    numbers = [{"type": "number", "device_class": name, "unit": unit} for name, unit in units]
    questions = [{"id": f"q{number}", "ask": "?", **keys} for number, keys in enumerate(yes_no + numbers)]
    assert len(told(porch={"type": "folder", "path": "/srv", "questions": questions})["components"]) > len(questions)


def test_the_longest_interval_is_a_day() -> None:
    assert PORCH_TOLD["porch.interval.number"]["max"] == 24 * 60 * 60
