"""Where messages go to in tests: an HTTP server of this machine that takes them, refuses, or keeps one waiting."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "s3cr3t-t0ken"


class Endpoint(ThreadingHTTPServer):
    """Keeps what it was sent in `titles` and `texts`, and the paths of `calls` without a body.

    `status` is what it answers, after `seconds`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.seconds = 200, 0.0
        self.titles: list[str] = []
        self.texts: list[str] = []
        self.calls: list[str] = []
        self.attempts = 0

    @property
    def url(self) -> str:
        """As Apprise wants it, with secrets where services have them."""
        return f"json://user:{SECRET}@127.0.0.1:{self.server_port}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.attempts += 1
        time.sleep(self.server.seconds)
        if self.server.status == 200 and not self.server.seconds:
            self.server.titles.append(document["title"])
            self.server.texts.append(document["message"])
        self.send_response(self.server.status)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """A server that takes messages until the end of the block."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
