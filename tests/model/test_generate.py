"""Choosing tokens, and the reasons to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from edge_daemon.moondream import generate
from edge_daemon.moondream.generate import (
    LONGEST_PERIOD,
    Decoded,
    Sampling,
    chooser,
    decode,
    repetition,
    without_repeats,
)
from edge_daemon.moondream.model import Moondream
from edge_daemon.moondream.parts import Step
from edge_daemon.moondream.text import attend, masked
from tests.model.checkpoints import text_of

pytestmark = pytest.mark.usefixtures("one_thread")

TinyFactory = Callable[..., Path]
PictureFactory = Callable[..., Image.Image]

some_logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40).map(torch.tensor)


# -- choosing


@given(some_logits)
def test_greedy_is_argmax(logits: Tensor) -> None:
    assert chooser(Sampling())(logits) == int(np.argmax(logits.numpy()))


@given(some_logits, st.integers(0, 2**31))
def test_a_tiny_temperature_takes_one_of_the_most_likely(logits: Tensor, seed: int) -> None:
    temperature = 1e-30
    token = chooser(Sampling(temperature=temperature, seed=seed))(logits)
    assert logits[token] >= logits.max() - 100 * temperature


@given(some_logits, st.integers(0, 2**31))
def test_a_top_p_of_zero_keeps_one_token(logits: Tensor, seed: int) -> None:
    token = chooser(Sampling(temperature=1.0, top_p=0.0, seed=seed))(logits)
    assert logits[token] == logits.max()


@given(some_logits, st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.integers(0, 2**31))
def test_only_the_smallest_set_that_reaches_top_p_is_drawn_from(
    logits: Tensor, top_p: float, temperature: float, seed: int
) -> None:
    kept = nucleus(logits, temperature, top_p)
    choose = chooser(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    assert {choose(logits) for _ in range(20)} <= kept


def nucleus(logits: Tensor, temperature: float, top_p: float) -> set[int]:
    """The set in float64; cases in which rounding could decide are left out."""
    weights = np.exp(logits.numpy().astype(np.float64) / temperature)
    probabilities = weights / weights.sum()
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    kept: set[int] = set()
    reached = 0.0
    for token in order:
        if reached >= top_p:
            break
        kept.add(token)
        reached += probabilities[token]
        assume(abs(reached - top_p) > 1e-5)
    least = min(probabilities[token] for token in kept)
    return kept | {token for token in order if abs(probabilities[token] - least) < 1e-7}  # equal in float32


def test_tokens_are_drawn_by_their_probability() -> None:
    """4 000 draws from four tokens of which top_p = 0.8 keeps three; five standard deviations of room."""
    probabilities = torch.tensor([0.25, 0.05, 0.3, 0.4])
    choose = chooser(Sampling(temperature=1.0, top_p=0.8, seed=7))
    draws = [choose(probabilities.log()) for _ in range(4_000)]
    kept = {0: 0.25 / 0.95, 2: 0.3 / 0.95, 3: 0.4 / 0.95}
    assert set(draws) == kept.keys()
    for token, share in kept.items():
        spread = (share * (1 - share) / len(draws)) ** 0.5
        assert abs(draws.count(token) / len(draws) - share) < 5 * spread


def test_temperature_flattens() -> None:
    """At temperature 2 the odds are the square root of those at 1."""
    logits = torch.tensor([0.0, 4.0])
    choose = chooser(Sampling(temperature=2.0, seed=3))
    share = sum(choose(logits) for _ in range(4_000)) / 4_000
    wanted = 1 / (1 + np.exp(-2.0))
    assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / 4_000) ** 0.5


def test_a_seed_gives_one_sequence() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def draws(seed: int) -> list[int]:
        choose = chooser(Sampling(temperature=1.0, seed=seed))
        torch.manual_seed(torch.randint(1000, ()).item())  # the global generator has no say
        return [choose(logits) for _ in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_choosing_leaves_the_logits_alone() -> None:
    logits = torch.randn(50)
    before = logits.clone()
    chooser(Sampling(temperature=0.7, top_p=0.5))(logits)
    assert torch.equal(logits, before)


# -- masks


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 20), st.integers(0, 1000))
def test_all_attend_to_the_past_and_themselves_and_the_prefix_to_itself(
    new: int, past: int, prefix: int, seed: int
) -> None:
    """A single new position that is inside the prefix sees what there is: the others are not there yet."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 2, new, 4, generator=generator)
    k, v = torch.randn(2, 1, 2, past + new, 4, generator=generator)
    allowed = [
        [key <= past + query or max(key, past + query) < prefix for key in range(past + new)] for query in range(new)
    ]
    assert torch.allclose(attend(q, k, v, past, prefix), masked(torch.tensor(allowed))(q, k, v), atol=1e-6)


# -- repetition

tokens = st.integers(0, 6)


def is_loop(sequence: list[int], period: int) -> bool:
    """Whether the sequence ends in at least three rounds, or 12 tokens, of that period."""
    span = max(3 * period, 12)
    return len(sequence) >= span and all(sequence[-i] == sequence[-i - period] for i in range(1, span - period + 1))


@given(st.lists(tokens, max_size=120))
def test_repetition_is_what_it_is_defined_to_be(sequence: list[int]) -> None:
    periods = [period for period in range(1, LONGEST_PERIOD + 1) if is_loop(sequence, period)]
    assert repetition(sequence) == (periods[0] if periods else 0)


@given(st.lists(st.integers(), unique=True, max_size=150))
def test_no_alarm_without_any_repeat(sequence: list[int]) -> None:
    assert all(repetition(sequence[:n]) == 0 for n in range(len(sequence) + 1))


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=40), st.integers(0, 40))
def test_no_alarm_for_a_clause_said_twice(clause: list[int], start: int) -> None:
    """As in "a red cup on a table and a red cup on a chair"."""
    sequence = clause[:start] + clause + clause
    assume(len(clause) > 5 or start == 0)
    assert all(repetition(sequence[:n]) == 0 for n in range(2 * len(clause) + 1))


@given(st.lists(tokens, max_size=40), st.lists(tokens, min_size=1, max_size=LONGEST_PERIOD))
def test_every_loop_is_found_within_three_rounds_or_twelve_tokens(before: list[int], loop: list[int]) -> None:
    bound = len(before) + max(3 * len(loop), 12)
    endless = before + loop * 40
    found = next((n for n in range(1, bound + 1) if repetition(endless[:n])), None)
    assert found is not None, f"not found within {bound} tokens"


@given(st.lists(st.integers(100, 200), unique=True, max_size=30), st.integers(1, LONGEST_PERIOD))
def test_the_repeats_are_cut_off_and_nothing_else(before: list[int], period: int) -> None:
    loop = list(range(period))
    sequence = before + loop * 20
    end = next(n for n in range(1, len(sequence) + 1) if repetition(sequence[:n]))
    assert repetition(sequence[:end]) == period
    assert without_repeats(sequence[:end], period) == before + loop


# -- the decoding loop, with a decoder that says what it is told


class Script:
    """Stands where the decoder stands: says given tokens one after the other, whatever it hears."""

    def __init__(self, said: list[int]) -> None:
        self.said = said
        self.heard: list[int] = []

    def embed(self, ids: Tensor) -> Tensor:
        self.heard += ids[0].tolist()
        return torch.zeros(1, ids.shape[1], 1)

    def extend(self, cache: Room, x: Tensor) -> Step:
        cache.length += x.shape[1]
        return Step(x[:, -1:], self.logits)

    def logits(self) -> Tensor:
        row = torch.zeros(1, 1, 1000)
        row[0, 0, self.said[len(self.heard)]] = 1
        return row


class Room:
    """A cache that only counts."""

    def __init__(self, free: int) -> None:
        self.device = torch.device("cpu")
        self.length = 5
        self.positions = 5 + free

    @property
    def free(self) -> int:
        return self.positions - self.length


def run(said: list[int], free: int = 1000, max_tokens: int = 1000, ends: frozenset[int] = frozenset({0})) -> Decoded:
    script = Script(said)
    seen: list[int] = []
    first = Step(torch.zeros(1, 1, 1), script.logits)
    decoded = decode(script, Room(free), first, Sampling(max_tokens), ends, seen.append)  # type: ignore[arg-type]
    assert seen[: len(decoded.tokens)] == decoded.tokens
    assert len(script.heard) <= free
    assert not ends & set(seen)
    return decoded


def test_an_end_token_ends_and_is_not_part_of_the_answer() -> None:
    assert run([5, 6, 0, 7]) == Decoded([5, 6], "eos")
    assert run([5, 6, 9, 7, 0], ends=frozenset({0, 9})) == Decoded([5, 6], "eos")
    assert run([0]) == Decoded([], "eos")


def test_max_tokens_ends() -> None:
    assert run([5, 6, 7, 0], max_tokens=2) == Decoded([5, 6], "length")
    assert run([5, 0], max_tokens=1) == Decoded([5], "length")


def test_a_full_cache_ends() -> None:
    """One more token than positions: the last one is said but never heard."""
    assert run([5, 6, 7, 8, 0], free=2) == Decoded([5, 6, 7], "memory")
    assert run([5, 6, 0], free=0) == Decoded([5], "memory")
    assert run([5, 6, 0], free=2) == Decoded([5, 6], "eos")


def test_a_loop_ends_and_is_said_once() -> None:
    assert run([9, 8, *[5, 6, 7, 4] * 9]) == Decoded([9, 8, 5, 6, 7, 4], "repetition")
    assert run([9, *[5] * 50]) == Decoded([9, 5], "repetition")


def test_a_real_decoder_that_loops_is_stopped(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    text_of(model).lm_head.bias[40] += 1000
    model.encode(noise(30, 30))
    answer = model.caption("short", Sampling(max_tokens=60))
    assert (answer.finish_reason, answer.tokens) == ("repetition", 1)
    assert answer.text == model.tokenizer.decode([40]).strip()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_decoder_is_deterministic_by_seed(tiny: TinyFactory, noise: PictureFactory, temperature: float) -> None:
    model = Moondream(tiny())
    model.encode(noise(30, 30))

    def said(seed: int) -> str:
        return model.caption("normal", Sampling(10, temperature, 0.9, seed)).text

    assert said(1) == said(1)
    assert (said(1) == said(2)) is (temperature == 0.0)


def test_prefill_gives_the_last_position(tiny: TinyFactory, noise: PictureFactory) -> None:
    model = Moondream(tiny())
    model.encode(noise(30, 30))
    start = model.config.prefix_positions
    with torch.inference_mode():
        model._prompt([8])
        model.cache.rewind(start)
        step = generate.prefill(model.text, model.cache, [9, 10, 11])
        assert step.hidden.shape == (1, 1, 32)
        assert step.logits.shape == (96,)
        assert model.cache.length == start + 3
        model.cache.rewind(start)
        for token in (9, 10, 11):
            last = generate.prefill(model.text, model.cache, [token])
    assert float((last.hidden - step.hidden).abs().max()) < 1e-5
    assert float((last.logits - step.logits).abs().max()) < 1e-5
