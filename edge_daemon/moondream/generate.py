"""The decoding loop: prefill, then one token after the other until there is a reason to stop.

It is handed a decoder, a cache and token ids; it knows neither pictures nor templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edge_daemon.moondream.kv_cache import KVCache
from edge_daemon.moondream.parts import ManyTextsPart, Step, TextPart
from edge_daemon.moondream.tails import Tails

FinishReason = Literal["eos", "length", "memory", "repetition"]

OnToken = Callable[[int], None]
"""Called with every generated token: how a caller sees that work goes on."""

LONGEST_PERIOD = 24
"""Loops of up to this many tokens are recognised."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    max_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    """Every answer starts from it again, so the same picture and prompt give the same words at any temperature."""


@dataclass(frozen=True)
class Decoded:
    """Token ids of an answer, without its end token, and why it ended."""

    tokens: list[int]
    finish_reason: FinishReason


class Unfinished:
    """An answer that is being generated."""

    def __init__(self, sampling: Sampling, end_tokens: frozenset[int], on_token: OnToken) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "eos"
        """Why it ended, once it has."""
        self._max_tokens = sampling.max_tokens
        self._end_tokens = end_tokens
        self._choose = chooser(sampling)
        self._on_token = on_token

    def takes(self, logits: Tensor) -> bool:
        """Choose the next token from the logits (V); whether the answer goes on."""
        token = self._choose(logits)
        if token in self._end_tokens:
            return False
        self.tokens.append(token)
        self._on_token(token)
        if period := repetition(self.tokens):
            self.tokens = without_repeats(self.tokens, period)
            self.finish_reason = "repetition"
        elif len(self.tokens) >= self._max_tokens:
            self.finish_reason = "length"
        else:
            return True
        return False

    @property
    def decoded(self) -> Decoded:
        """What there is of it."""
        return Decoded(self.tokens, self.finish_reason)


def ignore(token: int) -> None:
    """The OnToken that does nothing."""


def prefill(text: TextPart, cache: KVCache, tokens: list[int]) -> Step:
    """Put token ids behind the cache's sequence."""
    return text.extend(cache, text.embed(torch.tensor([tokens], device=cache.device)))


def decode(
    text: TextPart,
    cache: KVCache,
    step: Step,
    sampling: Sampling,
    end_tokens: frozenset[int],
    on_token: OnToken = ignore,
) -> Decoded:
    """Generate behind a prefilled prompt, whose last step is given.

    Ends at an end token (`eos`), at `max_tokens` (`length`), when the cache is full (`memory`) or when the
    answer runs in circles (`repetition`; the repeats are cut off).
    """
    answer = Unfinished(sampling, end_tokens, on_token)
    while answer.takes(step.logits):
        if not cache.free:
            answer.finish_reason = "memory"
            break
        step = prefill(text, cache, answer.tokens[-1:])
    return answer.decoded


def decode_together(
    text: ManyTextsPart, cache: KVCache, tails: Tails, steps: Sequence[Step], answers: Sequence[Unfinished]
) -> None:
    """The same for several prompts, whose last steps are given: each round is one run with a row for each that goes on.

    A cache that is capped meanwhile ends all that go on.
    """
    going = list(range(len(answers)))
    while going := [n for n, step in zip(going, steps, strict=True) if answers[n].takes(step.logits)]:
        if cache.free < len(going):
            for number in going:
                answers[number].finish_reason = "memory"
            return
        said = torch.tensor([[answers[number].tokens[-1] for number in going]], device=cache.device)
        steps = text.extend_tails(cache, text.embed(said), tails.add(going), len(going))


def chooser(sampling: Sampling) -> Callable[[Tensor], int]:
    """A function from logits (V) to a token.

    `top_p` keeps the smallest set of most likely tokens whose probabilities reach it, and at least one
    (Holtzman et al., arXiv 1904.09751).
    """
    if sampling.temperature <= 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(sampling.seed)

    def sample(logits: Tensor) -> int:
        scaled = (logits - logits.max()) / sampling.temperature  # no overflow, however small the temperature
        probabilities, order = scaled.softmax(-1).sort(descending=True, stable=True)
        reached = probabilities.cumsum(-1)[:-1] >= sampling.top_p
        probabilities[1:][reached] = 0
        return int(order[torch.multinomial(probabilities, 1, generator=generator)])

    return sample


def repetition(tokens: list[int]) -> int:
    """The period of a loop that the sequence has just closed, or 0.

    Three times the same stretch of at least 4 tokens, or 12 tokens of a shorter one, is a loop: no honest
    caption of a few dozen words says the same clause three times running.
    """
    for period in range(1, LONGEST_PERIOD + 1):
        span = max(3 * period, 12)
        if len(tokens) < span:
            continue
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return 0


def without_repeats(tokens: list[int], period: int) -> list[int]:
    """Drop every repeat of the last `period` tokens but the first."""
    end = len(tokens)
    while end >= 2 * period and tokens[end - period : end] == tokens[end - 2 * period : end - period]:
        end -= period
    return tokens[:end]
