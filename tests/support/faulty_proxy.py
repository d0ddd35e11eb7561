"""A proxy in front of a test's object store that alters what it sends: for tests of transfers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDLESS = 512 * 2**20  # bytes of an answer that does not end, so that a test ends


class FaultyProxy:
    """`alter` changes the answers to GET for objects whose key ends with `of`; `altered` counts them."""

    def __init__(self, endpoint: str) -> None:
        self.host = endpoint.removeprefix("http://")
        self.alter: Callable[[bytes], bytes] | None = None
        self.of = ""
        self.endless = False
        self.altered = 0
        self.sent = 0  # bytes of endless answers
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        store = http.client.HTTPConnection(self.proxy.host)
        # The host stays that of the proxy, which the client has signed.
        store.request(self.command, self.path, body=body, headers=dict(self.headers))
        answer = store.getresponse()
        data = answer.read()
        key = self.path.partition("?")[0]
        faulty = self.command == "GET" and answer.status < 300 and key.endswith(self.proxy.of)
        if faulty and (self.proxy.alter or self.proxy.endless):
            self.proxy.altered += 1
            data = self.proxy.alter(data) if self.proxy.alter else data
        self.send_response(answer.status)
        length = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if faulty and self.proxy.endless:
            self.send_header("Connection", "close")
            self.end_headers()
            self.send_endlessly(data)
            return
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def send_endlessly(self, data: bytes) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client has enough
            self.wfile.write(data)
            for _ in range(ENDLESS // 2**20):
                self.wfile.write(bytes(2**20))
                self.proxy.sent += 2**20

    def log_message(self, *_: object) -> None:
        pass
