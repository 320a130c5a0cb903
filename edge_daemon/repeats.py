"""Words that a camera says again: a scene that looks the same is often described the same. Pure.

A repetition is what the broker has already: the same words to the same question as of the picture before, in the same
session. To a broker that has just taken us, which may have forgotten them or be another one, they are said once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Repetition = Literal["publish", "mark", "suppress"]
Said = tuple[str, str]
"""A question and its answer, or a caption."""
WORDS = ("caption", "answer")
"""Keys of a result that hold what was said."""


class Repeats:
    """Remembers the last words of every source and task, and in which session they were published."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, tuple[Said, int]]] = {}

    def handled(
        self, source: str, wish: Repetition, documents: Iterable[dict[str, Any]], session: int
    ) -> list[dict[str, Any]]:
        """The documents of a picture that are to be published, in their order.

        `unchanged` is added where that is wished for.
        """
        kept = []
        last, self._last[source] = self._last.get(source, {}), {}
        for document in documents:
            said = next(((document.get("question", ""), document[key]) for key in WORDS if key in document), None)
            before, published = last.get(document["task"], (None, session))
            repeated = said is not None and before == said
            if said is not None:
                self._last[source][document["task"]] = said, session
            if not (repeated and wish == "suppress" and published == session):
                kept.append({**document, "unchanged": True} if repeated and wish != "publish" else document)
        return kept
