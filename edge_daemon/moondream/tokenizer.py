"""Text to token ids and back, by the checkpoint's own `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from edge_daemon.errors import ModelError


class Tokenizer:
    """A thin cover over Hugging Face tokenizers: no special tokens are ever added."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`. Raises ModelError when it is missing or damaged."""
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for a damaged file
            raise ModelError(f"{path}: {error}") from error

    @property
    def size(self) -> int:
        """Ids that it may give, special ones included: one more than the highest."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; half a character, as an argument that is no UTF-8 has, is a question mark."""
        whole = text.encode("utf-8", "replace").decode()
        return list(self._tokenizer.encode(whole, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of `tokens`, exactly; the caller strips."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
