"""The witness reads MQTT right, however the bytes are cut."""

from __future__ import annotations

import pytest

from tests.chaos.packets import Publish, Tap, variable

EVENT = Publish("a/b", b"words", retain=False, again=False)


def connect(level: int) -> bytes:
    body = b"\0\4MQTT" + bytes([level, 2, 0, 60]) + (b"\0" if level == 5 else b"") + b"\0\1x"
    return bytes([0x10, len(body)]) + body


def publish(message: Publish, number: int, properties: bytes = b"") -> bytes:
    topic = message.topic.encode()
    body = len(topic).to_bytes(2) + topic + number.to_bytes(2) + properties + message.payload
    flags = 0x32 | message.retain | message.again << 3
    length, encoded = len(body), bytearray()
    while True:
        length, low = divmod(length, 128)
        encoded.append(low | (128 if length else 0))
        if not length:
            return bytes([flags]) + bytes(encoded) + body


def ack(number: int) -> bytes:
    return b"\x40\2" + number.to_bytes(2)


@pytest.mark.parametrize("chunk", [1, 2, 7, 10_000])
@pytest.mark.parametrize(("level", "properties"), [(4, b""), (5, b"\0"), (5, b"\5\2\0\0\0\x3c")])
def test_what_was_published_and_confirmed_is_seen_however_it_is_cut(level: int, properties: bytes, chunk: int) -> None:
    messages = [EVENT, Publish("a/c", b"x" * 300, True, True), Publish("a/d", b"", True, False)]
    sent = connect(level) + b"".join(publish(m, n + 1, properties) for n, m in enumerate(messages)) + b"\xc0\0"
    tap = Tap()
    for start in range(0, len(sent), chunk):
        tap.from_client(sent[start : start + chunk])
    assert tap.published == messages
    assert tap.confirmed == []
    for answer in (b"\x20\2\0\0", ack(2), ack(9), ack(1), ack(1)):
        for byte in answer:
            tap.from_broker(bytes([byte]))
    assert tap.confirmed == [messages[1], messages[0]]
    assert tap.malformed == ""


def test_a_torn_message_is_neither_published_nor_confirmed() -> None:
    tap = Tap()
    tap.from_client(connect(4) + publish(EVENT, 1)[:-1])
    tap.from_broker(ack(1))
    assert (tap.published, tap.confirmed, tap.malformed) == ([], [], "")


@pytest.mark.parametrize("nonsense", [b"\x00\0", b"\x90\0", b"\x30\xff\xff\xff\xff\1"])
def test_what_is_no_mqtt_is_told(nonsense: bytes) -> None:
    tap = Tap()
    tap.from_client(connect(4) + nonsense)
    assert tap.malformed


def test_lengths() -> None:
    assert variable(b"\x7f", 0) == (127, 1)
    assert variable(b"\0\x80\1", 1) == (128, 2)
    with pytest.raises(IndexError):
        variable(b"\x80", 0)
