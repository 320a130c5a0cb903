"""Without systemd, picamera2, or what is Unix alone, every module can be imported. Not tried on the real systems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEMD = ("systemd", "systemd.daemon", "picamera2", "libcamera")
UNIX = ("fcntl", "grp", "pwd", "resource", "syslog", "termios")
IMPORT_ALL = """
import importlib, pathlib, sys
import asyncio, multiprocessing, subprocess, sysconfig, tempfile  # the standard library chose its system already
sysconfig.get_config_vars()
import av, onnx, onnxruntime, paho.mqtt.client, PIL.Image, psutil, pydantic, pyvips, torch, watchfiles, yaml
platform, hidden = sys.argv[1], sys.argv[2].split(",")
import os, signal
for name in hidden:
    sys.modules[name] = None
if platform == "win32":
    for module, names in ((os, ("geteuid", "getuid", "killpg", "sched_getaffinity", "memfd_create")),
                          (signal, ("SIGKILL", "SIGHUP", "SIGPROF", "setitimer"))):
        for name in names:
            delattr(module, name)
sys.platform = platform
root = pathlib.Path("edge_daemon")
for path in sorted(root.rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    if name not in ("edge_daemon.__main__", "edge_daemon.sources.picamera"):  # a program; the system's Python runs it
        importlib.import_module(name)
"""


@pytest.mark.parametrize(("platform", "hidden"), [("darwin", SYSTEMD), ("win32", SYSTEMD + UNIX)])
def test_every_module_can_be_imported(platform: str, hidden: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, platform, ",".join(hidden)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
