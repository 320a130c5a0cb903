"""A real RTSP server (GStreamer) on loopback that shows one picture after the other, as a camera would.

    /usr/bin/python3 tests/rtsp_server.py PORT [--user U --password P] [--codec C] [--fps N] [--key-every N]

PORT 0 is any free one. It prints `ready PORT` when it listens; rtsp://127.0.0.1:PORT/test shows what it was told to
show by a line on standard input: `show FILE`, a binary PPM (P6); it answers `shows FILE`. A picture of another size
changes the resolution in the middle of the stream. It must run on the system's Python: only there are GStreamer's
bindings (Debian: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base -good -ugly).
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  # after the versions, as gi wants it

ENCODERS = {
    "h264": "x264enc tune=zerolatency sliced-threads=false speed-preset=ultrafast bitrate=4000 key-int-max={key_every}"
    " ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1",
    # as most people start it: each key frame in slices, the parameter sets before every one
    "h264-slices": "x264enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max={key_every} threads=4"
    " ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "jpeg": "jpegenc quality=95 ! rtpjpegpay name=pay0 pt=26",
}


COLOURS = {"jpeg": "1:4:0:0", "bt601": "bt601"}


class Screen:
    """What is shown: one picture, pushed into every stream at the stream's own rate."""

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self._lock = threading.Lock()
        self._size, self._pixels = (320, 240), bytes([128]) * (320 * 240 * 3)

    def show(self, path: str) -> None:
        """Show this PPM from now on."""
        magic, width, height, largest, pixels = Path(path).read_bytes().split(maxsplit=4)
        assert (magic, largest) == (b"P6", b"255")
        with self._lock:
            self._size, self._pixels = (int(width), int(height)), pixels

    def configure(self, _factory: Any, media: Any) -> None:
        """A stream begins."""
        source = media.get_element().get_child_by_name("screen")
        GLib.timeout_add(1000 // self._fps, self._push, source)

    def _push(self, source: Any) -> bool:
        with self._lock:
            size, pixels = self._size, self._pixels
        form = f"video/x-raw,format=RGB,width={size[0]},height={size[1]},framerate={self._fps}/1"
        stride = (3 * size[0] + 3) // 4 * 4  # GStreamer's rows end at multiples of four bytes
        rows = (pixels[y * 3 * size[0] : (y + 1) * 3 * size[0]].ljust(stride, b"\0") for y in range(size[1]))
        sample = Gst.Sample.new(Gst.Buffer.new_wrapped(b"".join(rows)), Gst.Caps.from_string(form), None, None)
        return bool(source.emit("push-sample", sample) in (Gst.FlowReturn.OK, Gst.FlowReturn.FLUSHING))


def open_server(options: argparse.Namespace, screen: Screen) -> Any:
    """A server that listens."""
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    encoder = ENCODERS[options.codec].format(key_every=options.key_every)
    screen_element = "appsrc name=screen is-live=true do-timestamp=true format=time"
    colours = "jpeg" if options.codec == "jpeg" else "bt601"  # a JPEG has no say in what its numbers mean
    form = f"video/x-raw,format=I420,colorimetry={COLOURS[colours]}"
    factory.set_launch(f"( {screen_element} ! videoconvert ! {form} ! {encoder} )")
    factory.set_shared(True)
    factory.connect("media-configure", screen.configure)
    if options.user:
        admit_only(server, factory, options.user, options.password)
    server.get_mount_points().add_factory("/test", factory)
    server.attach(None)
    return server


def admit_only(server: Any, factory: Any, user: str, password: str) -> None:
    """Ask for a login."""
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for what in ("access", "construct"):
        permissions.add_permission_for_role("viewer", f"media.factory.{what}", True)
    factory.set_permissions(permissions)


def obey(screen: Screen, loop: Any) -> None:
    """Do what standard input says; its end is ours."""
    for line in sys.stdin:
        screen.show(line.removeprefix("show ").strip())
        print("shows", line.removeprefix("show ").strip(), flush=True)
    loop.quit()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--fps", type=int, default=20)
    parser.add_argument("--key-every", type=int, default=10)
    options = parser.parse_args()
    Gst.init(None)
    screen, loop = Screen(options.fps), GLib.MainLoop()
    server = open_server(options, screen)
    print("ready", server.get_bound_port(), flush=True)
    threading.Thread(target=obey, args=(screen, loop), daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
