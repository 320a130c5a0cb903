"""TLS as the configuration wants it, from certificates that are read again for every connection."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_daemon.errors import ConfigError
from edge_daemon.mqtt_config import TlsConfig

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
NOT_PEM = "this is not a PEM file; it begins with -----BEGIN CERTIFICATE----- (or PRIVATE KEY)"


def context(config: TlsConfig, on_alert: Callable[[Exception], None]) -> ssl.SSLContext:
    """A client's context. `on_alert` hears what TLS objects to later, in the thread that reads from the socket.

    Raises ConfigError for a file that cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = VERSIONS[config.min_version]
    if not config.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif config.ca_file is None:
        made.load_default_certs()
    else:
        _load("ca_file", config.ca_file, made.load_verify_locations)
    if config.cert_file is not None:
        key = config.key_file or config.cert_file
        _load("key_file", key, lambda path: None)
        _load("cert_file", config.cert_file, lambda path: made.load_cert_chain(path, key, _no_password))
    made.sslsocket_class = _socket_class(on_alert)
    return made


def _load(name: str, path: Path, load: Callable[[Path], None]) -> None:
    try:
        path.open("rb").close()  # OpenSSL does not say which file it misses
        load(path)
    except ssl.SSLError as error:
        reason = "the key does not belong to this certificate" if "MISMATCH" in str(error.reason) else NOT_PEM
        raise ConfigError(f"mqtt.tls.{name} {path}: {reason}") from error
    except _HasPassword as error:
        raise ConfigError(f"mqtt.tls.key_file: the key in {path} has a password; use a key without one") from error
    except OSError as error:
        raise ConfigError(f"mqtt.tls.{name} {path}: {error.strerror}") from error


class _HasPassword(Exception):
    """Raised instead of asking at the terminal."""


def _no_password() -> str:
    raise _HasPassword


def _socket_class(on_alert: Callable[[Exception], None]) -> type[ssl.SSLSocket]:
    """Paho does not tell why reading failed, and with TLS 1.3 a client certificate is refused only then."""

    class Socket(ssl.SSLSocket):
        def recv(self, *arguments: Any) -> bytes:
            try:
                return super().recv(*arguments)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_alert(error)
                raise

    return Socket
