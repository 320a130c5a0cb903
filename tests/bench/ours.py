"""Our side: the product's model, as its worker runs it. `python -m tests.bench.ours DIRECTORY float32|int8`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image

from edge_daemon.bench.measure import open_model
from edge_daemon.bench.stages import caption as timed
from edge_daemon.choices import WantedPrecision
from edge_daemon.moondream.config import load_config
from tests.bench.turns import Turn, serve

POSITIONS = 1024


def main() -> None:
    directory = Path(sys.argv[1])
    precision: WantedPrecision = "int8" if sys.argv[2] == "int8" else "float32"
    config = load_config(directory)
    model = open_model(directory, config, precision, min(POSITIONS, config.text.max_context), lambda text: None)

    def caption(path: Path, count: int) -> Turn:
        start_s = time.perf_counter()
        picture = Image.open(path).convert("RGB")
        run = timed(model, picture, "short", count, time.perf_counter() - start_s)
        return Turn(
            encode_s=run.decode_s + run.vision_s + run.projection_s,
            first_s=run.prefill_s + run.first_s,
            token_s=[token.seconds for token in run.tokens[1:]],
            tokens=[token.id for token in run.tokens],
        )

    serve({"precision": model.parts.precision}, caption)


if __name__ == "__main__":
    main()
