"""What a processor can get wrong, on the board that it runs on: torch, the demo's model in both precisions, a film.

`python -m tests.arm64.proof`, in the checkout; tests/arm64/run does so. Ends at the first thing that is wrong.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageChops, ImageStat

from edge_daemon.demo import MODEL_DIR
from edge_daemon.demo.evaluate import SAMPLING, shrunk
from edge_daemon.demo.scenes import sample_pictures
from edge_daemon.moondream.model import Moondream
from edge_daemon.sources.scaling import Scaler
from tests.cameras import film, scenes
from tests.grabbers import ALIKE

SCENES = 8
SEED = 11
THREADS = 2
"""With one thread, wheels pass that end the process with two."""


def products() -> str:
    """What torch multiplies is what float64 says."""
    torch.set_num_threads(THREADS)
    left, right = (np.random.default_rng(seed).standard_normal((300, 300)) for seed in (1, 2))
    found = torch.from_numpy(left).float() @ torch.from_numpy(right).float()
    worst = float(np.abs(found.numpy() - left @ right).max())
    assert worst < 1e-3, worst
    return f"300 x 300 on {torch.get_num_threads()} threads, off by {worst:.0e}"


def captions(int8: bool) -> str:
    """The built-in model says what is to be seen."""
    model = Moondream(MODEL_DIR, int8=int8)
    with tempfile.TemporaryDirectory() as directory:
        for path, caption in sample_pictures(Path(directory), SCENES, SEED):
            with Image.open(path) as picture:
                model.encode(shrunk(picture.convert("RGB")))
            said = model.caption("short", SAMPLING).text
            assert said == caption, f"{path.name}: {said!r}, not {caption!r}"
    return f"{SCENES} of {SCENES} scenes right, {'int8' if int8 else 'float32'}"


def frames() -> str:
    """A film is what was filmed, decoded and shrunk as a camera's stream is."""
    filmed, scaler = scenes(6), Scaler(512)
    with tempfile.TemporaryDirectory() as directory, av.open(str(film(Path(directory) / "film.mp4", filmed))) as video:
        shown = [scaler.picture(frame, None) for frame in video.decode(video=0)]
    assert len(shown) == len(filmed)
    for one, scene in zip(shown, filmed, strict=True):
        size_px = (one.width_px, one.height_px)
        apart = ImageChops.difference(Image.frombytes("RGB", size_px, one.pixels), scene.resize(size_px))
        assert max(ImageStat.Stat(apart).mean) < ALIKE
    return f"{len(shown)} of H.264"


def main() -> int:
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}", flush=True)
    proofs = {"products": products, "float32": lambda: captions(False), "int8": lambda: captions(True), "film": frames}
    for name, proof in proofs.items():
        from_s = time.monotonic()
        print(f"{name}: {proof()}, {time.monotonic() - from_s:.0f} s", flush=True)
    print(f"torch {torch.__version__}: products, captions in float32 and int8, and a film are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
