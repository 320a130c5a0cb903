"""A YAML file as plain values, with the place of every key and the tags `!env`, `!file` and `!credential`.

It knows YAML and nothing of our configuration. Secrets come in by tags, so that the file itself can be
shown to anybody:

    password: !env MQTT_PASSWORD          an environment variable
    password: !file /etc/edge-daemon/pw   the first line of a file (relative to the YAML file)
    password: !credential mqtt-password   a systemd credential (LoadCredential=)

Of YAML's rarer features it knows none: no anchors and aliases (ten lines of them can mean gigabytes), no
merges, no dates. No error repeats a value of the file, because it could be a secret.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_daemon.errors import ConfigError

SCALARS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
CREDENTIALS = "credentials"
"""The folder beside the YAML file from which the unit loads its credentials, and root's commands read them."""
LONGEST_SECRET = 1 << 20
"""Characters; MQTT takes a sixteenth of that."""

Key = tuple[str | int, ...]
"""The way from the top to a value: ("mqtt", "port"), ("sources", "porch", "questions", 0)."""


@dataclass(frozen=True)
class Place:
    """Where a value stands; lines and columns count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """The content of one YAML file."""

    path: Path
    values: Any
    places: dict[Key, Place]
    """Of every key (its own place, not its value's) and list item."""
    secrets: frozenset[Key]
    """Keys whose value came in by a tag and must not be shown."""

    def where(self, key: Key) -> str:
        """`file:line:column` of a key, or of the nearest key above it."""
        while key and key not in self.places:
            key = key[:-1]
        place = self.places.get(key, Place(1, 1))
        return f"{self.path}:{place.line}:{place.column}"


def read(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError with the place for everything that is wrong with it."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, Loader=_Loader)
        reader = _Reader(path)
        values = {} if root is None else reader.value(root, ())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        place = _end_of(content[: error.start].decode("utf-8-sig"))
        raise ConfigError(f"{path}:{place}: not UTF-8 text: {error.reason}") from None
    except yaml.reader.ReaderError as error:
        place = _end_of(text[: error.position])
        raise ConfigError(f"{path}:{place}: a control character (code {error.character}) in the text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {_in_words(error.problem or str(error.context))}") from None
    except RecursionError:
        raise ConfigError(f"{path}:1:1: brackets nested too deeply to be read") from None
    return Document(path, values, reader.places, frozenset(reader.secrets))


def credentials(path: Path) -> tuple[str, ...]:
    """The names behind `!credential` in a file that `read` takes; no secret is looked at."""
    events = yaml.parse(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    found = [event.value for event in events if isinstance(event, yaml.ScalarEvent) and event.tag == "!credential"]
    return tuple(dict.fromkeys(found))


def _end_of(text: str) -> str:
    """`line:column` behind the last character."""
    return f"{text.count(chr(10)) + 1}:{len(text) - text.rfind(chr(10))}"


def _in_words(problem: str) -> str:
    """What the parser found, without a word of the file."""
    if r"'\t'" in problem:
        return "there is a tab here; indent with spaces"
    if "tag handle" in problem:
        return "text that begins with ! must be in quotes"
    return problem


class _Loader(yaml.SafeLoader):
    """YAML with plain values only."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own way to configure a loader
        first: [(tag, pattern) for tag, pattern in resolvers if tag in SCALARS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="&name and *name are not supported; text that begins with & or * must be in quotes",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class _Reader:
    """Turns YAML nodes into values and remembers where they stood."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[Key, Place] = {}
        self.secrets: set[Key] = set()
        self._scalars = _Loader("")
        self._tags = {"!env": self._env, "!file": self._file, "!credential": self._credential}

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.places.setdefault(key, Place(node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in self._tags:
                return self._scalar(node)
            self.secrets.add(key)
            return self._tags[node.tag](str(node.value), node)
        if node.tag not in COLLECTIONS:
            raise self._error(node, f"only a single word may follow a tag ({', '.join(self._tags)})")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag not in SCALARS:
            known = ", ".join(self._tags)
            raise self._error(node, f"unknown tag; known are {known}; text that begins with ! must be in quotes")
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError):
            raise self._error(
                node, "this looks like a number but is not one; to use it as text, put it in quotes"
            ) from None

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            name = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise self._error(key_node, "a key must be a plain word; put it in quotes if it looks like a value")
            if name in values:
                raise self._error(key_node, f"the key {name!r} is here twice")
            self.places[(*key, name)] = Place(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            values[name] = self.value(value_node, (*key, name))
        return values

    def _env(self, name: str, node: yaml.Node) -> str:
        if name not in os.environ:
            where = "in the unit by Environment= or EnvironmentFile=; for a check by hand, any value that fits will do"
            raise self._error(node, f"the environment variable {name!r} is not set ({where})")
        return os.environ[name]

    def _file(self, name: str, node: yaml.Node) -> str:
        return self._first_line(self.path.parent / name, node)

    def _credential(self, name: str, node: yaml.Node) -> str:
        beside = self.path.parent / CREDENTIALS
        directory = os.environ.get("CREDENTIALS_DIRECTORY") or (beside if beside.is_dir() else None)
        if not directory:
            raise self._error(
                node, f"no systemd credential {name!r}: $CREDENTIALS_DIRECTORY is not set (LoadCredential=)"
            )
        return self._first_line(Path(directory) / name, node)

    def _first_line(self, path: Path, node: yaml.Node) -> str:
        try:
            with path.open(encoding="utf-8") as file:  # which may be a device without end
                return file.readline(LONGEST_SECRET).rstrip("\r\n")
        except OSError as error:
            raise self._error(node, f"the secret in {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise self._error(node, f"the secret in {path} is not UTF-8 text") from error
        except ValueError as error:
            raise self._error(node, "the secret's file name has a character that no file name can have") from error

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {text}")
