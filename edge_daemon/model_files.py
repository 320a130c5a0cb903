"""The names of the files of a model directory. A leaf: the store, which the daemon imports, and the model use it."""

from __future__ import annotations

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = "model.safetensors"
"""Of an `engine: torch` directory."""
GRAPHS = "graphs"
"""Folder of an `engine: onnx` directory with the graphs of its moonfile, as they were published."""
INITIAL_KV = "initial_kv_cache.npy"
"""Keys and values of BOS, beside the folder: (layers, 2, 1, heads, 1, head_dim)."""
