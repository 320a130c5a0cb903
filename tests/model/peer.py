"""Run by the Python of the peer, moondream 0.0.6: what the client says about pictures. Request and answers are JSON.

stdin: {"model", "max_tokens", "logits", "pictures": [{"path", "question", "target"}]}; `logits` names a file for the
first logits of every picture's short caption, (pictures, V). stdout: one object a picture, token ids and boxes.
The client gives text only, so its tokenizer and its decoder are listened to.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import moondream  # type: ignore[import-not-found]  # it is in an environment of its own
import numpy as np
from PIL import Image


class Listening:
    """Stands before the client's tokenizer or one of its sessions and remembers what passes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.said: list[int] = []
        self.heard: list[int] = []
        self.logits: list[Any] = []

    def encode(self, text: str) -> Any:
        encoding = self.inner.encode(text)
        self.heard = list(encoding.ids)
        return encoding

    def decode(self, tokens: list[Any]) -> str:
        self.said += map(int, tokens)
        return str(self.inner.decode(tokens))

    def run(self, names: list[str], inputs: dict[str, Any]) -> Any:
        outputs = self.inner.run(names, inputs)
        if "logits" in names:
            self.logits.append(outputs[names.index("logits")][0].astype(np.float32))
        return outputs


def look(client: Any, picture: dict[str, str], settings: dict[str, int]) -> tuple[dict[str, Any], Any]:
    """Everything that is asked about one picture, and the first logits of its short caption."""
    client.tokenizer, client.text_decoder = Listening(client.tokenizer), Listening(client.text_decoder)
    tokenizer, decoder = client.tokenizer, client.text_decoder
    answers: dict[str, Any] = {}
    encoded = client.encode_image(Image.open(picture["path"]))
    for length in ("short", "normal"):
        client.caption(encoded, length=length, settings=settings)
        answers[length], tokenizer.said = tokenizer.said, []
    client.query(encoded, picture["question"], settings=settings)
    answers["answer"], answers["question"] = tokenizer.said, tokenizer.heard
    first = decoder.logits[0]
    if settings["max_tokens"] > 1:
        answers["boxes"] = client.detect(encoded, picture["target"])["objects"]
        answers["target"] = tokenizer.heard
    client.tokenizer, client.text_decoder = tokenizer.inner, decoder.inner
    return answers, first


def main() -> None:
    request = json.load(sys.stdin)
    client = moondream.vl(model=request["model"])
    settings = {"max_tokens": request["max_tokens"]}
    answers = [look(client, picture, settings) for picture in request["pictures"]]
    np.save(request["logits"], np.stack([first for _, first in answers]))
    json.dump([answer for answer, _ in answers], sys.stdout)


if __name__ == "__main__":
    main()
