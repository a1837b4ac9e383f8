"""An HTTP proxy between a client and one server, which breaks the requests that a test names."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["refuse", "hang", "lose the answer", "cut the answer"] | int
"""A number is the status that the proxy answers itself."""
Plan = Callable[[str, str], Fault | None]
"""Given a request's method and path, what goes wrong with it."""

HANG_SECONDS = 30
REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.is_secure = urlsplit(target).netloc, target.startswith("https:")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.plan: Plan = lambda method, path: None
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up, as some are made to."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.plan(self.command, self.path)
        if fault == "hang":
            self.server.closing.wait(HANG_SECONDS)
            self.close_connection = True
            return
        if fault == "refuse":
            self.answer(503, {"Content-Type": "application/xml"}, REFUSAL)
            return
        if isinstance(fault, int):
            self.answer(fault, {"Content-Type": "application/json"}, b"{}")
            return
        there: http.client.HTTPConnection
        if self.server.is_secure:  # the certificate is another test's business
            unverified = ssl._create_unverified_context()
            there = http.client.HTTPSConnection(self.server.target, timeout=60, context=unverified)
        else:
            there = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            there.request(self.command, self.path, body, headers)  # with the Host that the client signed
            response = there.getresponse()
            content = response.read()
        finally:
            there.close()
        if fault == "lose the answer":
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        sent = content[: len(content) // 2] if fault == "cut the answer" else content
        self.answer(response.status, dict(response.getheaders()), sent, len(content))
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], content: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        if self.command == "HEAD":
            length = int(headers.get("Content-Length", 0))
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do_DELETE = forward  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    with Proxy(target) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield running
        finally:
            running.closing.set()
            running.shutdown()
            thread.join()


def first(times: int, fault: Fault, method: str, part: str) -> Plan:
    """The first requests with that method and that part of their path go wrong so."""
    left = iter(range(times))
    lock = threading.Lock()

    def plan(requested: str, path: str) -> Fault | None:
        with lock:
            return fault if requested == method and part in path and next(left, None) is not None else None

    return plan
