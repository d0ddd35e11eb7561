"""A webhook on loopback: what was sent to it, and answers as a test wants them."""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Webhook:
    """Answers with these statuses, one a request, then 200; `got` is (content type, body) of each request."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[str, Any]] = []
        answers = itertools.chain(statuses, itertools.repeat(200))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                size = int(handler.headers["Content-Length"])
                self.got.append((handler.headers["Content-Type"], json.loads(handler.rfile.read(size))))
                handler.send_response(next(answers))
                handler.end_headers()

            def log_message(handler, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/s3cret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
