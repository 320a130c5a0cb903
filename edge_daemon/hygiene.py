"""Is what a camera delivers a picture of now? Pure: the clock is passed in. A leaf.

What is wrong has to be so for a few looks before it is told, and to be well for as many before it is over, so that
health does not change with every flash or dropped frame.
"""

from __future__ import annotations

LOOKS = 3
"""So many in a row say the same before it counts; or two, LONG_S apart, when looks are rare."""
LONG_S = 60.0
BLACK, NO_LONGER_BLACK = 16, 24
"""Of 255: video calls 16 black."""
FLAT, NO_LONGER_FLAT = 4, 8
"""Levels between the dark and the bright parts. The corners of a lens alone make more than that."""
FROZEN_S = 60.0
"""The noise of a sensor makes any two frames differ; so does its next key frame for a scene that stands still."""
OLD_S, NO_LONGER_OLD_S = 30.0, 20.0
FUTURE_S, NO_LONGER_FUTURE_S = 5.0, 2.0
_STRAY = 10
"""Cells of the thumbnail that may be otherwise: a hot pixel, the time that the camera writes into the picture."""

BLACK_PICTURE = "the picture is black: the lens is covered, or it is night and there is no light for this camera"
FLAT_PICTURE = (
    "the picture has one colour and shows nothing: the camera or its decoder delivers no real picture, or something "
    "is right in front of the lens"
)
FROZEN_PICTURE = (
    f"the picture is frozen: for more than {FROZEN_S:.0f} s every frame has been the same, bit by bit, which no sensor "
    "does; restart the camera"
)
OLD_FRAMES = (
    f"frames are more than {OLD_S:.0f} s old when they come: the network or this machine is too slow for the stream, "
    "or a clock is wrong"
)
FUTURE_FRAMES = "frames are from the future: the clock of the camera or of this machine is wrong"


class Hygiene:
    """The state of one camera's pictures."""

    def __init__(self) -> None:
        self._problem = ""
        self._found = ""
        """What the last looks say."""
        self._looks = 0
        """How many of them, and since when:"""
        self._since_s = 0.0
        self._checksum: int | None = None
        self._same_since_s = 0.0

    def look(self, thumbnail: bytes, checksum: int, age_s: float, now_s: float) -> str:
        """What is wrong with the camera, in words; empty while all is well. `checksum` is of all the frame's bytes.

        `now_s` is monotonic: a clock that is set back must not have a frozen picture pass for good for as long.
        """
        if checksum != self._checksum:
            self._checksum, self._same_since_s = checksum, now_s
        found = self._seen(thumbnail, age_s, now_s)
        if found != self._found:
            self._found, self._since_s, self._looks = found, now_s, 0
        self._looks += 1
        if self._looks >= LOOKS or now_s - self._since_s >= LONG_S:
            self._problem = found
        return self._problem

    def _seen(self, thumbnail: bytes, age_s: float, now_s: float) -> str:
        """What this frame looks like; what is told already is left only at a distance."""
        levels = sorted(thumbnail)
        darkest, brightest = levels[_STRAY], levels[-1 - _STRAY]
        if brightest <= (NO_LONGER_BLACK if self._problem == BLACK_PICTURE else BLACK):
            return BLACK_PICTURE
        if brightest - darkest < (NO_LONGER_FLAT if self._problem == FLAT_PICTURE else FLAT):
            return FLAT_PICTURE
        if now_s - self._same_since_s >= FROZEN_S:
            return FROZEN_PICTURE
        if age_s > (NO_LONGER_OLD_S if self._problem == OLD_FRAMES else OLD_S):
            return OLD_FRAMES
        if -age_s > (NO_LONGER_FUTURE_S if self._problem == FUTURE_FRAMES else FUTURE_S):
            return FUTURE_FRAMES
        return ""
