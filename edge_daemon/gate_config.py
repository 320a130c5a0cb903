"""The part of the configuration that says when a frame of a camera is worth a caption."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from edge_daemon import areas
from edge_daemon.schedule import DAYS, Span, days_of, minute_of
from edge_daemon.sections import Section
from edge_daemon.units import DAY_S

LONGEST_HEARTBEAT_S = 7 * DAY_S
_AREA = "an area must be [x1, y1, x2, y2], or at least three corners [[x, y], [x, y], [x, y]]"


def _area(value: Any) -> tuple[tuple[float, float], ...]:
    """A polygon: its corners as they are, or the four of a rectangle."""
    if not isinstance(value, list | tuple):
        raise ValueError(_AREA)
    if len(value) == 4 and not any(isinstance(part, list | tuple) for part in value):
        x1, y1, x2, y2 = map(_coordinate, value)
        if x1 >= x2 or y1 >= y2:
            raise ValueError(
                "[x1, y1, x2, y2] begins with the upper left corner: x1 must be less than x2, and y1 less than y2"
            )
        return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    if len(value) < 3 or not all(isinstance(corner, list | tuple) and len(corner) == 2 for corner in value):
        raise ValueError(_AREA)
    return tuple((_coordinate(x), _coordinate(y)) for x, y in value)


def _coordinate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_AREA}, and all of them must be numbers")
    if not 0 <= value <= 1:
        raise ValueError(
            f"{value:g} is outside 0 to 1: coordinates are fractions of the picture; "
            "divide pixels by its width or height"
        )
    return float(value)


Area = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_area), Field(max_length=100)]
"""A rectangle or a polygon, in shares of the picture."""


class SpanConfig(Section):
    """Hours on days of the week, in local time."""

    model_config = ConfigDict(serialize_by_alias=True)

    days: Annotated[tuple[str, ...], Field(min_length=1, max_length=20)] = DAYS
    """Such as `[mon-fri, sun]`; a span over midnight belongs to the day on which it begins."""
    start: Annotated[str, Field(alias="from")] = "00:00"
    end: Annotated[str, Field(alias="to")] = "24:00"
    """The first minute that is no longer in it; earlier than `from`: on the next day."""

    @field_validator("days", mode="before")
    @classmethod
    def _known_days(cls, value: Any) -> Any:
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list | tuple):
            for word in words:
                days_of(word if isinstance(word, str) else repr(word))
        return words

    @field_validator("start", "end", mode="before")
    @classmethod
    def _a_time(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError('write the time in quotes, such as "22:00"; without them YAML reads a number')
        if isinstance(value, str):
            minute_of(value)
        return value

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if self.span.from_min == self.span.to_min:
            raise ValueError(f"from and to are both {self.start}; for the whole day leave both out")
        return self

    @property
    def span(self) -> Span:
        """The same in numbers."""
        days = frozenset().union(*map(days_of, self.days))
        return Span(days, minute_of(self.start), minute_of(self.end))


Spans = Annotated[tuple[SpanConfig, ...], Field(max_length=50)]
Areas = Annotated[tuple[Area, ...], Field(max_length=50)]


class GateConfig(Section):
    """When a frame is worth a caption."""

    change: bool = True
    """Only frames that differ from the last captioned one; false: every frame that is looked at."""
    sensitivity: Annotated[int, Field(ge=1, le=10)] = 5
    """How small a change counts: at 3 a thing of 2 % of the picture (somebody near the camera) that stands out from
    what is behind it, at 5 one of 1 % (somebody across the yard), at 10 one of 0.3 % (a cat there, and many a leaf).
    The steps: CONTRAST and AREA_CELLS in scene_change.py."""
    heartbeat_s: Annotated[float, Field(ge=0, le=LONGEST_HEARTBEAT_S)] = 3600.0
    """A scene that does not change is captioned so often nevertheless; 0: never."""
    cooldown_s: Annotated[float, Field(ge=0, le=DAY_S)] = 10.0
    """At least so long between two captions, from the last published result on; whoever asks need not wait. What
    has changed and is still there afterwards is captioned then; what came and went meanwhile is not."""
    regions: Areas = ()
    """Only changes in these areas count; none: everywhere. Rectangles [x1, y1, x2, y2] or polygons [[x, y], …], in
    shares of the picture from its upper left corner."""
    ignore: Areas = ()
    """Changes in these areas do not count, also where they lie in one of `regions`: a road, a screen, a clock."""
    schedule: Spans = ()
    """When the camera is captioned; empty: always."""
    quiet_hours: Spans = ()
    """When it is not, whatever `schedule` says."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if (self.regions or self.ignore) and not self.cells:
            raise ValueError(
                "regions and ignore leave nothing to look at; the smallest area that counts is 1/32 of the picture "
                "wide and high"
            )
        return self

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells of the thumbnail that count."""
        return areas.cells(self.regions, self.ignore)
