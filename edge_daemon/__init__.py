"""edge-daemon: a systemd service that lets a Raspberry Pi say what it sees."""

__version__ = "0.1.0"
