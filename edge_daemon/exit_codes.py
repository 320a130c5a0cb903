"""How a command ends (leaf); the README lists them for users."""

from __future__ import annotations

OK = 0
UNEXPECTED = 1
"""A bug, or interrupted. Python's own for an error that nobody caught."""
USAGE = 2
"""A wrong command line; argparse's own."""
UNAVAILABLE = 69
"""Something needed is not there; EX_UNAVAILABLE of sysexits.h."""
CONFIG = 78
"""The configuration is wrong; EX_CONFIG of sysexits.h. The unit never restarts on it."""
