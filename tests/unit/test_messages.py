"""Messages: what is packed is unpacked, and what is not as it is annotated is a WireError and nothing else."""

from __future__ import annotations

import io
import json
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon import messages, wire
from edge_daemon.errors import WireError
from edge_daemon.messages import FileKey, Idle, Opening, Progress, Results, TaskResult, WorkerRefused, pack, unpack
from edge_daemon.wire import Message

PARTS = {messages.FileKey, messages.ImageWish, messages.Task, messages.TaskResult}
"""Classes that travel inside others only."""
CLASSES = sorted(
    {cls for cls in vars(messages).values() if isinstance(cls, type) and is_dataclass(cls)} - PARTS - {Message},
    key=lambda cls: cls.__name__,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=9),
    int: st.integers(),
    bool: st.booleans(),
    bytes: st.binary(max_size=99),
    float: st.floats(allow_nan=False, allow_infinity=False),
}
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type annotation."""
    arguments = get_args(hint)
    if get_origin(hint) is UnionType:
        return st.one_of(st.none(), *(values_of(argument) for argument in arguments if argument is not type(None)))
    if get_origin(hint) is Literal:
        return st.sampled_from(arguments)
    if get_origin(hint) is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if get_origin(hint) is dict:
        return st.dictionaries(values_of(str), values_of(arguments[1]), max_size=3)
    return PLAIN[hint] if hint in PLAIN else items_of(hint)


def items_of(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of a message class."""
    return st.builds(cls, **{name: values_of(hint) for name, hint in get_type_hints(cls).items()})


def an_item(cls: Any) -> Any:
    """One instance of a message class with plain values."""
    plain = {str: "a", int: 1, bool: True, float: 1.5, bytes: b"x"}

    def value(hint: Any) -> Any:
        if get_origin(hint) is Literal:
            return get_args(hint)[0]
        if get_origin(hint) is UnionType:
            return value(get_args(hint)[0])
        if get_origin(hint) is list:
            return [value(get_args(hint)[0])]
        if get_origin(hint) is dict:
            return {"k": value(get_args(hint)[1])}
        return plain[hint] if hint in plain else an_item(hint)

    return cls(**{name: value(hint) for name, hint in get_type_hints(cls).items()})


def received(data: bytes) -> Any:
    """What the other side makes of these bytes."""
    message = wire.read(io.BytesIO(data))
    assert message is not None
    return unpack(message)


def over_the_wire(message: Message) -> Any:
    """What the other side makes of a message."""
    return received(wire.encode(message))


def every_field() -> list[Any]:
    """(class, field name) of every message."""
    return [
        pytest.param(cls, field.name, id=f"{cls.__name__}.{field.name}")
        for cls in CLASSES
        for field in fields(cls)
        if field.name != "payload"
    ]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_packed_is_unpacked(cls: Any, data: st.DataObject) -> None:
    item = data.draw(items_of(cls))
    assert over_the_wire(pack(item)) == item


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_any_other_fields_are_refused_or_well_typed(cls: Any, data: st.DataObject) -> None:
    names = st.sampled_from([field.name for field in fields(cls)] + ["other"])
    message = Message(cls.__name__, data.draw(st.dictionaries(names, JSON, max_size=4)), data.draw(st.binary()))
    try:
        item = over_the_wire(message)
    except WireError:
        pass
    else:
        assert isinstance(item, cls)
        assert over_the_wire(pack(item)) == item


@pytest.mark.parametrize(("cls", "name"), every_field())
def test_a_missing_field_is_refused_unless_it_has_a_default(cls: Any, name: str) -> None:
    message = pack(an_item(cls))
    del message.fields[name]
    field = next(field for field in fields(cls) if field.name == name)
    if (field.default, field.default_factory) != (MISSING, MISSING):
        assert isinstance(over_the_wire(message), cls)
    else:
        with pytest.raises(WireError, match=name):
            over_the_wire(message)


@pytest.mark.parametrize(("cls", "name"), every_field())
def test_a_mistyped_field_is_refused(cls: Any, name: str) -> None:
    message = pack(an_item(cls))
    wrongs: list[object] = [float("nan"), float("inf"), {"deep": [None]}, [[]]]
    if get_type_hints(cls)[name] is not int:
        wrongs.append(10**400)  # an int of any size is an int
    for wrong in wrongs:
        message.fields[name] = wrong
        with pytest.raises(WireError, match=r"is not allowed|unexpected field"):
            over_the_wire(message)


@pytest.mark.parametrize(("cls", "name"), every_field())
def test_a_field_of_brackets_without_end_is_refused(cls: Any, name: str) -> None:
    message = pack(an_item(cls))
    message.fields[name] = "HERE"
    for depth in (800, 900, 950, 980, 990):  # about Python's own limit, where it may fail at several places
        data = wire.encode(message).replace(b'"HERE"', b"[" * depth + b"]" * depth)
        with pytest.raises(WireError):
            received(data)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_unknown_field_is_refused(cls: Any) -> None:
    message = pack(an_item(cls))
    message.fields["colour"] = "red"
    with pytest.raises(WireError, match="colour"):
        over_the_wire(message)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_only_some_messages_carry_a_payload(cls: Any) -> None:
    message = pack(an_item(cls))
    with_payload = Message(message.type, message.fields, b"pixels")
    if "payload" in get_type_hints(cls):
        assert over_the_wire(with_payload).payload == b"pixels"
    else:
        with pytest.raises(WireError, match="payload"):
            over_the_wire(with_payload)


@pytest.mark.parametrize("name", ["", "Frames", "Message", "FileKey", "WireError", "__class__"])
def test_an_unknown_type_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="unknown message type"):
        unpack(Message(name, {}))


def test_lists_and_mappings_are_checked_to_the_last_item() -> None:
    result = pack(Results([TaskResult("a", "detect", "", [{"x": 0.5}], 0, "eos", 0.0, 0.0)], 1.0, 3))
    wrongs: list[object] = ["0.5", None, True, float("nan"), {}]
    for wrong in wrongs:
        result.fields["tasks"][0]["objects"] = [{"x": 0.5}, {"x": wrong}]
        with pytest.raises(WireError, match="objects"):
            over_the_wire(result)


def test_a_whole_number_may_stand_for_a_float_and_nothing_else_for_anything() -> None:
    message = pack(an_item(messages.Frame))
    message.fields["decode_ms"] = 3
    assert type(over_the_wire(message).decode_ms) is float
    for name, wrong in {"width_px": 3.0, "height_px": True, "thumbnail_hex": 1, "capture_ms": False}.items():
        broken = pack(an_item(messages.Frame))
        broken.fields[name] = wrong
        with pytest.raises(WireError, match=f"Frame.{name}"):
            over_the_wire(broken)


def test_a_word_outside_its_list_is_refused() -> None:
    with pytest.raises(WireError, match="'money'"):
        over_the_wire(Message("WorkerRefused", {"kind": "money", "reason": "none left"}))
    assert over_the_wire(pack(WorkerRefused("memory", "none left"))).kind == "memory"
    for name, wrong in {"kind": "captoin", "finish_reason": "stop"}.items():
        results = pack(Results([TaskResult("a", "query", "No.", [], 2, "eos", 0.0, 0.0)], 1.0, 3))
        results.fields["tasks"][0][name] = wrong
        with pytest.raises(WireError, match=f"TaskResult.{name}: '{wrong}' is not allowed"):
            over_the_wire(results)


def test_file_names_may_be_any_bytes() -> None:
    name = b"caf\xe9 \xff\n.jpg".decode("utf-8", "surrogateescape")
    assert over_the_wire(pack(Opening(FileKey(name, 10**20, 0)))).file.name == name


def test_defaults_are_those_of_the_class() -> None:
    assert over_the_wire(Message("Idle", {})) == Idle()


def test_an_error_does_not_repeat_a_megabyte() -> None:
    with pytest.raises(WireError) as caught:
        over_the_wire(Message("Progress", {"step": ["x" * 100_000]}))
    assert len(str(caught.value)) < 300
    with pytest.raises(WireError) as caught:
        over_the_wire(Message("Problem", {"reason": "", "file": "x" * 100_000}))
    assert len(str(caught.value)) < 300
    assert json.loads(wire.encode(pack(Progress("ok"))).partition(b"\n")[0])["fields"] == {"step": "ok"}
