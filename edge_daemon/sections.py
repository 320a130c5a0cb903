"""What all sections of the configuration have in common: their rules, and what names look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

NAME_PATTERN = r"^[A-Za-z0-9_-]+$"
"""Names become MQTT topic levels and Home Assistant ids; both allow this much everywhere."""
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)]
TOPIC_PATTERN = r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"
HOST_PATTERN = r"^[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?$|^[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?$"
"""A host name, an IPv4 or an IPv6 address."""
PATH_PATTERN = "^/[!-~]*$"
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "only letters, digits, '_' and '-' are allowed",
    TOPIC_PATTERN: "only letters, digits, '_' and '-' are allowed, with single '/' between them",
    PATH_PATTERN: "this must be a path that begins with '/', such as /mqtt",
    HOST_PATTERN: "this must be a host name or address, such as localhost or 192.168.1.20, without 'mqtt://' or port",
}


def absolute(example: str) -> AfterValidator:
    """Of paths: only absolute ones are good; an error says what one looks like."""

    def checked(path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError(f"this must be an absolute path, such as {example}")
        return path

    return AfterValidator(checked)


class Section(BaseModel):
    """Unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_word(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("this must be a word or a number; YAML reads yes, no, on and off as true and false")
        return value
