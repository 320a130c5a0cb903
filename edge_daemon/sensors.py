"""What a board says of its temperature and its power supply, read from sysfs (and, at the last, by vcgencmd).

A few small files, well below a millisecond; nothing is kept open. What is not there or makes no sense is None.

The Raspberry Pi's kernels have three of them (raspberrypi/linux, drivers/firmware/raspberrypi.c and
drivers/hwmon/raspberrypi-hwmon.c):
* thermal/thermal_zone*: the processor, in thousandths of a degree. Other ARM boards have it as well.
* hwmon `rpi_volt`, in0_lcrit_alarm: too little voltage, within the last two seconds.
* get_throttled of the firmware's device: all bits, in hexadecimal without `0x`. Nothing else has them without rights to
  /dev/vcio. But reading it writes a warning with a stack trace to the kernel's log, once a boot ("deprecated, use hwmon
  sysfs instead"), so it is only read where it may say something: a board that is cool and has its voltage is not
  slowed down. Bits 16 to 19 mean the last two seconds there, as the kernel's own look clears them.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from edge_daemon.thermal import Reading

WARM_C = 58.0
"""Where the firmware may begin to slow a board down: the Raspberry Pi 3B+ at 60 °C, the others later."""
COMMAND_DEADLINE_S = 2.0
ASK_AGAIN_S = 600.0
"""After so long a command that did not work is asked again: it may have been the board that was too busy."""
PROCESSOR = re.compile(r"cpu|soc|core", re.IGNORECASE)
"""In the type of a thermal zone: cpu-thermal on a Raspberry Pi; soc-thermal, bigcore0-thermal and so on elsewhere."""
NO_PROCESSOR = re.compile(r"x86|dts|gpu", re.IGNORECASE)
"""A PC's processor is well at temperatures that are a board's end, and looks after itself."""
COLDEST_C, HOTTEST_C = -60.0, 150.0
"""What a board lives through; anything else is a sensor that is broken."""


def system_dir() -> Path:
    """Where the kernel's /sys is: $EDGE_DAEMON_SYS_DIR for a container that sees the host's elsewhere."""
    return Path(os.environ.get("EDGE_DAEMON_SYS_DIR") or "/sys")


class Sensors:
    """The sensors of this board."""

    def __init__(self, directory: Path, command: str = "vcgencmd", clock: Callable[[], float] = time.monotonic) -> None:
        """`directory` is /sys; `command` is asked for the throttle bits where no file has them."""
        self._directory = directory
        self._command = shutil.which(command)
        self._clock = clock
        self._ask_at_s = -math.inf

    def read(self) -> Reading:
        """Everything, now. Not for the event loop: the command may take COMMAND_DEADLINE_S."""
        sources: list[str] = []
        temperature_c = self._temperature_c(sources)
        alarm = self._under_voltage(sources)
        bits = self._throttled(temperature_c, alarm, sources)
        under_voltage = alarm if bits is None else bool(alarm) or bool(bits & 1)
        return Reading(temperature_c, bits, under_voltage, ", ".join(sources))

    def _temperature_c(self, sources: list[str]) -> float | None:
        """Of the hottest part of the processor."""
        found: list[tuple[float, str]] = []
        for zone in self._directory.glob("class/thermal/thermal_zone*"):
            kind, text = _text(zone / "type"), _text(zone / "temp")
            if not PROCESSOR.search(kind) or NO_PROCESSOR.search(kind) or not re.fullmatch(r"-?\d{1,6}", text):
                continue
            if COLDEST_C <= (temperature_c := int(text) / 1000) <= HOTTEST_C:
                found.append((temperature_c, kind))
        if not found:
            return None
        temperature_c, kind = max(found)
        sources.append(kind)
        return temperature_c

    def _under_voltage(self, sources: list[str]) -> bool | None:
        for device in self._directory.glob("class/hwmon/hwmon*"):
            if _text(device / "name") == "rpi_volt" and (alarm := _text(device / "in0_lcrit_alarm")) in ("0", "1"):
                sources.append("rpi_volt")
                return alarm == "1"
        return None

    def _throttled(self, temperature_c: float | None, alarm: bool | None, sources: list[str]) -> int | None:
        # soc/soc:firmware on a Raspberry Pi 4, soc@107c000000/soc@107c000000:firmware on a 5
        for path in self._directory.glob("devices/platform/soc*/soc*:firmware/get_throttled"):
            sources.append("get_throttled")
            if alarm is False and temperature_c is not None and temperature_c < WARM_C:
                return 0
            text = _text(path)
            return int(text, 16) if re.fullmatch(r"[0-9a-fA-F]{1,8}", text) else None
        return self._ask(sources)

    def _ask(self, sources: list[str]) -> int | None:
        """By the command; one that did not work is left alone for a while."""
        if self._command is None or self._clock() < self._ask_at_s:
            return None
        asked = [self._command, "get_throttled"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False)
        except (OSError, ValueError, subprocess.TimeoutExpired):  # ValueError: what it says is no text
            done = None
        answer = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})\s*", done.stdout) if done else None
        if answer is None:
            self._ask_at_s = self._clock() + ASK_AGAIN_S
            return None
        sources.append("vcgencmd")
        return int(answer[1], 16)


def _text(path: Path) -> str:
    """What a small file says; empty if it cannot be read."""
    try:
        return path.read_bytes()[:64].decode("ascii", "replace").strip()
    except OSError:
        return ""
