"""A server on loopback in place of huggingface.co, whose downloads may break off."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """files: path -> content. breaks: how many downloads still end one byte early."""

    def __init__(self, files: dict[str, bytes], breaks: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.breaks = files, breaks
        self.ranges: list[str | None] = []  # the header Range of each download
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.server.files.get(self.path.partition("?")[0])
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        part = content[int(asked.removeprefix("bytes=").rstrip("-")) :] if asked else content
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            first = len(content) - len(part)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        self.server.ranges.append(asked)
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(part[:-1])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        """Nothing: pytest shows what a failed test needs."""


@contextmanager
def hub(files: dict[str, bytes], breaks: int = 0) -> Iterator[Hub]:
    server = Hub(files, breaks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
