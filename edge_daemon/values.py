"""The values of a source's answers: typed, and believed when enough of its pictures say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_daemon.answers import Settling, Value, value_of
from edge_daemon.messages import FinishReason
from edge_daemon.results import Answered, Result
from edge_daemon.source_config import Question


class Values:
    """What all sources were believed to say so far. It begins anew with the daemon, and with a changed question."""

    def __init__(self) -> None:
        self._settlings: dict[tuple[str, str], tuple[Question, Settling]] = {}
        self.doubted: set[str] = set()
        """Sources whose last picture said something that is not believed yet: one more picture may settle it."""

    def typed(self, source: str, questions: Sequence[Question], made: Sequence[Result]) -> list[Result]:
        """The results of one picture, with the answers' value, type and unit by the questions of its source.

        To be called once for each picture: it counts.
        """
        asked = {question.id: question for question in questions}
        self.doubted.discard(source)
        return [
            replace(result, said=self._typed(source, asked[result.task], result.said, result.finish_reason))
            if isinstance(result.said, Answered) and result.task in asked
            else result
            for result in made
        ]

    def _typed(self, source: str, question: Question, answered: Answered, finish_reason: FinishReason) -> Answered:
        known, settling = self._settlings.get((source, question.id), (None, Settling(question.for_frames)))
        if known != question:
            settling = Settling(question.for_frames)
        self._settlings[source, question.id] = question, settling
        said = _value(question, answered.answer, finish_reason)
        believed = settling.settle(said)
        if believed != said:
            self.doubted.add(source)
        return replace(answered, value=believed, type=question.type, unit=question.unit)


def _value(question: Question, words: str, finish_reason: FinishReason) -> Value:
    """Of an answer that was cut, the last word may be part of another one: "1" of "12"."""
    if question.type != "text" and finish_reason in ("length", "memory"):
        words = words.rpartition(" ")[0]
    return value_of(words, question.type, question.choices)
