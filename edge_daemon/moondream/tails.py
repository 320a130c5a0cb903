"""Several texts behind one picture in one cache: whose a position is, and how far each text has got.

Their positions stand in the buffer in the order in which they came, one text's between the others'. Each text counts
from the picture on, and sees the picture and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PROMPT_POSITIONS = 128
"""Of all prompts that go through the decoder at once: beside a picture that is a sixth more work space."""


@dataclass(frozen=True)
class Placed:
    """Where new positions belong: `picture` of them to it, the others behind them to texts."""

    positions: Tensor
    """(S), for the rotation."""
    picture: int
    seen: Tensor
    """(S − picture, L): whether a text's new position sees one of all that are written then."""


class Tails:
    """The texts of one batch, numbered from 0."""

    def __init__(self, prefix: int, texts: int) -> None:
        """Behind `prefix` positions that all of them see."""
        self._prefix = prefix
        self._owners: list[int] = []
        self._lengths = [0] * texts

    def add(self, owners: Sequence[int], picture: int = 0) -> Placed:
        """Place one new position for each of `owners`, and before them the last `picture` positions of the prefix."""
        positions = list(range(self._prefix - picture, self._prefix))
        for owner in owners:
            positions.append(self._prefix + self._lengths[owner])
            self._lengths[owner] += 1
        self._owners += owners
        written = torch.tensor(self._owners)
        own = written == torch.tensor(owners)[:, None]
        seen = own.tril(len(written) - len(owners))
        prefix = torch.ones(len(owners), self._prefix, dtype=torch.bool)
        return Placed(torch.tensor(positions), picture, torch.cat([prefix, seen], dim=1))


def order_of(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Tokens of several prompts and whose they are: their last ones at the end, where the next tokens are read."""
    bodies = [(token, owner) for owner, prompt in enumerate(prompts) for token in prompt[:-1]]
    ordered = bodies + [(prompt[-1], owner) for owner, prompt in enumerate(prompts)]
    return [token for token, _ in ordered], [owner for _, owner in ordered]


def groups(lengths: Sequence[int], max_tokens: int, free: int) -> list[list[int]]:
    """Which prompts of these lengths go together, in order: as many as `free` positions hold with whole answers.

    One that would not fit in any company is alone.
    """
    found: list[list[int]] = []
    room = prompts_left = 0
    for number, length in enumerate(lengths):
        needed = length + max_tokens - 1  # the last token is said and never read
        if not found or needed > room or length > prompts_left:
            found.append([])
            room, prompts_left = free, PROMPT_POSITIONS
        found[-1].append(number)
        room -= needed
        prompts_left -= length
    return found
