"""Takes secrets out of texts, and for a report also what tells who somebody is. Pure, but for `secrets_of`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from edge_daemon import yaml_file
from edge_daemon.errors import ConfigError

HIDDEN = "•••"
LOGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]*(?:@[^\s/@'\"]*)*@")
UNCLEAR = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*[/?#][^\s'\"]*@[^\s'\"]*")
"""An @ behind a / ? or #: what stands before it may be a login, what stands behind it the end of a query."""
QUERY = re.compile(r"(?P<address>[A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"]+)\?[^\s'\"]+")
NAMED = re.compile(
    r"(?P<key>\b[\w-]*(?:passw(?:or)?d|passwd|token|secret|api[_-]?key|authorization)[\w-]*[\"']?\s*[=:]\s*[\"']?)"
    r"(?:(?:bearer|basic)\s+)?[^\s\"',;&}]+",
    re.IGNORECASE,
)
BEARER = re.compile(r"(?P<key>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
TOKEN = re.compile(r"\b(?:hf_|ghp_|github_pat_|sk-)[A-Za-z0-9_-]{8,}")
SECRET_KEYS = ("password", "token", "secret", "credential")
SECRET_VARIABLES = re.compile(r"TOKEN|PASSW|SECRET|API_?KEY|CREDENTIAL(?!S_DIRECTORY)", re.IGNORECASE)
NO_SECRETS = frozenset({"edge-daemon", "edge_daemon", "mosquitto", "root", "localhost"})
"""Names that are no secret even where they are a login's, and without which the report cannot be read."""
SHORT = 4
"""A secret of fewer characters is hidden only where it stands alone: else hardly a word would be left."""
APART = r"(?<![\w-])", r"(?![\w-])"
"""Around a user name: a node may be called porch-pi, and is named in topics."""
HOMES = re.compile(r"(?<![\w/])(?:/home/[^/\s:'\",;]+|/root)(?=[/\s:'\",;.]|$)")
FIRST_USER = 1000


@dataclass(frozen=True)
class Hiding:
    """What is hidden."""

    secrets: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()
    """User names of this machine, hidden in a report."""
    logins: frozenset[str] = frozenset()
    """User names of the configuration."""

    def secrets_in(self, text: str) -> str:
        """A text for the screen of its owner."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = (
                _replaced(text, secret, r"(?<!\w)", r"(?!\w)") if len(secret) < SHORT else text.replace(secret, HIDDEN)
            )
        for name in sorted(self.logins, key=len, reverse=True):
            text = _replaced(text, name, *APART)
        text = UNCLEAR.sub(rf"\g<scheme>{HIDDEN}", text)
        text = LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
        text = QUERY.sub(rf"\g<address>?{HIDDEN}", text)
        text = NAMED.sub(rf"\g<key>{HIDDEN}", text)
        return TOKEN.sub(HIDDEN, BEARER.sub(rf"\g<key>{HIDDEN}", text))

    def all_in(self, text: str) -> str:
        """A text for everybody."""
        text = HOMES.sub("~", self.secrets_in(text))
        for name in sorted(self.people, key=len, reverse=True):
            text = _replaced(text, name, *APART, by="USER")
        return text


def _replaced(text: str, what: str, before: str, behind: str, by: str = HIDDEN) -> str:
    return re.sub(f"{before}{re.escape(what)}{behind}", lambda _: by, text)


def hiding(config_path: Path) -> Hiding:
    """Of a configuration file, which may be wrong, of the environment and of this machine."""
    try:
        document = yaml_file.read(config_path)
    except ConfigError:
        document = None
    secrets = [value for name, value in os.environ.items() if SECRET_VARIABLES.search(name)]
    secrets += [*_values(document.values, (), document.secrets)] if document else []
    logins = [*_logins(document.values)] if document else []
    return Hiding(_spellings(secrets), frozenset(_people()) - NO_SECRETS, _spellings(logins))


def _spellings(values: list[str]) -> frozenset[str]:
    """As they may stand in an address, too."""
    found = {spelt for value in values for spelt in (value, unquote(value), quote(value, safe=""))}
    return frozenset(found - {""} - NO_SECRETS)


def _logins(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        for name, value in values.items():
            if str(name).lower() == "username" and value:
                yield str(value)
            else:
                yield from _logins(value)
    elif isinstance(values, list):
        for value in values:
            yield from _logins(value)


def _values(values: Any, key: tuple[str | int, ...], secrets: frozenset[tuple[str | int, ...]]) -> Iterator[str]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _values(value, (*key, name), secrets)
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _values(value, (*key, number), secrets)
    elif values is not None and key and str(key[-1]).lower() == "url":  # its host and path are shown
        yield from _parts(str(values))
    elif values is not None and (key in secrets or (key and str(key[-1]).lower() in SECRET_KEYS)):
        yield str(values)


def _parts(address: str) -> list[str]:
    """The secrets in an address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    login = address.partition("://")[2].rpartition("@")[0]  # a / in it, not written as %2F, ends parts.netloc
    return [*login.partition(":")[::2], parts.query]


def _people() -> Iterator[str]:
    if os.name == "posix":
        import pwd

        yield from (user.pw_name for user in pwd.getpwall() if user.pw_uid >= FIRST_USER and user.pw_name != "nobody")
    yield from (os.environ[name] for name in ("USER", "LOGNAME", "SUDO_USER") if os.environ.get(name))
