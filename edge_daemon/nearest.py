"""What was probably meant by a word that is not known. A leaf."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def hint(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the known word that looks like it, or all that are known."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
