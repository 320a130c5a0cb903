"""Whether reading a camera for long takes more and more memory: `python -m tests.bench.stream_memory [MINUTES]`.

A real RTSP server shows another scene every two seconds, now and then of another size; the grabber is asked for a
frame every 0.2 s, every other time for the newest. Prints what it has resident, once a minute.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.cameras import RtspServer, scenes
from tests.grabbers import CameraGrabber

SHOWN_S = 2.0
ASKED_S = 0.2


def main(minutes: float) -> None:
    """Read, and print."""
    pictures = [*scenes(12, (1280, 720)), *scenes(2, (640, 480))]
    with tempfile.TemporaryDirectory() as directory, RtspServer(Path(directory), "--fps", "15") as camera:
        camera.show(pictures[0])
        with CameraGrabber(type="stream", url=camera.url) as grabber:
            started_s = next_line_s = next_scene_s = time.monotonic()
            frames = shown = 0
            while time.monotonic() - started_s <= minutes * 60:
                frames += 1
                grabber.frame(fresh=frames % 2 == 0)
                if time.monotonic() >= next_scene_s:
                    next_scene_s += SHOWN_S
                    shown += 1
                    camera.show(pictures[shown % len(pictures)])
                if time.monotonic() >= next_line_s:
                    next_line_s += 60
                    passed_s = time.monotonic() - started_s
                    rss_mib = grabber.status("VmRSS") / 1024
                    open_files = psutil.Process(grabber.process.pid).num_fds()
                    print(f"{passed_s:6.0f} s  {frames:6} frames  {rss_mib:6.1f} MiB  {open_files} files", flush=True)
                time.sleep(ASKED_S)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
