"""Words that a camera says again: a scene that looks the same is often described the same. Pure.

A repetition is what the broker has already: the same words to the same question as of the picture before, in the same
session. To a broker that has just taken us, which may have forgotten them or be another one, they are said once more.
A value that is believed at the second picture changes when the words do not: then the answer is news. Whoever asks gets
the whole answer; it is what the next ones may repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Repetition = Literal["publish", "mark", "suppress"]
Said = tuple[str, str, Any]
"""A question, its answer and the value that is believed; or a caption."""
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
            words = next((document[key] for key in WORDS if key in document), None)
            said = None if words is None else (document.get("question", ""), words, document.get("value"))
            before, published = last.get(document["task"], (None, session))
            repeated = said is not None and before == said
            if said is not None:
                self._last[source][document["task"]] = said, session
            if wish == "publish" or not repeated or document.get("trigger") == "request":
                kept.append(document)
            elif wish == "mark" or published != session:
                kept.append({**document, "unchanged": True})
        return kept
