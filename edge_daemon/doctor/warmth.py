"""Temperature, and whether the board was slowed down or got too little voltage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_daemon.doctor import unit
from edge_daemon.doctor.finding import Finding, ok, problem, skipped, warning
from edge_daemon.doctor.subject import Subject
from edge_daemon.sensors import Sensors
from edge_daemon.thermal import BITS, IN_WORDS, LIMIT_AT_C, SLOW_DOWN_AT_C, UNDER_VOLTAGE, Reading

SINCE_BOOT = 16
"""Bits from here on: the same, since the board was switched on."""
KERNEL_WORDS = "dervoltage detected"
"""Of the kernel's log (hwmon: `Undervoltage detected!`, earlier `Under-voltage detected!`)."""
NOWHERE = Path("/nonexistent")


def look(subject: Subject) -> Iterator[Finding]:
    """Now, and since the board was switched on."""
    reading = Sensors(subject.places.sys).read()
    thermal = subject.config.thermal if subject.config else None
    slow_at_c, limit_at_c = (thermal.slow_down_at_c, thermal.limit_at_c) if thermal else (SLOW_DOWN_AT_C, LIMIT_AT_C)
    yield temperature(reading, slow_at_c, limit_at_c)
    # the file's bits of the past mean the last two seconds (sensors.py); the command's mean since the start
    firmware = Sensors(NOWHERE).read().throttled
    kernel_log = unit.said(subject.places.run, "journalctl", "-k", "-b", "-q", "--no-pager", "-o", "cat")
    yield power(reading, firmware, kernel_log)


def temperature(reading: Reading, slow_at_c: float, limit_at_c: float) -> Finding:
    """Of the processor."""
    now_c = reading.temperature_c
    if now_c is None:
        return skipped("temperature", "this machine does not say how warm its processor is")
    if now_c < slow_at_c:
        return ok("temperature", f"{now_c:.0f} °C; pauses begin at {slow_at_c:.0f} °C")
    meaning = f"Captions pause between pictures from {slow_at_c:.0f} °C on, ever longer up to {limit_at_c:.0f} °C."
    make = problem if now_c >= limit_at_c else warning
    return make("temperature", f"{now_c:.0f} °C", meaning, "give the board a heat sink or a fan, or more air")


def power(reading: Reading, firmware: int | None, kernel_log: str) -> Finding:
    """`firmware` is what `vcgencmd get_throttled` says; the log is the kernel's of this boot."""
    bits = (reading.throttled or 0) | (firmware or 0)
    now = [name for number, name in enumerate(BITS) if bits >> number & 1]
    if reading.under_voltage and UNDER_VOLTAGE not in now:
        now.insert(0, UNDER_VOLTAGE)
    before = [name for number, name in enumerate(BITS) if bits >> (number + SINCE_BOOT) & 1]
    times = sum(KERNEL_WORDS in line.lower().replace("-", "") for line in kernel_log.splitlines())
    if times and UNDER_VOLTAGE not in before:
        before.insert(0, UNDER_VOLTAGE)
    counted = f" ({times} times in the kernel's log)" if times else ""
    weak = "A weak power supply makes boards fail at random and damages cards. Use the supply made for the board."
    hot = "The firmware slows a hot board down, and captions with it. Give it a heat sink or a fan."
    if now:
        meaning = weak if UNDER_VOLTAGE in now else hot
        make = problem if UNDER_VOLTAGE in now else warning
        return make("power", f"now: {listed(now)}", meaning, "vcgencmd get_throttled; vcgencmd measure_temp")
    if before:
        meaning = weak if UNDER_VOLTAGE in before else hot
        what = f"since it was switched on: {listed(before)}{counted}"
        return warning("power", what, meaning, "vcgencmd get_throttled; journalctl -k -b | grep -i voltage")
    if reading.throttled is None and firmware is None and reading.under_voltage is None:
        return skipped("power", "this machine does not say whether its power supply is too weak")
    return ok("power", "enough voltage, and not slowed down, since it was switched on")


def listed(names: list[str]) -> str:
    """For people."""
    return ", ".join(IN_WORDS[name] for name in names)
