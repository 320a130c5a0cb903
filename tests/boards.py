"""A /sys like a Raspberry Pi's, as files that a test may change: for the sensors and for the whole service."""

from __future__ import annotations

from pathlib import Path


class Board:
    """The three places that sensors.py looks at; what is never set is not there."""

    def __init__(self, directory: Path, soc: str = "soc") -> None:
        """`soc` is the name of the device tree's node: `soc` on a Raspberry Pi 4, `soc@107c000000` on a 5."""
        self.directory = directory
        self._soc = soc
        directory.mkdir(exist_ok=True)

    def temperature(self, celsius: float, kind: str = "cpu-thermal", zone: int = 0) -> None:
        """The processor's temperature."""
        self._put(f"class/thermal/thermal_zone{zone}/type", f"{kind}\n")
        self._put(f"class/thermal/thermal_zone{zone}/temp", f"{celsius * 1000:.0f}\n")

    def alarm(self, under_voltage: bool) -> None:
        """What hwmon says of the voltage; another device comes first."""
        self._put("class/hwmon/hwmon0/name", "cpu_thermal\n")
        self._put("class/hwmon/hwmon1/name", "rpi_volt\n")
        self._put("class/hwmon/hwmon1/in0_lcrit_alarm", f"{under_voltage:d}\n")

    def throttled(self, bits: int) -> None:
        """What the firmware says, in the kernel's form."""
        self._put(f"devices/platform/{self._soc}/{self._soc}:firmware/get_throttled", f"{bits:x}\n")

    def _put(self, name: str, text: str) -> None:
        """Replace a file as a whole: nobody may read half a number."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}")
        fresh.write_text(text)
        fresh.replace(path)
