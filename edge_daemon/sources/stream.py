"""Network cameras, and whatever else FFmpeg opens by an address: RTSP, MJPEG over HTTP, files.

A login is put into the address that FFmpeg is given and nowhere else; what is said about a stream is what
`shown_address` lets through. A file is read at its own pace, as if it happened now.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

import av
from av.container import InputContainer

from edge_daemon import shown_address
from edge_daemon.choices import Decode, Transport
from edge_daemon.sources.opening import QUICKLY, in_words, number_of

_SWITCHED_ON = "the camera's stream is switched on"
_ANSWERS = (av.error.HTTPClientError, av.error.HTTPServerError)


@dataclass(frozen=True)
class StreamOptions:
    """Where the stream is, and how it is read."""

    url: str = field(repr=False)
    username: str | None
    password: str | None = field(repr=False)
    transport: Transport
    decode: Decode
    open_timeout_s: float
    read_timeout_s: float
    max_side_px: int


class Stream:
    """One address."""

    def __init__(self, options: StreamOptions) -> None:
        """Nothing is connected to yet."""
        self.open_timeout_s = options.open_timeout_s
        self.read_timeout_s = options.read_timeout_s
        self._options = options
        self._parts = urlsplit(options.url)
        self._path = unquote(self._parts.path) if self._parts.scheme == "file" else options.url
        self._local = self._parts.scheme in ("", "file")
        self._paced = False
        self._first_s = 0.0

    def open(self) -> InputContainer:
        """Connect. Raises av.FFmpegError, or OSError."""
        timeouts_s = (self.open_timeout_s, self.read_timeout_s)
        if self._local:
            self._paced = stat.S_ISREG(os.stat(self._path).st_mode)
            return av.open(self._path, timeout=timeouts_s)
        options = dict(QUICKLY)
        if self._parts.scheme.startswith("rtsp"):
            options |= {"rtsp_transport": self._options.transport, "allowed_media_types": "video"}
        return av.open(address(self._parts, self._options), options=options, timeout=timeouts_s)

    def keep_pace(self, due_s: float) -> None:
        """Wait until a packet of a file may be read; a pause in it is never as long as a camera's silence."""
        if not self._paced:
            return
        now_s = time.monotonic()
        self._first_s = self._first_s or now_s
        early_s = self._first_s + due_s - now_s
        rest_s = min(early_s, self.read_timeout_s / 2)
        if rest_s > 0:
            time.sleep(rest_s)
        self._first_s -= max(0.0, early_s - rest_s)

    def silent(self, what: str, after_s: float) -> str:
        """The words for a deadline that passed."""
        if what == "read":
            return f"nothing came from {self._place} for {after_s:g} s (read_timeout_s)"
        return (
            f"{self._place} did not answer within {after_s:g} s (open_timeout_s): "
            "is the camera on, and the address right?"
        )

    def why(self, error: Exception | None) -> str:
        """Why it cannot be opened or read."""
        if error is None:
            return "the stream ended"
        if self._host == shown_address.HIDDEN and not self._local:
            return f"{self._place}: {in_words(error)}"
        if isinstance(error, _ANSWERS):
            return self._refusal(error)
        if isinstance(error, av.error.ProtocolNotFoundError):
            return f"this FFmpeg knows no addresses that begin with {self._parts.scheme}://"
        if self._local and isinstance(error, OSError):
            return f"the file {self._path!r} cannot be read: {error.strerror}"
        reason = self._connection(number_of(error))
        return reason or f"{self._place}: {in_words(error)}"

    def _refusal(self, error: av.FFmpegError) -> str:
        """What a server that answers says; RTSP has the same numbers as HTTP."""
        if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
            if self._options.username is None and "@" not in self._parts.netloc:
                return f"{self._place} asks for a login: set username and password of this source"
            return f"{self._place} refuses the login: check username and password of this source"
        if isinstance(error, av.error.HTTPNotFoundError):
            path = shown_address.path(self._parts)
            return f"there is no such stream as {path!r} at {self._host}: check the path in url"
        return f"{self._place} answers with an error: {error.strerror}"

    def _connection(self, number: str) -> str:
        """Why there is no connection; empty when it is not that."""
        host = self._parts.hostname or ""
        if number == "EIO" and host and not known(host):
            return f"the name {host!r} in url cannot be resolved: check it, or use the camera's IP address"
        return {
            "ECONNREFUSED": f"nothing listens at {self._host}: check the port in url, and whether {_SWITCHED_ON}",
            "EHOSTUNREACH": f"there is no route to {self._host}: is the camera on, and in this network?",
            "ENETUNREACH": f"there is no route to {self._host}: is this machine's network up?",
            "ETIMEDOUT": f"{self._host} does not answer: is the camera on, and in this network?",
            "ECONNRESET": f"{self._place} cut the connection",
            "EPIPE": f"{self._place} cut the connection",
        }.get(number, "")

    @property
    def _place(self) -> str:
        """The address without login and query."""
        return self._path if self._local else shown_address.place(self._parts)

    @property
    def _host(self) -> str:
        return shown_address.host(self._parts)


def address(parts: SplitResult, options: StreamOptions) -> str:
    """The address as FFmpeg wants it, with the login in it."""
    if options.username is None:
        return options.url
    login = ":".join(quote(text, safe="") for text in (options.username, options.password or ""))
    return parts._replace(netloc=f"{login}@{parts.netloc}").geturl()


def known(host: str) -> bool:
    """Whether the name has an address. FFmpeg does not tell."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False
