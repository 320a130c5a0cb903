"""Stand-in for the helper that switches the HDR of an IMX708."""

from __future__ import annotations

from picamera2 import note


class IMX708:
    def __init__(self, camera_num: int | None = None) -> None:
        self._camera_num = camera_num

    def __enter__(self) -> IMX708:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_sensor_hdr_mode(self, enable: bool) -> None:
        note("sensor_hdr", [self._camera_num, enable])
