"""`mlops-assets monitor`: Dagster's vital signs for Prometheus, and Alertmanager's alerts to people."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import click

WATCHDOG_URL: Final = "MLOPS_WATCHDOG_URL"
"""Names the variable with the address of a dead man's switch: a service that tells people when nobody calls it."""
SECONDS: Final = 10.0
BODY: Final = 1 << 20
RETRIES_SECONDS: Final = 1800.0
"""For so long a repeated request of Alertmanager is taken for the same message, of which some recipients lack it."""
LINES: Final = 20

_log = logging.getLogger(__name__)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=9464, show_default=True, help="The port to listen on.")
@click.option("--alerts", is_flag=True, help="Also take Alertmanager's webhooks: POST /alerts and /watchdog.")
def monitor(host: str, port: int, alerts: bool) -> None:
    """Serves /metrics of Dagster's side, from the instance of DAGSTER_HOME and the lake of the environment.

    It needs neither Dagster's daemon nor its webserver, so that it can say that they are dead.
    """
    import dagster as dg
    from prometheus_client import CollectorRegistry

    from mlops_assets.automation.metrics import Vitals
    from mlops_assets.checks.freshness import DEADLINE_HOUR
    from mlops_assets.resources.environment import lake
    from mlops_assets.resources.notifier import Notifier

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with dg.DagsterInstance.get() as instance, Server((host, port), CollectorRegistry()) as server:
        server.registry.register(Vitals(instance, lake(), DEADLINE_HOUR))
        server.desk = Desk(Notifier()) if alerts else None
        click.echo(f"Dagster's vital signs: http://{host}:{server.server_port}/metrics")
        server.serve_forever()


class Desk:
    """Passes alerts on to people, and Alertmanager's sign of life to the dead man's switch."""

    def __init__(self, notifier: Any) -> None:
        self._notifier = notifier
        self._taken: dict[tuple[str, str], float] = {}

    def alerts(self, document: Mapping[str, Any]) -> None:
        """Sends one message to each recipient that has not taken it yet. Raises NotifyError if one did not take it.

        Alertmanager then asks again, until all have it.
        """
        from mlops_assets.resources.notifier import NotifyError

        title, text = of_alerts(document)
        known = [
            document.get("groupKey"),
            document["status"],
            sorted(each.get("fingerprint", "") for each in document["alerts"]),
        ]
        name, now = hashlib.sha256(json.dumps(known).encode()).hexdigest(), time.monotonic()
        self._taken = {key: at for key, at in self._taken.items() if now - at < RETRIES_SECONDS}
        troubles = []
        recipients = self._notifier.recipients()
        for recipient in recipients:
            if (name, recipient) in self._taken:
                continue
            try:
                self._notifier.send(recipient, title, text)
            except NotifyError as error:
                troubles.append(str(error))
            else:
                self._taken[name, recipient] = now
        if troubles:
            raise NotifyError("; ".join(troubles))
        for recipient in recipients:  # all have it: the next request is Alertmanager's reminder
            self._taken.pop((name, recipient), None)

    def watchdog(self) -> None:
        """Calls the dead man's switch, if there is one. Raises requests.RequestException, without the address."""
        import requests

        url = os.environ.get(WATCHDOG_URL)
        if not url:
            return
        try:
            requests.get(url, timeout=SECONDS).raise_for_status()
        except requests.RequestException as error:
            raise requests.RequestException(f"{WATCHDOG_URL}: {type(error).__name__}") from None


def of_alerts(document: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text of a webhook of Alertmanager's (version 4). Raises KeyError for what is none."""
    alerts = document["alerts"]
    names = list(dict.fromkeys(each["labels"].get("alertname", "?") for each in alerts))
    title = f"{'Resolved' if document['status'] == 'resolved' else 'Alert'}: {', '.join(names[:3])}"
    title += f", and {len(names) - 3} more" if len(names) > 3 else ""
    lines = []
    for each in alerts[:LINES]:
        labels, notes = each["labels"], each.get("annotations", {})
        where = f" ({labels['namespace']})" if labels.get("namespace") else ""
        state = " is over" if each.get("status") == "resolved" else ""
        lines.append(f"- {labels.get('alertname', '?')}{where}{state}: {notes.get('summary', '')}")
        if notes.get("runbook") and not state:
            lines.append(f"  What to do: {notes['runbook']}")
    if len(alerts) > LINES:
        lines.append(f"and {len(alerts) - LINES} more")
    return title, "\n".join(lines)


class Server(ThreadingHTTPServer):
    """Answers /metrics from its registry, and with a desk the webhooks."""

    daemon_threads = True
    desk: Desk | None = None

    def __init__(self, address: tuple[str, int], registry: Any) -> None:
        self.registry = registry
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS

    def do_GET(self) -> None:
        if self.path == "/-/healthy":
            self._answer(200, b"alive\n")
        elif self.path == "/metrics":
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            try:
                text = generate_latest(self.server.registry)
            except TimeoutError as error:
                self._answer(503, f"{error}\n".encode())
            else:
                self._answer(200, text, CONTENT_TYPE_LATEST)
        else:
            self._answer(404, b"there are /metrics and /-/healthy\n")

    def do_POST(self) -> None:
        from mlops_assets.resources.notifier import NotifyError

        if self.server.desk is None or self.path not in ("/alerts", "/watchdog"):
            self._answer(404, b"no webhook here: start with --alerts\n")
            return
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY:
            self._answer(413, b"too long\n")
            return
        body = self.rfile.read(length)
        try:
            if self.path == "/watchdog":
                self.server.desk.watchdog()
            else:
                self.server.desk.alerts(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._answer(400, f"not a webhook of Alertmanager's, version 4: {error!r}\n".encode())
        except (NotifyError, OSError) as error:  # it is asked again
            _log.warning(str(error))
            self._answer(502, f"{error}\n".encode())
        else:
            self._answer(200, b"told\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of each scrape."""
