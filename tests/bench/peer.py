"""The peer's side, run by its own Python: moondream 0.0.6 on a moonfile. `python -m tests.bench.peer FILE`."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import moondream  # type: ignore[import-not-found]  # it is in an environment of its own
from PIL import Image

from tests.bench.turns import Turn, serve


class Watched:
    """Stands before the client's tokenizer or its decoder, and remembers what passes and when it began."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.begun_s: list[float] = []
        self.said: list[int] = []

    def run(self, names: list[str], inputs: dict[str, Any]) -> Any:
        self.begun_s.append(time.perf_counter())
        return self.inner.run(names, inputs)

    def encode(self, text: str) -> Any:
        return self.inner.encode(text)

    def decode(self, tokens: list[Any]) -> str:
        self.said += map(int, tokens)
        return str(self.inner.decode(tokens))


def main() -> None:
    client = moondream.vl(model=sys.argv[1])
    decoder, tokenizer = Watched(client.text_decoder), Watched(client.tokenizer)
    client.text_decoder, client.tokenizer = decoder, tokenizer

    def caption(path: Path, count: int) -> Turn:
        decoder.begun_s, tokenizer.said = [], []
        start_s = time.perf_counter()
        encoded = client.encode_image(Image.open(path))
        words = client.caption(encoded, length="short", stream=True, settings={"max_tokens": count})["caption"]
        came_s = [time.perf_counter() for _ in words]
        gaps_s = [after - before for before, after in pairwise(came_s)]
        return Turn(decoder.begun_s[0] - start_s, came_s[0] - decoder.begun_s[0], gaps_s, tokenizer.said)

    serve({"client": f"moondream {version('moondream')}"}, caption)


if __name__ == "__main__":
    main()
