"""/live, /ready and /metrics over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[bool, str]
"""Whether all is well, and what there is to say about it."""


def serve(
    host: str, port: int, live: Callable[[], Answer], ready: Callable[[], Answer], metrics: Callable[[], bytes]
) -> ThreadingHTTPServer:
    """Answers on `port` (0: a free one) from a thread of its own until `shutdown`. Raises OSError if it is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, metrics())
            elif self.path in ("/live", "/ready"):
                good, text = live() if self.path == "/live" else ready()
                self._answer(200 if good else 503, f"{text}\n".encode())
            else:
                self._answer(404, b"/live, /ready or /metrics\n")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds: nothing to log."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    return server
