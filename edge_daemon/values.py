"""The values of a source's answers: typed, and believed when enough of its pictures say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_daemon.answers import Settling, Value, value_of
from edge_daemon.source_config import Question


class Values:
    """What all sources were believed to say so far. It begins anew with the daemon, and with a changed question."""

    def __init__(self) -> None:
        self._settlings: dict[tuple[str, str], tuple[Question, Settling]] = {}
        self.doubted: set[str] = set()
        """Sources whose last picture said something that is not believed yet: one more picture may settle it."""

    def typed(self, source: str, questions: Sequence[Question], made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The documents of one picture, with `value`, `type` and `unit` by the questions of its source.

        To be called once for each picture: it counts.
        """
        asked = {question.id: question for question in questions}
        self.doubted.discard(source)
        return [
            self._typed(source, asked[document["task"]], document)
            if "answer" in document and document["task"] in asked
            else document
            for document in made
        ]

    def _typed(self, source: str, question: Question, document: dict[str, Any]) -> dict[str, Any]:
        known, settling = self._settlings.get((source, question.id), (None, Settling(question.for_frames)))
        if known != question:
            settling = Settling(question.for_frames)
        self._settlings[source, question.id] = question, settling
        unit = {"unit": question.unit} if question.unit is not None else {}
        said = _value(question, document)
        believed = settling.settle(said)
        if believed != said:
            self.doubted.add(source)
        return {**document, "value": believed, "type": question.type, **unit}


def _value(question: Question, document: dict[str, Any]) -> Value:
    """Of an answer that was cut, the last word may be part of another one: "1" of "12"."""
    words: str = document["answer"]
    if question.type != "text" and document["finish_reason"] in ("length", "memory"):
        words = words.rpartition(" ")[0]
    return value_of(words, question.type, question.choices)
