"""The picture that is captioned at the start."""

from __future__ import annotations

from PIL import Image

from edge_daemon import rehearsal
from edge_daemon.messages import pack, unpack


def test_it_is_a_picture_with_something_in_it() -> None:
    request = rehearsal.request()
    size = (request.width_px, request.height_px)
    assert size == (512, 512)
    picture = Image.frombytes("RGB", size, request.payload)
    corners = [picture.getpixel(place) for place in ((0, 0), (511, 0), (0, 511), (511, 511))]
    assert [corner[:2] for corner in corners if isinstance(corner, tuple)] == [(0, 0), (255, 0), (0, 255), (255, 255)]
    assert picture.getextrema() == ((0, 255), (0, 255), (0, 255))


def test_it_is_a_request_like_others_but_short() -> None:
    request = rehearsal.request()
    assert unpack(pack(request)) == request
    assert [task.kind for task in request.tasks] == ["caption"]
    assert request.max_tokens <= 20
    assert rehearsal.request() == request, "the same every time"
