"""MQTT as it passes on the wire: which messages a client published, and which of them the broker confirmed. Pure.

MQTT 3.1, 3.1.1 and 5 (OASIS, "MQTT Control Packet format"): a byte of type and flags, the length, the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

CONNECT, PUBLISH, PUBACK = 1, 3, 4
CLIENT_SENDS = frozenset({1, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15})


@dataclass(frozen=True)
class Publish:
    """One message of the client."""

    topic: str
    payload: bytes
    retain: bool
    again: bool
    """The client says that it may have sent this before."""


@dataclass
class Tap:
    """Listens at one connection. Give it the bytes of either side as they come."""

    published: list[Publish] = field(default_factory=list)
    """What the client has sent whole; taken away by whoever reads it."""
    confirmed: list[Publish] = field(default_factory=list)
    """What the broker has confirmed; likewise."""
    malformed: str = ""
    """Why the rest of the client's bytes is not read; empty while all is well."""
    _level: int = 4
    _waiting: dict[int, Publish] = field(default_factory=dict)
    _client: bytearray = field(default_factory=bytearray)
    _broker: bytearray = field(default_factory=bytearray)

    def from_client(self, data: bytes) -> None:
        """Bytes on their way to the broker."""
        self._client += data
        try:
            for kind, flags, body in packets(self._client):
                self._client_packet(kind, flags, body)
        except (ValueError, IndexError) as error:
            self.malformed = str(error)

    def from_broker(self, data: bytes) -> None:
        """Bytes on their way back."""
        self._broker += data
        for kind, _, body in packets(self._broker):
            if kind == PUBACK and (message := self._waiting.pop(int.from_bytes(body[:2]), None)):
                self.confirmed.append(message)

    def _client_packet(self, kind: int, flags: int, body: bytes) -> None:
        if kind not in CLIENT_SENDS:
            raise ValueError(f"a client sends no packet of type {kind}")
        if kind == CONNECT:
            self._level = body[2 + int.from_bytes(body[:2])]
        if kind == PUBLISH:
            number, message = self._publish(flags, body)
            self.published.append(message)
            if number is not None:
                self._waiting[number] = message

    def _publish(self, flags: int, body: bytes) -> tuple[int | None, Publish]:
        """The message and its number; None for QoS 0, which nobody confirms."""
        end = 2 + int.from_bytes(body[:2])
        topic = body[2:end].decode()
        number = None
        if flags & 0b0110:
            number, end = int.from_bytes(body[end : end + 2]), end + 2
        if self._level >= 5:
            length, width = variable(body, end)
            end += width + length
        return number, Publish(topic, bytes(body[end:]), bool(flags & 1), bool(flags & 8))


def packets(buffer: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and body of every whole packet, which is taken out of the buffer. Raises ValueError."""
    while len(buffer) >= 2:
        try:
            length, width = variable(buffer, 1)
        except IndexError:
            return
        end = 1 + width + length
        if len(buffer) < end:
            return
        head, body = buffer[0], bytes(buffer[1 + width : end])
        del buffer[:end]
        yield head >> 4, head & 15, body


def variable(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer and how many bytes it takes. Raises IndexError when it is not whole, or ValueError."""
    value = 0
    for width in range(4):
        byte = data[at + width]
        value |= (byte & 127) << 7 * width
        if byte < 128:
            return value, width + 1
    raise ValueError("a length of more than four bytes")
