"""A camera for the tests: `camera.py DIRECTORY FPS` writes the picture `now.jpg` of a directory again and again.

A sensor's noise is on it: a fixed number of bits differ from frame to frame, in a comment of the JPEG and in one pixel.
Whoever replaces the file (rename) changes the scene.
"""

from __future__ import annotations

import io
import random
import sys
import time
from pathlib import Path

from PIL import Image


def main() -> None:
    directory, fps = Path(sys.argv[1]), float(sys.argv[2])
    dice = random.Random(1)
    while True:
        with Image.open(directory / "now.jpg") as now:
            picture = now.convert("RGB")
        picture.putpixel((0, 0), (dice.randrange(256), dice.randrange(256), dice.randrange(256)))
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=92)
        sys.stdout.buffer.write(written.getvalue())
        sys.stdout.buffer.flush()
        time.sleep(1 / fps)


if __name__ == "__main__":
    main()
