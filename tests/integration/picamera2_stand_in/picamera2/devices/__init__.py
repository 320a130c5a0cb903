"""Stand-in for picamera2's helpers for single sensors."""
