"""What a broker has against us, in words."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge_daemon import reasons

NOT_OURS = {143, 145, 148, 158, 161, 162}
"""About subscriptions, aliases and message numbers: what we do not use, or paho does."""
ANSWERS = (PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.DISCONNECT)


def test_every_failure_that_a_broker_may_give_us_has_words() -> None:
    for code, names in ReasonCode.names.items():
        if code >= 128 and any(kind in ANSWERS for kinds in names.values() for kind in kinds):
            assert code in reasons.REASONS or code in NOT_OURS, f"{code} {names}"
    assert len(set(reasons.REASONS.values())) == len(reasons.REASONS)


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        (133, {"mqtt.client_id"}),
        (134, {"mqtt.username", "mqtt.password"}),
        (135, {"mqtt.username", "mqtt.password"}),
        (142, {"mqtt.client_id", "node"}),
        (144, {"mqtt.base_topic"}),
        (149, {"max_packet_size", "message_size_limit"}),
        (157, {"mqtt.host"}),
    ],
)
def test_the_words_name_the_key(code: int, keys: set[str]) -> None:
    assert all(key in reasons.in_words(code) for key in keys)


def test_who_gave_no_login_is_asked_for_one_and_an_unknown_code_is_shown() -> None:
    for code in (134, 135):
        assert reasons.in_words(code, has_login=False) == reasons.NO_LOGIN
    assert reasons.in_words(137, has_login=False) == reasons.REASONS[137]
    assert "reason code 250" in reasons.in_words(250)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "check mqtt.host (Name or service not known)",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "no name server answers"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "is mqtt.port right?"),
        (OSError(errno.EHOSTUNREACH, "x"), "is mqtt.host right?"),
        (OSError(errno.ENETUNREACH, "x"), "is the network up?"),
        (TimeoutError("timed out"), "no answer; is it switched on"),
        (OSError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
        (OSError("without a number"), "without a number"),
        (OSError(), "OSError"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "one for TLS"),
        (ssl.SSLError(1, "[SSL: SOMETHING_NEW] something new"), "TLS fails: "),
        (None, "no reason is known"),
    ],
)
def test_why_there_is_no_way_to_it(error: BaseException | None, words: str) -> None:
    assert words in reasons.unreachable(error)


def test_what_may_be_taken_later_is_no_verdict_on_the_message() -> None:
    assert reasons.QUOTA < reasons.FOR_NOW <= reasons.REASONS.keys()
    assert not reasons.FOR_NOW & {149, 153}
