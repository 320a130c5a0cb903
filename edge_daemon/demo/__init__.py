"""The built-in model `demo-shapes`: its scenes, its language, its training and its weights.

It knows coloured shapes on plain backgrounds and nothing else. Importing this package loads neither torch
nor Pillow.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Directory of the model that is shipped (config.json, tokenizer.json, model.safetensors, report.json)."""
