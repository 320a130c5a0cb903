"""Which device classes of Home Assistant an answer can have, and in which units. A leaf.

Home Assistant refuses a whole entity for a class or a unit that it does not know, and says so in its own log only.
From homeassistant/components/binary_sensor and sensor/const.py (DEVICE_CLASS_UNITS), of the latter what a picture can
show and what is a momentary value.
"""

from __future__ import annotations

from edge_daemon.nearest import hint

FOR_YES_NO = frozenset(
    (
        *("battery", "battery_charging", "carbon_monoxide", "cold", "connectivity", "door", "garage_door", "gas"),
        *("heat", "light", "lock", "moisture", "motion", "moving", "occupancy", "opening", "plug", "power"),
        *("presence", "problem", "running", "safety", "smoke", "sound", "tamper", "update", "vibration", "window"),
    )
)
UNITS_FOR_NUMBER = {
    "battery": ("%",),
    "current": ("A", "mA"),
    "distance": ("mm", "cm", "m", "km", "in", "ft", "yd", "mi"),
    "duration": ("s", "min", "h", "d"),
    "humidity": ("%",),
    "illuminance": ("lx",),
    "moisture": ("%",),
    "power": ("W", "kW"),
    "pressure": ("Pa", "hPa", "kPa", "mbar", "bar", "psi", "mmHg", "inHg"),
    "speed": ("m/s", "km/h", "mph", "kn"),
    "temperature": ("°C", "°F", "K"),
    "voltage": ("V", "mV"),
    "volume_storage": ("mL", "L", "m³", "gal"),
    "weight": ("g", "kg", "oz", "lb"),
}
"""The units that go with each class of a number."""


def problem(answer_type: str, device_class: str | None, unit: str | None) -> str:
    """What is wrong with a class and a unit for this type of answer, in words; empty if nothing."""
    if unit is not None and answer_type != "number":
        return f"unit works only with type number; leave it out for type {answer_type}"
    if device_class is None:
        return ""
    if answer_type not in ("yes_no", "number"):
        return f"device_class works only with types yes_no and number; leave it out for type {answer_type}"
    known = FOR_YES_NO if answer_type == "yes_no" else UNITS_FOR_NUMBER.keys()
    if device_class not in known:
        return f"no device_class {device_class!r} for type {answer_type}{hint(device_class, sorted(known))}"
    if answer_type == "number" and unit not in UNITS_FOR_NUMBER[device_class]:
        return f"device_class {device_class} needs one of these units: {', '.join(UNITS_FOR_NUMBER[device_class])}"
    return ""
