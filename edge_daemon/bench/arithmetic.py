"""What each stage of a caption must compute and read, from the sizes in `config.json`. No torch, no clock.

A multiplication and an addition are two operations. Counted are the matrix products of linear layers and of attention,
and of them only what the result depends on: no position is attended to that may not be seen, and of the last block
only the keys and values of all positions and the rest of those that are asked for. Norms, GELU and softmax are left
out (less than one percent). Bytes are those of the weight matrices and of the KV cache, each read or written once.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_daemon.moondream.config import ModelConfig

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one weight, by precision. Scales, biases and the layers that int8 keeps in float32 are left out."""


@dataclass(frozen=True)
class Work:
    """What must be done."""

    linear_flops: int
    attention_flops: int
    weights: int
    """Weights read, each once."""
    kv_positions: int = 0
    """Positions of the KV cache that are written or read."""

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(
            self.linear_flops + other.linear_flops,
            self.attention_flops + other.attention_flops,
            self.weights + other.weights,
            self.kv_positions + other.kv_positions,
        )

    @property
    def flops(self) -> int:
        """Operations in all."""
        return self.linear_flops + self.attention_flops

    def bytes(self, weight_bytes: float, kv_position_bytes: int) -> int:
        """Bytes in all, with weights and positions of the KV cache of so many bytes each."""
        return round(self.weights * weight_bytes) + self.kv_positions * kv_position_bytes


def vision(config: ModelConfig, crops: int = 1) -> Work:
    """The vision encoder on so many crops; its weights are read once for all of them."""
    shape = config.vision
    d, rows = shape.dim, crops * shape.patches
    weights = 3 * shape.patch_px**2 * d + shape.layers * (4 * d * d + 2 * d * shape.ff_dim)
    return Work(2 * rows * weights, 4 * rows * shape.patches * d * shape.layers, weights)


def projection(config: ModelConfig) -> Work:
    """The two layers between the vision encoder and the decoder, for one picture."""
    shape = config.vision
    weights = (2 * shape.dim + config.text.dim) * shape.projection_dim
    return Work(2 * shape.patches * weights, 0, weights)


def decoder(config: ModelConfig, past: int, new: int, asked: int = 1) -> Work:
    """The blocks of the decoder on `new` positions behind `past` ones; the last `asked` of them are asked for."""
    text = config.text
    t, full = text.dim, text.layers - 1
    block, keys_and_values = 4 * t * t + 2 * t * text.ff_dim, 2 * t * t
    linear = full * new * block + new * keys_and_values + asked * (block - keys_and_values)
    prefix = config.prefix_positions if config.mask == "prefix" else 0
    pairs = _pairs(past, new, prefix)
    last_pairs = _pairs(past + new - asked, asked, prefix)
    return Work(2 * linear, 4 * t * (full * pairs + last_pairs), text.layers * block, past + new)


def _pairs(past: int, new: int, prefix: int) -> int:
    """Pairs of a new position and one that it sees: those up to itself, or the whole prefix if it is in it."""
    return sum(max(position + 1, prefix if position < prefix else 0) for position in range(past, past + new))


def head(config: ModelConfig) -> Work:
    """The logits of one position."""
    weights = config.text.dim * config.text.vocab
    return Work(2 * weights, 0, weights)


def prefill(config: ModelConfig, prompt: int) -> Work:
    """Picture and prompt through the decoder; a stored BOS is there already."""
    past = 1 if config.bos_state == "stored" else 0
    return decoder(config, past, config.prefix_positions - past + prompt)


def token(config: ModelConfig, past: int) -> Work:
    """One token behind `past` positions, and what comes next."""
    return decoder(config, past, 1) + head(config)
