"""What is wrong with a configuration, in words: the place, the key, the value and what would be right.

Knows pydantic's errors and how sections of keys are nested, and nothing of any key.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic_core import ErrorDetails

from edge_daemon.nearest import hint
from edge_daemon.yaml_file import Document, Key

TYPES_IN_WORDS = {
    "dict_type": "this must be names with settings below them",
    "model_type": "this must be keys with values",
    "path_type": "this must be a path",
    "string_type": "this must be text, in quotes if it looks like a number",
    "too_short": "there must be at least one",
    "tuple_type": "this must be a list",
}

CHOOSING = "type"
"""The key that says which of several sections this is."""


@dataclass(frozen=True)
class Wording:
    """The words for what is wrong somewhere below one section."""

    top: Any
    """The section, or a tuple or dict type of sections."""
    patterns: Mapping[str, str]
    """What each pattern of a text allows."""

    def explain(self, detail: ErrorDetails, document: Document) -> tuple[str, str]:
        """What one problem is about (place, key, value), and what is wrong with it."""
        missing = detail["type"] in ("missing", "union_tag_not_found")
        place: Key = ()
        for part in detail["loc"]:
            if not _is_choice(part) or (*place, part) in document.places:
                place = (*place, part)
        if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
            place = (*place, CHOOSING)
        key = _real_key(place, missing, document)
        subject = f"{document.where(key)}: {'.'.join(map(str, key)) or '(top)'}"
        if not missing:
            value = detail["input"][key[-1]] if detail["type"] == "union_tag_invalid" else detail["input"]
            subject += ": value " + ("(hidden)" if self._is_secret(detail["loc"]) else _shown(key, value, document))
        return subject, self.problem(detail, detail["loc"])

    def problem(self, detail: ErrorDetails, key: Key) -> str:
        """What is wrong with the value of a key, without the value."""
        if detail["type"] == "missing":
            return "this key is required"
        if detail["type"] == "union_tag_not_found":
            near = difflib.get_close_matches(CHOOSING, map(str, detail["input"]), 1)
            return "this key is required" + (f"; {near[0]!r} looks like a misspelling of it" if near else "")
        if detail["type"] == "union_tag_invalid":
            known = re.findall(r"\[(.*?)\]", detail["ctx"]["expected_tags"])
            return f"this must be one of {', '.join(known)}{hint(str(detail['input'][CHOOSING]), known)}"
        if detail["type"] == "extra_forbidden":
            return f"unknown key{self._suggestion(key)}"
        if detail["type"] == "string_pattern_mismatch":
            return self.patterns[detail["ctx"]["pattern"]]
        if detail["type"] == "string_type" and isinstance(detail["input"], bool):
            return "this must be text; YAML reads yes, no, on and off as true and false, so put them in quotes"
        message = TYPES_IN_WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        return message[0].lower() + message[1:]

    def _is_secret(self, key: Key) -> bool:
        """Whether the value of a key is never shown."""
        annotation = self._annotation(key)
        return any(hasattr(kind, "get_secret_value") for kind in (annotation, *get_args(annotation)))

    def _annotation(self, key: Key) -> Any:
        """Of what stands under a key."""
        annotation = self.top
        for part in key:
            annotation = _below(annotation, part)
        return annotation

    def _suggestion(self, key: Key) -> str:
        """The known key that was probably meant."""
        known = _keys(self._annotation(key[:-1]))
        return hint(str(key[-1]), known) if known else ""


def _real_key(key: Key, missing: bool, document: Document) -> Key:
    """The part of a pydantic location that stands in the file, and the missing key if one is missing.

    pydantic adds the names of union members to its locations; these are not keys.
    """
    length = len(key)
    while length and key[:length] not in document.places:
        length -= 1
    return key[: length + missing]


def _is_choice(part: str | int) -> bool:
    """Whether a part of a pydantic location is no key: `[key]`, and the names of union members in source_config."""
    return isinstance(part, str) and part.startswith("[")


def _shown(key: Key, value: Any, document: Document) -> str:
    """A value as it may be shown: never a secret, not even behind a misspelt key."""
    words = [str(part).lower() for part in key]
    if any(re.search("pass|pwd|secret", word) or difflib.get_close_matches(word, ["password"]) for word in words):
        return "(hidden)"
    if any(secret[: len(key)] == key for secret in document.secrets):
        return "(hidden)"
    if isinstance(value, dict | list):
        return "(a list)" if isinstance(value, list) else "(keys with values)"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    if re.search(r"@|/.*[?#]", text):  # probably a login, or a query with one in it
        return "(hidden)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _keys(annotation: Any) -> list[str]:
    """The keys of a section, as they stand in the file; none of anything else."""
    return [field.alias or name for name, field in getattr(annotation, "model_fields", {}).items()]


def _below(annotation: Any, part: str | int) -> Any:
    """The annotation of what stands under `part` of a section, a mapping or a list."""
    if _keys(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[-1]
    if _is_choice(part):
        members = (get_args(member) for member in get_args(arguments[0]))
        return next((section for section, tag in members if tag.tag == part), None)
    return arguments[0] if arguments else None
