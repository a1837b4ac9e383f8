"""An inference worker that behaves as its model's version says; it notes its start and end in the file $TRACE."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

VERSION = json.loads(Path(sys.argv[sys.argv.index("--model") + 1], "model.json").read_text())["version"]


def note(event: str) -> None:
    with Path(os.environ["TRACE"]).open("a") as trace:
        trace.write(json.dumps({"time": time.monotonic(), "event": event, "pid": os.getpid(), "model": VERSION}) + "\n")


class Probe(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = VERSION != "never-ready" or self.path != "/ready"
        self.send_response(200 if ready else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def end(*_: object) -> None:
    note("end")
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if VERSION == "deaf" else end)
note("start")
if VERSION == "crashing":
    sys.exit("cannot reach the broker")
if VERSION == "late-crash":
    threading.Timer(0.6, os._exit, [3]).start()
HTTPServer(("127.0.0.1", int(os.environ["METRICS_PORT"])), Probe).serve_forever()
