"""JPEGs that are written one after the other, told apart. Pure; a leaf but for the errors.

Looking for the bytes that end a JPEG finds the end of the thumbnail inside it first. So the marker segments are walked
through by their lengths (ITU-T T.81, annex B), and only the compressed data between them is searched.
"""

from __future__ import annotations

from edge_daemon.errors import PictureError

_SOI = b"\xff\xd8"
_EOI, _SOS = 0xD9, 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_IN_COMPRESSED_DATA = {0x00, *range(0xD0, 0xD8)}
"""After 0xff: a 0xff that is data, and restart markers."""
BETWEEN_BYTES = 4096
"""What may stand between two pictures: the head of each part, when a web camera's answer is passed on as it is."""


def has_end(data: bytes) -> bool:
    """Whether the JPEG that begins here ends, whatever follows; also where that cannot be told."""
    try:
        return bool(JpegSplitter(len(data)).feed(data))
    except PictureError:
        return True


class JpegSplitter:
    """Takes bytes as they come, gives whole JPEGs."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._at = 0  # what lies before was walked through
        self._inside = False  # a picture has begun, at the first byte
        self._behind_one = False  # zeros fill up what a camera has set aside for a picture
        self._compressed = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pictures that these bytes complete. Raises PictureError when they are none, or too long."""
        self._data += data
        pictures = []
        while self._begin() and self._walk():
            pictures.append(bytes(self._data[: self._at]))
            del self._data[: self._at]
            self._at, self._inside, self._behind_one = 0, False, True
        if len(self._data) > self._max_bytes:
            raise PictureError(f"a JPEG has more than {self._max_bytes / 1e6:.1f} MB and no end (max_file_bytes)")
        return pictures

    def _begin(self) -> bool:
        """Whether a picture has begun; what stands before it is dropped."""
        if self._inside:
            return True
        if self._behind_one:
            self._data = self._data.lstrip(b"\0")
        start = self._data.find(_SOI)
        if start > BETWEEN_BYTES or (start < 0 and len(self._data) > BETWEEN_BYTES):
            raise PictureError(f"no JPEG begins in {BETWEEN_BYTES} bytes, which start with {bytes(self._data[:16])!r}")
        if start < 0:
            return False
        del self._data[:start]
        self._at, self._inside, self._compressed = len(_SOI), True, False
        return True

    def _walk(self) -> bool:
        """Go on to the end of the picture; whether it was reached. Raises PictureError."""
        while self._skip_compressed() and len(self._data) >= self._at + 2:
            if self._data[self._at] != 0xFF:
                raise PictureError(
                    f"byte {self._at} of a JPEG must begin a marker (0xff), and is {self._data[self._at]:#x}"
                )
            marker = self._data[self._at + 1]
            if marker == _EOI:
                self._at += 2
                return True
            if marker == 0xFF:  # a fill byte
                self._at += 1
            elif marker in _WITHOUT_LENGTH:
                self._at += 2
            elif not self._skip_segment(marker):
                break
        return False

    def _skip_segment(self, marker: int) -> bool:
        """Whether its length has come. What it holds may still be to come."""
        if len(self._data) < self._at + 4:
            return False
        length = int.from_bytes(self._data[self._at + 2 : self._at + 4])
        if length < 2:
            raise PictureError(f"a segment of a JPEG says that it has {length} bytes; two is the least")
        self._at += 2 + length
        self._compressed = marker == _SOS
        return True

    def _skip_compressed(self) -> bool:
        """Whether the next marker has been found."""
        while self._compressed:
            found = self._data.find(0xFF, self._at)
            if found < 0 or found + 1 >= len(self._data):
                self._at = max(self._at, len(self._data) if found < 0 else found)
                return False
            self._at = found
            if self._data[found + 1] in _IN_COMPRESSED_DATA:
                self._at += 2
            else:
                self._compressed = False
        return True
