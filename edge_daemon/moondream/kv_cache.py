"""The KV cache: one buffer of a chosen number of positions, reused for every picture.

An image prefix is written once; every task on it rewinds to the end of the prefix and writes over what the
task before left behind. When memory goes, the cache is capped at once, from any thread, and its buffer becomes shorter
when nobody needs what is in it.
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
        single_as_kept: bool = False,
    ) -> None:
        """Allocate `positions` positions, on the CPU if nothing else is said.

        `update` returns what is kept in `dtype` in `read_dtype`, if that is another: in float16, read in float32, the
        cache takes half the memory, and a token some more time (tests/bench). With `single_as_kept` it does so for
        several new positions only, and returns `dtype` for one.

        Raises BudgetError when they do not hold the image prefix and one token, or exceed the context.
        """
        self.cap = positions
        """Most positions that may be written. Any thread may set it; after construction this class only reads it."""
        self._config = config
        self._dtype, self._read_dtype, self._device = dtype, read_dtype, device
        self._widened_from = 2 if single_as_kept else 1
        self.resize(positions)

    def resize(self, positions: int) -> None:
        """Have another number of positions, and nothing in them. The old buffer's memory is given back first.

        What is not yet written costs no memory. Raises BudgetError as the constructor does.
        """
        config, text = self._config, self._config.text
        if not config.prefix_positions < positions <= text.max_context:
            raise BudgetError(
                f"a KV cache of {positions} positions is not usable: {config.name} needs more than "
                f"{config.prefix_positions} for the picture and has {text.max_context} at most"
            )
        self.positions = positions
        self.length = self._deepest = 0
        shape = (text.layers, 2, text.heads, positions, text.head_dim)
        wide = self._read_dtype is not None and self._read_dtype != self._dtype
        self._kv = self._packed = torch.empty(0, dtype=self._dtype, device=self._device)
        self._wide = torch.empty(shape[1:], dtype=self._read_dtype, device=self._device) if wide else None
        self._kv = torch.empty(shape, dtype=self._dtype, device=self._device)

    @property
    def device(self) -> torch.device:
        """Where the buffer lies."""
        return self._kv.device

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer, and of one layer of it in the type that it is read in, if that is another."""
        return self._kv.nbytes + (self._wide.nbytes if self._wide is not None else 0)

    @property
    def allowed(self) -> int:
        """Positions that may be written in all."""
        return min(self.positions, self.cap)

    @property
    def free(self) -> int:
        """Positions that may still be written; none when the cap came below what is written."""
        return max(0, self.allowed - self.length)

    @property
    def touched_bytes(self) -> int:
        """What of the buffers was ever written, and is therefore in memory; that of `packed` with them."""
        return (self.size_bytes + self._packed.nbytes) * self._deepest // self.positions

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
        if self._wide is not None and k.shape[2] >= self._widened_from:
            keys, values = self._wide
            self._wide[:, :, :end] = self._kv[layer, :, :, :end]
        self._deepest = max(self._deepest, end)
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

    def packed(self) -> Tensor:
        """The sequence so far without gaps, in the shape of `filled`: good until the next call.

        The room for it is kept, as large as the cache may become: tens of megabytes that are mapped and unmapped with
        every token cost more than to copy them.
        """
        filled = self.filled()
        if self._packed.numel() < filled.numel():
            self._packed = torch.empty(self._kv.numel(), dtype=self._kv.dtype, device=self._kv.device)
        return self._packed[: filled.numel()].view(filled.shape).copy_(filled)

    def append(self, kv: Tensor) -> None:
        """Put ready-made positions behind the sequence: `kv` has shape (layers, 2, heads, n, head_dim).

        Raises IndexError when n positions are not free.
        """
        end = self.length + kv.shape[3]
        if end > self.positions:
            raise IndexError(f"{kv.shape[3]} positions do not fit: {self.free} of {self.positions} are free")
        self._kv[:, :, :, self.length : end] = kv
        self._deepest = max(self._deepest, end)
        self.length = end
