"""Moondream: a picture is encoded once, then any number of tasks run on its prefix.

The parts load when first needed: a daemon that only captions never reads the region head. Knows nothing
of the daemon, of files other than its own, or of the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

from edge_daemon.errors import CaptionError, ModelError
from edge_daemon.model_files import TOKENIZER
from edge_daemon.moondream import generate
from edge_daemon.moondream.allocator import give_back
from edge_daemon.moondream.config import ModelConfig, RegionConfig, load_config
from edge_daemon.moondream.generate import Decoded, FinishReason, OnToken, Sampling, Unfinished, ignore
from edge_daemon.moondream.image import crop, reassemble, scale
from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.parts import ManyTextsPart, Parts, RegionPart, Step, TextPart, VisionPart
from edge_daemon.moondream.region import coord_of, size_of
from edge_daemon.moondream.tails import Tails, groups, order_of
from edge_daemon.moondream.tokenizer import Tokenizer
from edge_daemon.moondream.torch_parts import TorchParts
from edge_daemon.moondream.trials import float16_pays

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
    """The prompt through the decoder; the first task of a picture also takes the picture through it."""
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


Found = TypeVar("Found", Box, Point)
Finding: TypeAlias = Generator[Found, None, FinishReason]
"""What is found, one after the other, and at the end why there was no more."""


class Moondream:
    """One checkpoint and one KV cache. Not for use from several threads, but for the cache's cap."""

    def __init__(
        self,
        directory: Path,
        kv_positions: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        int8: bool = False,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Open a model directory; `kv_positions` defaults to the model's context, which it may not exceed.

        `dtype` is what torch computes in, float32 if nothing else is said; the graphs of an `engine: onnx` have
        their own. `int8` has the linear layers computed in 8 bits, by torch on a CPU. The cache is of the dtype that
        is computed in, float16 beside int8 weights (half the memory in the same time), unless `kv_dtype` says
        otherwise. Raises ModelError for an unusable directory, UnavailableError for a device or a library that is not
        there, and BudgetError for a cache that cannot hold a picture.
        """
        self.config: ModelConfig = load_config(directory)
        self.tokenizer = Tokenizer(directory / TOKENIZER)
        if self.tokenizer.size > self.config.text.vocab:
            raise ModelError(
                f"{directory}: tokenizer.json has tokens up to number {self.tokenizer.size - 1}, "
                f"config.json has a vocab of {self.config.text.vocab} only"
            )
        self.parts = open_parts(directory, self.config, device, dtype, int8)
        positions = self.config.text.max_context if kv_positions is None else kv_positions
        kept = kv_dtype or (torch.float16 if int8 else self.parts.dtype)
        as_kept = int8 and kept == torch.float16 and float16_pays()
        self.cache = KVCache(self.config, positions, self.parts.device, kept, self.parts.dtype, as_kept)
        self._image: Tensor | None = None

    @cached_property
    def vision(self) -> VisionPart:
        """The vision encoder and projection."""
        return self.parts.vision()

    @cached_property
    def text(self) -> TextPart:
        """The decoder."""
        return self.parts.text()

    @cached_property
    def region(self) -> RegionPart:
        """The region head. Raises CaptionError when the checkpoint has none."""
        _ = self._region_config
        return self.parts.region()

    @property
    def _region_config(self) -> RegionConfig:
        if self.config.region is None:
            raise CaptionError(f"{self.config.name} cannot find objects: the model has no region head")
        return self.config.region

    @torch.inference_mode()
    def image_embeddings(self, picture: Image.Image) -> Tensor:
        """RGB picture → (1, P, T)."""
        crops = crop(picture, self.config)
        features = self.vision.encode(scale(crops.pixels).to(self.parts.device, self.parts.dtype))
        # put together in float32 on the CPU: not every device can pool, and it is done in a moment
        local = reassemble(features.to("cpu", torch.float32), crops.tiling, self.config)
        return self.vision.project(features[0], local.to(features.device, features.dtype))[None]

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> float:
        """Look at an RGB picture; the tasks that follow are about it. Returns seconds.

        The picture goes through the decoder together with the first task's prompt: all weights are read once less.
        """
        self.look_at(None)  # if anything fails below, no task may answer about the picture before
        start = time.perf_counter()
        self.look_at(self.image_embeddings(picture))
        return time.perf_counter() - start

    def look_at(self, image: Tensor | None) -> None:
        """Have the tasks that follow be about these embeddings, (1, P, T), or about nothing."""
        self.cache.rewind(0)
        self._image = image

    def _prefix(self, image: Tensor) -> Tensor:
        """What is to be put into an empty cache for an image (1, P, T), by the checkpoint's kind of BOS state."""
        text = self.text  # checks the stored BOS as well
        if self.config.bos_state == "stored":
            self.cache.append(self.parts.bos_kv())
            return image
        bos = text.embed(torch.tensor([[self.config.tokens.bos]], device=image.device))
        return torch.cat([bos, image], dim=1)

    def release_vision(self) -> None:
        """Give the vision encoder's memory back; the next picture opens it again."""
        self.__dict__.pop("vision", None)
        give_back()

    def shrink(self, positions: int) -> None:
        """Have a KV cache of so many positions, and forget the picture. Raises BudgetError as the constructor does."""
        self.look_at(None)
        if positions != self.cache.positions or self.cache.touched_bytes:
            self.cache.resize(positions)

    def load(self) -> None:
        """Map what every caption needs now, so that a damaged file is refused before the first picture."""
        _ = self.vision, self.text

    def caption(self, length: str, sampling: Sampling, on_token: OnToken = ignore) -> Answer:
        """Caption the encoded picture. Raises CaptionError for a length without a template."""
        return self._alone(self._prompt_of("caption", length), sampling, on_token)

    def query(self, question: str, sampling: Sampling, on_token: OnToken = ignore) -> Answer:
        """Answer a question about the encoded picture."""
        return self._alone(self._prompt_of("query", question), sampling, on_token)

    def ask(
        self, asked: Sequence[tuple[str, str]], sampling: Sampling, on_token: OnToken = ignore
    ) -> list[Answer | CaptionError]:
        """Captions and answers, ("caption", length) or ("query", question), or the reason why there is none.

        They are the same as those of one after the other, and come in less time: where the decoder can and the cache
        is long enough, all that goes on takes its next token in the same run. `prefill_s` and `generate_s` are what
        those that went together took together.
        """
        done: dict[int, Answer | CaptionError] = {}
        prompts: dict[int, list[int]] = {}
        for number, (kind, text) in enumerate(asked):
            try:
                prompts[number] = self._prompt_of(kind, text)
            except CaptionError as error:
                done[number] = error
        numbers = list(prompts)
        free = self.cache.allowed - self.config.prefix_positions
        for group in groups([len(prompt) for prompt in prompts.values()], sampling.max_tokens, free):
            chosen = [numbers[place] for place in group]
            said = self._together([prompts[number] for number in chosen], sampling, on_token)
            done |= zip(chosen, said, strict=True)
        return [done[number] for number in range(len(asked))]

    def _prompt_of(self, kind: str, text: str) -> list[int]:
        if kind == "query":
            template = self._template("query")
            return template["prefix"] + self.tokenizer.encode(text) + template["suffix"]
        prompt = self.config.templates.caption.get(text)
        if prompt is None:
            known = ", ".join(self.config.templates.caption)
            raise CaptionError(f"{self.config.name} has no {text!r} caption; it has: {known}")
        return prompt

    def _template(self, task: str) -> dict[str, list[int]]:
        template: dict[str, list[int]] | None = getattr(self.config.templates, task)
        if template is None:
            raise CaptionError(f"{self.config.name} was not trained for {task!r}")
        return template

    @property
    def _ends(self) -> frozenset[int]:
        return frozenset(t for t in (self.config.tokens.eos, self.config.tokens.answer) if t is not None)

    @torch.inference_mode()
    def _alone(self, prompt: list[int], sampling: Sampling, on_token: OnToken) -> Answer:
        start_s = time.perf_counter()
        step = self._prompt(prompt)
        prefilled_s = time.perf_counter()
        decoded = generate.decode(self.text, self.cache, step, sampling, self._ends, on_token)
        return self._answer(decoded, prefilled_s - start_s, time.perf_counter() - prefilled_s)

    @torch.inference_mode()
    def _together(self, prompts: list[list[int]], sampling: Sampling, on_token: OnToken) -> list[Answer | CaptionError]:
        """All at once; one after the other where that cannot be, or what fails is one's own."""
        text, start_s = self.text, time.perf_counter()
        if len(prompts) > 1 and isinstance(text, ManyTextsPart):
            with suppress(CaptionError):
                tails = Tails(self.config.prefix_positions, len(prompts))
                steps = self._prompts(text, prompts, tails)
                prefilled_s = time.perf_counter()
                answers = [Unfinished(sampling, self._ends, on_token) for _ in prompts]
                generate.decode_together(text, self.cache, tails, steps, answers)
                taken_s = prefilled_s - start_s, time.perf_counter() - prefilled_s
                return [self._answer(answer.decoded, *taken_s) for answer in answers]
        said: list[Answer | CaptionError] = []
        for prompt in prompts:
            try:
                said.append(self._alone(prompt, sampling, on_token))
            except CaptionError as error:
                said.append(error)
        return said

    def _answer(self, decoded: Decoded, prefill_s: float, generate_s: float) -> Answer:
        text = self.tokenizer.decode(decoded.tokens).strip()
        if decoded.finish_reason == "memory":
            text = text.rpartition(" ")[0].rstrip() or text
        return Answer(text, len(decoded.tokens), decoded.finish_reason, prefill_s, generate_s)

    def _prompt(self, prompt: list[int]) -> Step:
        """Rewind to the picture and prefill.

        Raises CaptionError when there is no picture or the prompt does not fit.
        """
        image = self._rewind(len(prompt))
        embeddings = self.text.embed(torch.tensor([prompt], device=self.cache.device))
        if image is not None:
            embeddings = torch.cat([self._prefix(image), embeddings], dim=1)
        step = self.text.extend(self.cache, embeddings)
        self._image = None
        return step

    def _prompts(self, text: ManyTextsPart, prompts: list[list[int]], tails: Tails) -> list[Step]:
        """The same for several prompts at once."""
        tokens, owners = order_of(prompts)
        image = self._rewind(len(tokens))
        embeddings, shown = text.embed(torch.tensor([tokens], device=self.cache.device)), 0
        if image is not None:
            prefix = self._prefix(image)
            embeddings, shown = torch.cat([prefix, embeddings], dim=1), prefix.shape[1]
        steps = text.extend_tails(self.cache, embeddings, tails.add(owners, shown), len(prompts))
        self._image = None
        return steps

    def _rewind(self, wanted: int) -> Tensor | None:
        """Go back to the picture, for so many positions behind it; its embeddings if it is not in the cache yet."""
        image, prefix = self._image, self.config.prefix_positions
        if image is None and self.cache.length < prefix:
            raise CaptionError("no picture has been encoded")
        positions = self.cache.allowed
        if wanted > positions - prefix:
            raise CaptionError(
                f"the prompt takes {wanted} positions, the KV cache has {positions - prefix} of {positions} left: "
                f"ask something shorter, or allow a larger cache (model.memory_limit_mib, model.kv_positions)"
            )
        self.cache.rewind(0 if image is not None else prefix)
        return image

    def detect(self, target: str) -> list[Box]:
        """Boxes of all `target` in the encoded picture, 50 at most."""
        return list(self.boxes(target))

    def point(self, target: str) -> list[Point]:
        """Centres of all `target` in the encoded picture, 50 at most."""
        return list(self.points(target))

    @torch.inference_mode()
    def boxes(self, target: str) -> Finding[Box]:
        """The same as `detect`, one after the other as they are found; nothing else may be asked meanwhile."""
        step, found = self._find("detect", target), 0
        size_scale = self._region_config.size_scale
        while (ended := self._ended(step, needed=3, found=found)) is None:
            x, step = self._coordinate(step)
            y, step = self._coordinate(step)
            size = size_of(self.region.size_logits(step.hidden), size_scale)
            step = self._feed(self.region.encode_size(size))
            w, h = size[0, 0].tolist()
            found += 1
            yield Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return ended

    @torch.inference_mode()
    def points(self, target: str) -> Finding[Point]:
        """The same as `point`."""
        step, found = self._find("point", target), 0
        while (ended := self._ended(step, needed=2, found=found)) is None:
            x, step = self._coordinate(step)
            y, step = self._coordinate(step)
            found += 1
            yield Point(x, y)
        return ended

    def _find(self, task: str, target: str) -> Step:
        template = self._template(task)
        self.region  # noqa: B018  a checkpoint without the head is told so before any work is done
        return self._prompt(template["prefix"] + self.tokenizer.encode(" " + target) + template["suffix"])

    def _ended(self, step: Step, needed: int, found: int) -> FinishReason | None:
        """Why there is not one more: the model sees none, there are MAX_OBJECTS, or the cache does not hold it."""
        if int(step.logits.argmax()) == self.config.tokens.eos:
            return "eos"
        if found >= MAX_OBJECTS:
            return "length"
        return "memory" if self.cache.free < needed else None

    def _coordinate(self, step: Step) -> tuple[float, Step]:
        """Read one coordinate and feed it back; the coordinate and the next step."""
        coord = coord_of(self.region.coord_logits(step.hidden))
        return float(coord), self._feed(self.region.encode_coord(coord))

    def _feed(self, embedding: Tensor) -> Step:
        return self.text.extend(self.cache, embedding)


def open_parts(
    directory: Path, config: ModelConfig, device: str, dtype: torch.dtype | None, int8: bool = False
) -> Parts:
    """The parts of a model directory, by its engine."""
    if config.engine == "torch":
        return TorchParts(directory, config, torch.device(device), dtype or torch.float32, int8)
    if device != "cpu" or dtype is not None or int8:
        raise ModelError(f"{directory}: ONNX graphs run on the CPU and in the precision that they hold")
    from edge_daemon.moondream.onnx_parts import OnnxParts  # late: it needs a library of the extra `models`

    return OnnxParts(directory, config)


def each(finding: Finding[Found], take: Callable[[Found], object]) -> FinishReason:
    """Hand on what is found, as it is found; why there was no more."""
    while True:
        try:
            one = next(finding)
        except StopIteration as end:
            ended: FinishReason = end.value
            return ended
        take(one)


def clipped(box: Box) -> Box:
    """The part of a box that lies in the picture."""
    return replace(
        box,
        x_min=max(0.0, box.x_min),
        y_min=max(0.0, box.y_min),
        x_max=min(1.0, box.x_max),
        y_max=min(1.0, box.y_max),
    )
