"""Words that a camera says again: a scene that looks the same is often described the same. Pure.

A value that is believed at the second picture changes when the words do not: then the answer is news.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Repetition = Literal["publish", "mark", "suppress"]
WORDS = ("caption", "answer")
"""Keys of a result that hold what was said."""


class Repeats:
    """Remembers the last words of every source and task."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[Any, ...]] = {}

    def handled(self, source: str, wish: Repetition, documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The documents that are to be published, in their order; `unchanged` is added where that is wished for.

        Whoever asks gets the whole answer; it is what the next ones may repeat.
        """
        kept = []
        for document in documents:
            key, said = (source, document["task"]), tuple(document.get(part) for part in (*WORDS, "value"))
            repeated = any(part in document for part in WORDS) and self._last.get(key) == said
            self._last[key] = said
            if wish == "publish" or not repeated or document.get("trigger") == "request":
                kept.append(document)
            elif wish == "mark":
                kept.append({**document, "unchanged": True})
        return kept
