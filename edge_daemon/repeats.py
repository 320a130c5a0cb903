"""Words that a camera says again: a scene that looks the same is often described the same. Pure.

A repetition is what the broker has already: the same words to the same question as of the picture before, by the same
settings (length, type, unit), in the same session. To a broker that has just taken us, which may have forgotten them or
be another one, they are said once more. A value that is believed at the second picture changes when the words do not:
then the answer is news. Whoever asks gets the whole answer; it is what the next ones may repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from edge_daemon.results import Found, Result, Said

Repetition = Literal["publish", "mark", "suppress"]


class Repeats:
    """Remembers what was said last of every source and task, and in which session it was published."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, tuple[Said, int]]] = {}

    def handled(self, source: str, wish: Repetition, made: Iterable[Result], session: int) -> list[Result]:
        """The results of a picture that are to be published, in their order.

        `unchanged` is set where that is wished for.
        """
        kept = []
        last, self._last[source] = self._last.get(source, {}), {}
        for result in made:
            before, published = last.get(result.task, (None, session))
            repeated = before == result.said and not isinstance(result.said, Found)
            self._last[source][result.task] = result.said, session
            if wish == "publish" or not repeated or result.trigger == "request":
                kept.append(result)
            elif wish == "mark" or published != session:
                kept.append(replace(result, unchanged=True))
        return kept
