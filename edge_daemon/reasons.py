"""What a broker, or the way to it, has against us: in words that say what to change. Pure.

Reason codes are those of MQTT 5 (its specification, 2.4); the five refusals of MQTT 3.1.1 have their places
among them. No word here comes from the configuration but host and port, so no secret can be in it.
"""

from __future__ import annotations

import errno
import socket
import ssl

MALFORMED, VERSION, KEEPALIVE, TAKEN_OVER = 130, 132, 141, 142
"""Reason codes; MALFORMED and KEEPALIVE are made up by paho where the broker has not said them."""
LOGIN = "check mqtt.username and mqtt.password"
ANOTHER_CLIENT = (
    "probably another client has our name, and the two throw each other out; "
    "give each of your machines its own mqtt.client_id, and its own node"
)
TOO_LARGE = "the message is larger than the broker accepts; raise max_packet_size or message_size_limit in its settings"
REASONS = {
    128: "it gives no reason; its log may say more",
    129: "it cannot read what we sent; its log may say why",
    MALFORMED: "it says that we broke the protocol; its log may say how",
    131: "it gives a reason of its own; its log may say which",
    VERSION: "it does not speak our version of MQTT; a broker such as Mosquitto does, or set mqtt.protocol to auto",
    133: "it does not accept our name; set mqtt.client_id, to at most 23 letters and digits if the broker is old",
    134: f"it does not know this login; {LOGIN}",
    135: f"it does not allow this to our login; {LOGIN}, and the broker's access list",
    136: "it is not available now",
    137: "it is too busy now",
    138: "it has banned us; its administrator must lift that",
    139: "it is shutting down",
    140: f"it wants a different kind of login than a name and a password; {LOGIN}",
    KEEPALIVE: "it heard nothing from us for too long; check the network, or lower mqtt.keepalive_s",
    TAKEN_OVER: ANOTHER_CLIENT,
    144: "it does not allow these topics; check mqtt.base_topic",
    147: "we sent more at once than it accepts",
    149: TOO_LARGE,
    150: "we send more often than it allows",
    151: "its quota is used up; its administrator can raise it",
    152: "its administrator ended the connection",
    153: "it does not accept what is in this message",
    154: "it does not keep retained messages, which captions need; allow them in its settings",
    155: "it does not confirm messages (QoS 1), which captions need; allow that in its settings",
    156: "it tells us to use another broker for now; check mqtt.host",
    157: "the broker has moved; check mqtt.host",
    159: "we connect more often than it allows",
    160: "it ends every connection after some time",
}
"""By reason code of MQTT 5."""
QUOTA = frozenset({147, 150, 151})
"""Whatever is sent next is refused as well."""
FOR_NOW = QUOTA | {131, 135, 144}
"""Refusals of a message that are about its topic or about quotas: later, or with other settings, it may be taken."""
UNTAKEN = (
    "perhaps it is larger than the max_packet_size of the broker's settings, "
    "or the broker's access list does not let mqtt.username write to this topic"
)
NO_ACCESS = "perhaps the broker's access list does not let mqtt.username write there; it needs all of mqtt.base_topic"
NO_LOGIN = "it wants a login; set mqtt.username and mqtt.password"
UNVERIFIED = (
    "mqtt.tls.verify is false: nobody checks that this is our broker, "
    "so anybody in between can read and change everything"
)
WHICH_PORT = {False: " (perhaps this is the port for TLS, and mqtt.tls is missing?)", True: ""}
"""Whether we use TLS, and what may then be wrong with a port where no broker answers."""

UNREACHABLE = {
    errno.ECONNRESET: "it hangs up at once; is mqtt.port right? It has one for TLS, one without, one for websockets",
    errno.ECONNREFUSED: "nothing listens there; is the broker running, and is mqtt.port right?",
    errno.EHOSTUNREACH: "no machine answers at that address; is it switched on, and is mqtt.host right?",
    errno.ENETUNREACH: "there is no route to it; is the network up?",
    errno.ENETDOWN: "the network is down",
    errno.ETIMEDOUT: "no answer; is it switched on, is mqtt.host right, or does a firewall block us?",
    errno.EMFILE: "this process has too many files open",
}
"""By error number of connect(2)."""

CERTIFICATE = {
    9: "its certificate is not valid yet; is the clock of this machine right?",
    10: "its certificate has expired; it needs a new one (or is the clock of this machine wrong?)",
    18: "its certificate is self-signed; set mqtt.tls.ca_file to that certificate",
    19: "its certificate comes from an unknown CA; set mqtt.tls.ca_file to the CA's certificate",
    20: "its certificate comes from an unknown CA; set mqtt.tls.ca_file to the CA's certificate",
    62: "its certificate is for a different name than mqtt.host; use the name in it",
    64: "its certificate is for a different address than mqtt.host; use the name or address in it",
}
"""By verification error of OpenSSL (x509_vfy.h)."""
NO_TLS = "it does not answer with TLS; is mqtt.port the one for TLS?"
WRONG_CLIENT = "it does not accept our certificate; a CA that the broker knows must sign it (mqtt.tls.cert_file)"
ALERTS = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": "it hung up during the handshake; is mqtt.port the one for TLS?",
    "CERTIFICATE_REQUIRED": "it wants a certificate from us; set mqtt.tls.cert_file and mqtt.tls.key_file",
    "CERTIFICATE_EXPIRED": "our certificate has expired; renew mqtt.tls.cert_file",
    "CERTIFICATE_REVOKED": "our certificate has been revoked; replace mqtt.tls.cert_file",
    "UNKNOWN_CA": WRONG_CLIENT,
    "BAD_CERTIFICATE": WRONG_CLIENT,
    "CERTIFICATE_UNKNOWN": WRONG_CLIENT,
    "PROTOCOL_VERSION": "it speaks no version of TLS that mqtt.tls.min_version allows",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that mqtt.tls.min_version allows",
    "HANDSHAKE_FAILURE": "it breaks off the handshake: perhaps it wants a certificate from us; set mqtt.tls.cert_file",
}
"""By the end of OpenSSL's reason; the beginning says which version of TLS sent an alert."""


def in_words(code: int, *, has_login: bool = True) -> str:
    """What a reason code means, and what to do."""
    if code in (134, 135) and not has_login:
        return NO_LOGIN
    return REASONS.get(code, f"reason code {code}, which MQTT 5 does not know; its log may say more")


def unreachable(error: BaseException | None) -> str:
    """Why there is no connection, from what connecting raised."""
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return "no name server answers; is the network up? An address in mqtt.host needs none"
        return f"this name cannot be resolved; check mqtt.host ({error.strerror})"
    if isinstance(error, ssl.SSLError):
        return tls(error)
    if isinstance(error, TimeoutError):
        return UNREACHABLE[errno.ETIMEDOUT]
    if isinstance(error, OSError):
        return UNREACHABLE.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    return "no reason is known"


def tls(error: ssl.SSLError) -> str:
    """Why there is no encrypted connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CERTIFICATE.get(error.verify_code, f"its certificate is not accepted: {error.verify_message}")
    reason = getattr(error, "reason", None) or type(error).__name__
    return next((words for end, words in ALERTS.items() if reason.endswith(end)), f"TLS fails: {reason}")
