"""The monitor passes Alertmanager's alerts to people, each once, and its sign of life to the dead man's switch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry, Gauge

from mlops_assets.cli.monitor import WATCHDOG_URL, Desk, Server, of_alerts
from mlops_assets.resources.notifier import URLS, Notifier
from mlops_assets_tests.automation.endpoint import SECRET, Endpoint, endpoint

FIRING: dict[str, Any] = {
    "version": "4",
    "status": "firing",
    "groupKey": "g",
    "alerts": [
        {
            "status": "firing",
            "fingerprint": "f1",
            "labels": {"alertname": "InferenceDown", "namespace": "production", "severity": "critical"},
            "annotations": {"summary": "No worker is ready", "runbook": "docs/operations.md#inferencedown"},
        }
    ],
}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with endpoint() as server:
        monkeypatch.setenv(URLS, server.url)
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), CollectorRegistry()) as made:
        made.desk = Desk(Notifier())
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def post(server: Server, path: str, **options: Any) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{server.server_port}{path}", timeout=30, **options)


def test_metrics_and_health_are_served(server: Server) -> None:
    Gauge("mlops_something", "A number", registry=server.registry).set(7)
    address = f"http://127.0.0.1:{server.server_port}"
    assert "mlops_something 7.0" in requests.get(f"{address}/metrics", timeout=10).text
    assert requests.get(f"{address}/-/healthy", timeout=10).ok
    assert requests.get(f"{address}/other", timeout=10).status_code == 404


def test_an_alert_says_where_what_and_what_to_do() -> None:
    title, text = of_alerts(FIRING)
    assert title == "Alert: InferenceDown"
    assert "InferenceDown (production): No worker is ready" in text
    assert "docs/operations.md#inferencedown" in text
    over = {**FIRING, "status": "resolved", "alerts": [{**FIRING["alerts"][0], "status": "resolved"}]}
    title, text = of_alerts(over)
    assert title == "Resolved: InferenceDown"
    assert "is over" in text


def test_many_alerts_are_one_message_that_ends() -> None:
    many = [{**FIRING["alerts"][0], "labels": {"alertname": f"A{number}"}} for number in range(90)]
    title, text = of_alerts({**FIRING, "alerts": many})
    assert title == "Alert: A0, A1, A2, and 87 more"
    assert text.endswith("and 70 more")


def test_an_alert_is_told_and_told_again_when_alertmanager_reminds(server: Server, people: Endpoint) -> None:
    assert post(server, "/alerts", json=FIRING).ok
    assert post(server, "/alerts", json=FIRING).ok
    assert people.titles == ["Alert: InferenceDown"] * 2


def test_of_two_recipients_only_who_refused_is_asked_again(
    server: Server, people: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint() as other:
        monkeypatch.setenv(URLS, f"{people.url} {other.url}")
        other.status = 500
        answer = post(server, "/alerts", json=FIRING)
        assert answer.status_code == 502
        assert SECRET not in answer.text
        other.status = 200
        assert post(server, "/alerts", json=FIRING).ok
        assert (len(people.titles), len(other.titles)) == (1, 1)


def test_what_is_no_alert_is_refused_by_name(server: Server, people: Endpoint) -> None:
    for body in (b"no JSON", b"[]", b'{"alerts": []}'):
        answer = post(server, "/alerts", data=body)
        assert answer.status_code == 400
        assert "not a webhook of Alertmanager's" in answer.text
    server.desk = None
    assert post(server, "/alerts", json=FIRING).status_code == 404
    assert people.titles == []


def test_the_watchdog_calls_the_dead_mans_switch(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    class Switch(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_response(200 if len(calls) > 1 else 500)
            self.end_headers()

    assert post(server, "/watchdog", json={}).ok  # none is set
    with ThreadingHTTPServer(("127.0.0.1", 0), Switch) as switch:
        threading.Thread(target=switch.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv(WATCHDOG_URL, f"http://127.0.0.1:{switch.server_port}/{SECRET}")
        failed = post(server, "/watchdog", json={})
        assert failed.status_code == 502
        assert SECRET not in failed.text + caplog.text
        assert post(server, "/watchdog", json={}).ok
        switch.shutdown()
    assert calls == [f"/{SECRET}"] * 2
