"""The stages of a caption, timed: the same code as in the service, on a picture that is made here.

The answer is cut at the wished number of tokens and never before: random weights end or repeat themselves anywhere.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_daemon.moondream import generate
from edge_daemon.moondream.generate import Sampling
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.parts import VisionPart
from edge_daemon.picture import Decoder, Limits, decode

CAMERA_PX = (1920, 1080)
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    seconds: float
    """From the one before; of the first, from the prefilled prompt: its logits only."""


@dataclass(frozen=True)
class Run:
    """One picture, from its bytes to the last token."""

    decode_s: float
    """The JPEG, and shrinking it."""
    vision_s: float
    """Cropping and the vision encoder."""
    crops: int
    projection_s: float
    prefill_s: float
    """Picture and prompt."""
    tokens: list[Token]

    @property
    def first_s(self) -> float:
        """The first token, behind the prefill."""
        return self.tokens[0].seconds

    @property
    def total_s(self) -> float:
        """All of it."""
        before_s = self.decode_s + self.vision_s + self.projection_s + self.prefill_s
        return before_s + sum(token.seconds for token in self.tokens)


class TimedVision:
    """Stands before the vision encoder and takes the times."""

    def __init__(self, inner: VisionPart) -> None:
        self.inner = inner
        self.crops = 0
        self.projection_s = 0.0

    def encode(self, crops: Tensor) -> Tensor:
        """As VisionPart.encode."""
        self.crops = len(crops)
        return self.inner.encode(crops)

    def project(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        """As VisionPart.project."""
        start_s = time.perf_counter()
        embeddings = self.inner.project(global_features, local_features)
        self.projection_s = time.perf_counter() - start_s
        return embeddings


def run(model: Moondream, jpeg: bytes, decoder: Decoder, length: str, tokens: int) -> Run:
    """Time one picture file with `tokens` tokens of a caption of the given length."""
    start_s = time.perf_counter()
    picture = decode(jpeg, decoder, Limits())
    frame = Image.frombuffer("RGB", (picture.width_px, picture.height_px), picture.pixels, "raw", "RGB", 0, 1)
    decode_s = time.perf_counter() - start_s
    return caption(model, frame, length, tokens, decode_s)


def caption(model: Moondream, frame: Image.Image, length: str, tokens: int, decode_s: float = 0.0) -> Run:
    """The same of a decoded picture."""
    timed = model.vision if isinstance(model.vision, TimedVision) else TimedVision(model.vision)
    model.vision = timed
    encode_s = model.encode(frame)
    said: list[int] = []
    answer = model.caption(length, Sampling(max_tokens=1), said.append)
    first = Token(said[0] if said else model.config.tokens.eos, answer.generate_s)
    all_tokens = [first, *speak(model, first.id, tokens - 1)]
    return Run(decode_s, encode_s - timed.projection_s, timed.crops, timed.projection_s, answer.prefill_s, all_tokens)


@torch.inference_mode()
def speak(model: Moondream, token: int, count: int) -> list[Token]:
    """`count` tokens behind the cache's sequence and `token`, each put behind the one before, whatever they are."""
    said = []
    for _ in range(count):
        start_s = time.perf_counter()
        token = int(generate.prefill(model.text, model.cache, [token]).logits.argmax())
        said.append(Token(token, time.perf_counter() - start_s))
    return said


def camera_picture(seed: int = 0) -> bytes:
    """A JPEG of a camera's size, with as much detail as a photograph: soft colours, and some noise."""
    width, height = CAMERA_PX
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 60, width // 60, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(CAMERA_PX, Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(soft + rng.integers(-8, 9, soft.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
