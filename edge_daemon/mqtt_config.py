"""The part of the configuration that is about the broker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from edge_daemon.choices import Protocol
from edge_daemon.sections import HOST_PATTERN, PATH_PATTERN, TOPIC_PATTERN, Name, Section, absolute

PORT, TLS_PORT = 1883, 8883
"""As registered for mqtt and secure-mqtt."""
MAX_LOGIN_BYTES = 65535
"""MQTT gives the length of a name and of a password two bytes."""


class TlsConfig(Section):
    """How the connection to the broker is encrypted, and who has to prove what."""

    enabled: bool = False
    ca_file: Annotated[Path, absolute("/etc/edge-daemon/ca.crt")] | None = None
    """Who has to have signed the broker's certificate; None: one of those whom the system trusts."""
    cert_file: Annotated[Path, absolute("/etc/edge-daemon/client.crt")] | None = None
    key_file: Annotated[Path, absolute("/etc/edge-daemon/client.key")] | None = None
    """None: the key is in cert_file as well."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    verify: bool = True

    @field_validator("min_version", mode="before")
    @classmethod
    def _number_or_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _what_is_set_is_used(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs a cert_file; add cert_file")
        if not self.verify and self.ca_file is not None:
            raise ValueError("with verify: false ca_file is not used; leave one of them out")
        if not self.enabled and self != type(self).model_construct():
            raise ValueError("this works only with an encrypted connection; add enabled: true")
        return self


class MqttConfig(Section):
    """The broker and our place on it."""

    host: Annotated[str, Field(pattern=HOST_PATTERN, max_length=253)] = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = PORT
    username: str | None = None
    password: SecretStr | None = None
    base_topic: Annotated[str, Field(pattern=TOPIC_PATTERN, max_length=200)] = "edge-daemon"
    client_id: Name | None = None
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    tls: TlsConfig = TlsConfig()
    protocol: Protocol = "auto"
    """Of MQTT; `auto`: 5, and 3.1.1 where the broker does not take 5."""
    transport: Literal["tcp", "websockets"] = "tcp"
    websocket_path: Annotated[str, Field(pattern=PATH_PATTERN, max_length=200)] = "/mqtt"
    max_packet_kib: Annotated[int, Field(ge=4, le=131072)] = 1024
    """A message that would be larger is not sent; a broker of MQTT 5 may say that it takes less."""

    @field_validator("protocol", mode="before")
    @classmethod
    def _number_or_text(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="before")
    @classmethod
    def _usual_port(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "port" in values:
            return values
        if values.get("transport") == "websockets":
            raise ValueError("websockets have no standard port (Mosquitto's is often 9001); add port")
        tls = values.get("tls")
        enabled = tls.get("enabled") if isinstance(tls, dict) else isinstance(tls, TlsConfig) and tls.enabled
        return {**values, "port": TLS_PORT} if enabled is True else values

    @field_validator("username", "password")
    @classmethod
    def _can_be_sent(cls, value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_LOGIN_BYTES or re.search("[\ud800-\udfff]", text):
            raise ValueError(f"this must be UTF-8 text of at most {MAX_LOGIN_BYTES} bytes")
        return value

    @model_validator(mode="after")
    def _password_needs_a_name(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("in MQTT a password needs a username; add mqtt.username")
        return self
