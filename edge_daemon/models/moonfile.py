"""A moonfile becomes a model directory: its graphs' weights, dequantized, in one `model.safetensors` of float32.

One graph is in memory at a time. Weights are found by structure (`recover`), the rest is measured (`measure`); what
is not understood is refused. Whether the result equals the moonfile is for the proof to say, not for this module.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from edge_daemon.errors import ModelError
from edge_daemon.model_files import CONFIG, TOKENIZER, WEIGHTS
from edge_daemon.models.store import Progress, between
from edge_daemon.models.survey import Survey, survey
from edge_daemon.models.tensor_file import TensorFile
from edge_daemon.models.unpacked import Unpacked
from edge_daemon.moondream.config import load_config

SURVEYED = 0.4
"""Share of the work that is done when the graphs have been looked at, for the progress bar."""


def import_moonfile(moonfile: Unpacked, staging: Path, name: str, progress: Progress) -> None:
    """Write `config.json`, `tokenizer.json` and `model.safetensors` of a moonfile to the directory `staging`.

    Raises ModelError for graphs that are not understood; `staging` is then the caller's to remove.
    """
    found = survey(moonfile.graphs, moonfile.kv, between(progress, 0.0, SURVEYED))
    config = moonfile.config(name, found.vision, found.text, found.region, found.mask, "torch")
    config.provenance["rotary_layout"] = str(found.layout)
    (staging / CONFIG).write_text(config.to_json(), encoding="utf-8")
    try:
        load_config(staging)  # whatever does not go together is refused here, before the long work
    except ModelError as error:
        raise ModelError(f"{moonfile.source}: the model in it does not fit its {CONFIG}: {error}") from error
    shutil.copyfile(moonfile.directory / TOKENIZER, staging / TOKENIZER)
    _write(found, staging / WEIGHTS, between(progress, SURVEYED, 1.0))


def _write(found: Survey, path: Path, progress: Progress) -> None:
    """All tensors, one at a time."""
    total, done = sum(math.prod(shape) for shape in found.shapes.values()), 0
    with TensorFile(path, {name: ("F32", shape) for name, shape in found.shapes.items()}) as file:
        for name, source in found.tensors():
            file.write(name, source.read())
            done += math.prod(source.shape)
            progress(name, done / total)
