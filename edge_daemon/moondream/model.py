"""Moondream: a picture is encoded once, then any number of tasks run on its prefix.

The parts load when first needed: a daemon that only captions never reads the region head. Knows nothing
of the daemon, of files other than its own, or of the network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from edge_daemon.errors import CaptionError, ModelError
from edge_daemon.moondream import generate
from edge_daemon.moondream.config import ModelConfig, load_config
from edge_daemon.moondream.generate import FinishReason, OnToken, Sampling, ignore
from edge_daemon.moondream.image import crop, reassemble, scale
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.region import Region
from edge_daemon.moondream.text import Text
from edge_daemon.moondream.tokenizer import Tokenizer
from edge_daemon.moondream.vision import Vision
from edge_daemon.moondream.weights import Weights

BOS_KV = "text.bos_kv"
"""Tensor (layers, 2, heads, 1, head_dim) of a checkpoint with `bos_state: stored`."""
MAX_OBJECTS = 50
"""Upstream's and the moondream client's limit."""


@dataclass(frozen=True)
class Answer:
    """A caption or an answer."""

    text: str
    tokens: int
    """Generated tokens, the end token not counted."""
    finish_reason: FinishReason
    prefill_s: float
    generate_s: float


@dataclass(frozen=True)
class Box:
    """A found object; relative coordinates, 0…1, of the whole picture."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Point:
    """A found point; relative coordinates, 0…1, of the whole picture."""

    x: float
    y: float


@dataclass(frozen=True)
class EncodeTimes:
    """What encoding a picture took."""

    vision_s: float
    """Cropping, vision encoder and projection."""
    prefill_s: float
    """The image prefix through the decoder."""


class Moondream:
    """One checkpoint and one KV cache. Not for use from several threads."""

    def __init__(self, directory: Path, kv_positions: int | None = None) -> None:
        """Open a model directory; `kv_positions` defaults to the model's context, which it may not exceed.

        Raises ModelError for an unusable directory and BudgetError for a cache that cannot hold a picture.
        """
        self.config: ModelConfig = load_config(directory / "config.json")
        self.tokenizer = Tokenizer(directory / "tokenizer.json")
        if self.tokenizer.size > self.config.text.vocab:
            raise ModelError(
                f"{directory}: tokenizer.json has {self.tokenizer.size} tokens, "
                f"config.json has a vocab of {self.config.text.vocab} only"
            )
        self.weights = Weights(directory)
        self.weights.refuse_others(frozenset({"vision", "text"} | ({"region"} if self.config.region else set())))
        self.cache = KVCache(self.config, self.config.text.max_context if kv_positions is None else kv_positions)

    @cached_property
    def vision(self) -> Vision:
        """The vision encoder and projection."""
        return self.weights.part("vision", lambda: Vision(self.config.vision, self.config.text.dim))

    @cached_property
    def text(self) -> Text:
        """The decoder."""
        text = self.config.text
        stored = {BOS_KV: (text.layers, 2, text.heads, 1, text.head_dim)}
        extra = stored if self.config.bos_state == "stored" else None
        return self.weights.part("text", lambda: Text(text), extra)

    @cached_property
    def region(self) -> Region:
        """The region head. Raises CaptionError when the checkpoint has none."""
        region = self.config.region
        if region is None:
            raise CaptionError(f"{self.config.name} cannot find objects: the model has no region head")
        return self.weights.part("region", lambda: Region(region, self.config.text.dim))

    @torch.inference_mode()
    def image_embeddings(self, picture: Image.Image) -> Tensor:
        """RGB picture → (1, P, T)."""
        crops = crop(picture, self.config)
        features = self.vision.encode(scale(crops.pixels))
        return self.vision.project(features[0], reassemble(features, crops.tiling, self.config))[None]

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> EncodeTimes:
        """Put an RGB picture into the cache; the tasks that follow are about it."""
        self.cache.rewind(0)  # if anything fails below, no task may answer about the picture before
        start = time.perf_counter()
        embeddings = self.image_embeddings(picture)
        encoded = time.perf_counter()
        self._fill_prefix(embeddings)
        return EncodeTimes(encoded - start, time.perf_counter() - encoded)

    def _fill_prefix(self, embeddings: Tensor) -> None:
        """BOS and the picture, by the checkpoint's mask and kind of BOS state."""
        text = self.text  # checks the stored BOS as well
        if self.config.bos_state == "stored":
            self.cache.store(self.weights.tensor(BOS_KV))
        else:
            bos = text.embed(torch.tensor([[self.config.tokens.bos]]))
            embeddings = torch.cat([bos, embeddings], dim=1)
        new, past = embeddings.shape[1], self.cache.length
        mask = None if self.config.mask == "prefix" else generate.causal_mask(new, past)
        generate.extend(text, self.cache, embeddings, mask)

    def load(self) -> None:
        """Map what every caption needs now, so that a damaged file is refused before the first picture."""
        _ = self.vision, self.text

    def caption(self, length: str, sampling: Sampling, on_token: OnToken = ignore) -> Answer:
        """Caption the encoded picture. Raises CaptionError for a length without a template."""
        template = self.config.templates.caption.get(length)
        if template is None:
            known = ", ".join(self.config.templates.caption)
            raise CaptionError(f"{self.config.name} has no {length!r} caption; it has: {known}")
        return self._answer(template, sampling, on_token)

    def query(self, question: str, sampling: Sampling, on_token: OnToken = ignore) -> Answer:
        """Answer a question about the encoded picture."""
        template = self._template("query")
        prompt = template["prefix"] + self.tokenizer.encode(question) + template["suffix"]
        return self._answer(prompt, sampling, on_token)

    def _template(self, task: str) -> dict[str, list[int]]:
        template: dict[str, list[int]] | None = getattr(self.config.templates, task)
        if template is None:
            raise CaptionError(f"{self.config.name} was not trained for {task!r}")
        return template

    @torch.inference_mode()
    def _answer(self, prompt: list[int], sampling: Sampling, on_token: OnToken) -> Answer:
        start = time.perf_counter()
        hidden = self._prompt(prompt)
        prefilled = time.perf_counter()
        ends = frozenset(t for t in (self.config.tokens.eos, self.config.tokens.answer) if t is not None)
        decoded = generate.decode(self.text, self.cache, hidden, sampling, ends, on_token)
        text = self.tokenizer.decode(decoded.tokens).strip()
        if decoded.finish_reason == "memory":
            text = text.rpartition(" ")[0].rstrip() or text
        done = time.perf_counter()
        return Answer(text, len(decoded.tokens), decoded.finish_reason, prefilled - start, done - prefilled)

    def _prompt(self, prompt: list[int]) -> Tensor:
        """Rewind to the picture and prefill; hidden state (1, 1, T).

        Raises CaptionError when there is no picture or the prompt does not fit.
        """
        if self.cache.length < self.config.prefix_positions:
            raise CaptionError("no picture has been encoded")
        self.cache.rewind(self.config.prefix_positions)
        if len(prompt) > self.cache.free:
            raise CaptionError(
                f"the prompt takes {len(prompt)} positions, the KV cache has {self.cache.free} of "
                f"{self.cache.positions} left: ask something shorter or allow a larger cache"
            )
        return generate.prefill(self.text, self.cache, prompt)

    @torch.inference_mode()
    def detect(self, target: str) -> list[Box]:
        """Boxes of all `target` in the encoded picture, 50 at most."""
        boxes: list[Box] = []
        hidden = self._find("detect", target)
        while self._more(hidden, needed=3, found=len(boxes)):
            x, hidden = self._coordinate(hidden)
            y, hidden = self._coordinate(hidden)
            size = self.region.size_of(self.region.size_logits(hidden).argmax(-1).to(torch.float32))
            hidden = self._feed(self.region.encode_size(size))
            w, h = size[0, 0].tolist()
            boxes.append(Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        return boxes

    @torch.inference_mode()
    def point(self, target: str) -> list[Point]:
        """Centres of all `target` in the encoded picture, 50 at most."""
        points: list[Point] = []
        hidden = self._find("point", target)
        while self._more(hidden, needed=2, found=len(points)):
            x, hidden = self._coordinate(hidden)
            y, hidden = self._coordinate(hidden)
            points.append(Point(x, y))
        return points

    def _find(self, task: str, target: str) -> Tensor:
        template = self._template(task)
        self.region  # noqa: B018  a checkpoint without the head is told so before any work is done
        return self._prompt(template["prefix"] + self.tokenizer.encode(" " + target) + template["suffix"])

    def _more(self, hidden: Tensor, needed: int, found: int) -> bool:
        """Whether the model sees one more and the cache holds it."""
        if found >= MAX_OBJECTS or self.cache.free < needed:
            return False
        return int(self.text.logits(hidden)[0, -1].argmax()) != self.config.tokens.eos

    def _coordinate(self, hidden: Tensor) -> tuple[float, Tensor]:
        """Read one coordinate from (1, 1, T) and feed it back; the coordinate and the next hidden state."""
        coord = self.region.coord_of(self.region.coord_logits(hidden).argmax(-1, keepdim=True).to(torch.float32))
        return float(coord), self._feed(self.region.encode_coord(coord))

    def _feed(self, embedding: Tensor) -> Tensor:
        return generate.extend(self.text, self.cache, embedding, None)


def clipped(box: Box) -> Box:
    """The part of a box that lies in the picture."""
    return replace(
        box,
        x_min=max(0.0, box.x_min),
        y_min=max(0.0, box.y_min),
        x_max=min(1.0, box.x_max),
        y_max=min(1.0, box.y_max),
    )
