"""Cameras to read from: a real RTSP server in a process of its own, MJPEG over HTTP, and films of scenes."""

from __future__ import annotations

import base64
import io
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
from PIL import Image

from edge_daemon.demo.scenes import draw, random_scene
from tests.conftest import missing
from tests.grabbers import DEADLINE_S

HEAD_BYTES = 12 + 2 + 4
"""Of RTP, of a fragment of H.264, and the first of the slice in it: so that it is still taken for one."""
SYSTEM_PYTHON = "/usr/bin/python3"
"""GStreamer's bindings are a Debian package."""


def scenes(count: int, size_px: tuple[int, int] = (640, 480)) -> list[Image.Image]:
    """Pictures that differ."""
    rng = random.Random("cameras")
    return [draw(random_scene(rng), size_px) for _ in range(count)]


class RtspServer:
    """tests/rtsp_server.py, running; a context manager that ends it."""

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        check = subprocess.run(
            [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"], check=False
        )
        if check.returncode:
            missing("GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0)")
        self._ppm = directory / "shown.ppm"
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, str(Path(__file__).parent / "rtsp_server.py"), str(port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._answer().removeprefix("ready"))
        self.url = f"rtsp://127.0.0.1:{self.port}/test"

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def show(self, picture: Image.Image) -> None:
        """Show this from now on."""
        picture.save(self._ppm)
        assert self.process.stdin is not None
        self.process.stdin.write(f"show {self._ppm}\n")
        self.process.stdin.flush()
        assert self._answer().startswith("shows")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the RTSP server has gone; its words are above"
        return line.strip()


class MjpegServer:
    """A web camera: multipart/x-mixed-replace on loopback, one picture after the other; a context manager."""

    def __init__(self, pictures: Sequence[Image.Image], fps: float, login: str = "") -> None:
        jpegs = [jpeg(picture) for picture in pictures]
        self.shown = 0
        self.stopped = threading.Event()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
                if self.path != "/video" or (wanted and self.headers["Authorization"] != wanted):
                    self.send_response(404 if self.path != "/video" else 401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                camera.send(self.wfile, jpegs, fps)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/video"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def send(self, file: Any, jpegs: Sequence[bytes], fps: float) -> None:
        """Pictures until nobody reads any more."""
        try:
            while not self.stopped.wait(1 / fps):
                data = jpegs[self.shown % len(jpegs)]
                self.shown += 1
                file.write(
                    b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)
                )
        except OSError:
            pass


class BadLine:
    """A relay before an RTSP server that spoils what the camera sends, when told to; a context manager."""

    def __init__(self, port: int) -> None:
        self.spoils = False
        self._to = port
        self._rng = random.Random("bad line")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/test"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> BadLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                camera = socket.create_connection(("127.0.0.1", self._to))
                for carry, ends in ((self._pass, (client, camera)), (self._spoil, (camera, client))):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                to.sendall(data)
        to.close()

    def _spoil(self, source: socket.socket, to: socket.socket) -> None:
        """Answers pass as they are; of a packet (RFC 2326, 10.12: $, channel, length) the head passes."""
        file = source.makefile("rb")
        with suppress(OSError):
            while first := file.read(1):
                if first == b"$":
                    head = file.read(3)
                    body = bytearray(file.read(int.from_bytes(head[1:])))
                    if self.spoils and head[0] == 0:
                        body[HEAD_BYTES:] = self._rng.randbytes(max(0, len(body) - HEAD_BYTES))
                else:
                    head = b"".join(iter(file.readline, b"\r\n")) + b"\r\n"
                    length = re.search(rb"Content-Length: (\d+)", head)
                    body = bytearray(file.read(int(length[1]) if length else 0))
                to.sendall(first + head + body)
        to.close()


def jpeg(picture: Image.Image) -> bytes:
    """A picture as a camera sends it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def film(
    path: Path,
    pictures: Sequence[Image.Image],
    *,
    fps: int = 10,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixel_shape: Fraction | None = None,
) -> Path:
    """A file with one frame a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"tune": "zerolatency"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode(None))
    return path


PROGRAM = """\
import sys, time
pictures = [open(path, "rb").read() for path in sys.argv[2:]]
while True:
    for picture in pictures:
        sys.stdout.buffer.write(picture)
        sys.stdout.flush()
        time.sleep(float(sys.argv[1]))
"""


def program(directory: Path, pictures: Sequence[Image.Image], pause_s: float = 0.1) -> list[str]:
    """A command that writes these pictures as JPEGs, over and over."""
    paths = [directory / f"{number}.jpg" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(jpeg(picture))
    return [sys.executable, "-c", PROGRAM, str(pause_s), *map(str, paths)]
