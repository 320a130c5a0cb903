"""A certificate authority of our own, made with `openssl`, for the tests of TLS."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import missing

EXTENSIONS = """\
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[leaf]
basicConstraints = CA:FALSE
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    file: Path
    key: Path


class Authority:
    """Signs what it is asked to."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            missing("openssl")
        self._directory = directory
        self._own = self._request(name)
        (directory / "extensions").write_text(EXTENSIONS.format(names="DNS:ca"))
        signing = ["-in", directory / f"{name}.csr", "-signkey", self._own.key, "-days", "2"]
        extensions = ["-extfile", directory / "extensions", "-extensions", "ca"]
        _openssl("x509", "-req", *signing, *extensions, "-out", self._own.file)

    @property
    def file(self) -> Path:
        """Its own certificate."""
        return self._own.file

    def sign(self, name: str, names: str = "IP:127.0.0.1", days: int = 2) -> Certificate:
        """A certificate for some names; of negative `days` one that has expired."""
        made = self._request(name)
        (self._directory / "extensions").write_text(EXTENSIONS.format(names=names))
        signing = ["-in", self._directory / f"{name}.csr", "-CA", self._own.file, "-CAkey", self._own.key]
        extensions = ["-extfile", self._directory / "extensions", "-extensions", "leaf"]
        lasting = ["-CAcreateserial", "-days", str(days)]
        _openssl("x509", "-req", *signing, *lasting, *extensions, "-out", made.file)
        return made

    def _request(self, name: str) -> Certificate:
        made = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", made.key]
        _openssl("req", "-new", "-nodes", *key, "-subj", f"/CN={name}", "-out", self._directory / f"{name}.csr")
        made.key.chmod(0o600)
        return made


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
