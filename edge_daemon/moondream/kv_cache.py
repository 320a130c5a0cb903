"""The KV cache: one buffer of a chosen number of positions, allocated once and reused for every picture.

An image prefix is written once; every task on it rewinds to the end of the prefix and writes over what the
task before left behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_daemon.errors import BudgetError
from edge_daemon.moondream.config import ModelConfig


class KVCache:
    """Keys and values of all layers, shape (layers, 2, heads, positions, head_dim)."""

    def __init__(
        self,
        config: ModelConfig,
        positions: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        read_dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate `positions` positions, on the CPU if nothing else is said.

        `update` returns what is kept in `dtype` in `read_dtype`, if that is another: in float16, read in float32, the
        cache takes half the memory, and a token some more time (tests/bench).

        Raises BudgetError when they do not hold the image prefix and one token, or exceed the context.
        """
        if not config.prefix_positions < positions <= config.text.max_context:
            raise BudgetError(
                f"a KV cache of {positions} positions is not usable: {config.name} needs more than "
                f"{config.prefix_positions} for the picture and has {config.text.max_context} at most"
            )
        text = config.text
        self.positions = positions
        self.length = 0
        shape = (text.layers, 2, text.heads, positions, text.head_dim)
        wide = read_dtype is not None and read_dtype != dtype
        self._wide = torch.empty(shape[1:], dtype=read_dtype, device=device) if wide else None
        self._kv = torch.empty(shape, dtype=dtype, device=device)  # what is not yet written costs no memory

    @property
    def device(self) -> torch.device:
        """Where the buffer lies."""
        return self._kv.device

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer, and of one layer of it in the type that it is read in, if that is another."""
        return self._kv.nbytes + (self._wide.nbytes if self._wide is not None else 0)

    @property
    def free(self) -> int:
        """Positions that can still be written."""
        return self.positions - self.length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (1, heads, n, head_dim) keys and values behind `length`; return all up to and with them.

        The returned views have shape (1, heads, length + n, head_dim) and are good until the next call. `length`
        itself moves with `advance`, once all layers have written. Raises IndexError when n positions are not free.
        """
        end = self.length + k.shape[2]
        if end > self.positions:  # a slice past the end would be cut short in silence
            raise IndexError(f"{k.shape[2]} positions do not fit: {self.free} of {self.positions} are free")
        keys, values = self._kv[layer]
        keys[:, self.length : end] = k[0]
        values[:, self.length : end] = v[0]
        if self._wide is not None:
            keys, values = self._wide
            self._wide[:, :, :end] = self._kv[layer, :, :, :end]
        return keys[None, :, :end], values[None, :, :end]

    def advance(self, n: int) -> None:
        """Declare the n positions written by all layers part of the sequence."""
        self.length += n

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` positions. Raises IndexError when there are fewer."""
        if not 0 <= length <= self.length:
            raise IndexError(f"cannot rewind to {length} positions: only {self.length} are written")
        self.length = length

    def filled(self) -> Tensor:
        """The sequence so far, a view of shape (layers, 2, heads, length, head_dim)."""
        return self._kv[:, :, :, : self.length]

    def append(self, kv: Tensor) -> None:
        """Put ready-made positions behind the sequence: `kv` has shape (layers, 2, heads, n, head_dim).

        Raises IndexError when n positions are not free.
        """
        end = self.length + kv.shape[3]
        if end > self.positions:
            raise IndexError(f"{kv.shape[3]} positions do not fit: {self.free} of {self.positions} are free")
        self._kv[:, :, :, self.length : end] = kv
        self.length = end
