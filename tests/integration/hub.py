"""A model hub on loopback: enough of the protocol of huggingface.co for huggingface_hub, with its accidents.

As the real one does with large files, a HEAD of `/OWNER/REPO/resolve/COMMIT/PATH` answers with a redirect to a
content server (another origin), and with the content's sha256 and size in `X-Linked-Etag` and `X-Linked-Size`
(huggingface_hub, file_download.py: get_hf_file_metadata). Every request is kept, with what was sent of its answer.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

REPOSITORY, COMMIT = "someone/some-model", "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 64 << 10


@dataclass
class Asked:
    """One request, and how much of the answer went out."""

    server: str
    """`hub` or `content`."""
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent_bytes: int = 0


@dataclass
class Answers:
    """What the servers have, and what goes wrong."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Path in the repository → content."""
    commit: str = COMMIT
    """What the hub says the commit is."""
    status: int | None = None
    """Of every answer of the hub, if it refuses."""
    needs_token: str | None = None
    size_offset: int = 0
    """Added to the size that the hub announces."""
    etag: str | None = None
    """Instead of the content's sha256."""
    damage: bool = False
    """The content server sends other bytes than it should."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next answers of the content server are cut."""
    redirects: bool = True
    """Whether content comes from another origin."""


class Hub:
    """The two servers, running while in `with`."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.asked: list[Asked] = []
        self._hub, self._content = _Server(self, "hub"), _Server(self, "content")

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return self._hub.origin

    @property
    def content_origin(self) -> str:
        """Where the redirects lead."""
        return self._content.origin

    def gets(self) -> list[Asked]:
        """Requests that ask for content."""
        return [asked for asked in self.asked if asked.method == "GET"]

    def __enter__(self) -> Self:
        for server in (self._hub, self._content):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._hub, self._content):
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name = hub, name
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the requests are kept."""

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked = Asked(self.server.name, self.command, self.path, headers)
        self.server.hub.asked.append(self.asked)
        path = urlsplit(self.path).path
        if self.server.name == "hub":
            self._hub(path)
        else:
            self._content(path.removeprefix("/content/"))

    def _hub(self, path: str) -> None:
        answers = self.server.hub.answers
        if answers.status is not None:
            self._plain(answers.status, {})
            return
        if answers.needs_token and self.asked.headers.get("authorization") != f"Bearer {answers.needs_token}":
            self._plain(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        content = answers.files.get(name)
        if content is None:
            self._plain(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": answers.commit})
            return
        size = len(content) + answers.size_offset
        digest = answers.etag or hashlib.sha256(content).hexdigest()
        common = {"X-Repo-Commit": answers.commit, "X-Linked-Size": str(size), "X-Linked-Etag": f'"{digest}"'}
        if answers.redirects:
            location = f"{self.server.hub.content_origin}/content/{name}?signature=abc"
            self._plain(302, common | {"Location": location})
        else:
            self._send(content, common | {"ETag": f'"{digest}"'})

    def _content(self, name: str) -> None:
        content = self.server.hub.answers.files[name]
        if self.server.hub.answers.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(content, {"ETag": '"of-the-content-server"'})

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        """A content, or what is behind the start of a Range; cut if that is on the list."""
        wanted = self.asked.headers.get("range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.asked.status = 206 if wanted else 200
        self.send_response(self.asked.status)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in (headers | {"Accept-Ranges": "bytes", "Content-Length": str(len(content) - start)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.server.hub.answers.cuts
        end = min(len(content), start + cuts.pop(0)) if cuts else len(content)
        for begin in range(start, end, PIECE_BYTES):
            piece = content[begin : min(begin + PIECE_BYTES, end)]
            self.wfile.write(piece)
            self.asked.sent_bytes += len(piece)
        if end < len(content):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
