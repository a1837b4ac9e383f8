"""The real daemon tells people once, whatever refuses or restarts; the monitor still answers when it is dead."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import requests

from mlops_assets.automation.tell_people import read_outbox
from mlops_assets.cli.dagster_server import DagsterServer, free_port, serve
from mlops_assets.cli.servers import serving
from mlops_assets.resources.notifier import BASE_URL, URLS
from mlops_assets_tests.automation.endpoint import SECRET, endpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
FIRST, SECOND = "2017-11-06", "2017-11-07"


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def fail_on(server: DagsterServer, day: str) -> str:
    """A run of a day whose file has not landed."""
    run = server.launch_job("daily_graph", day)
    wait_until(lambda: server.run(run)["status"] == "FAILURE")
    return run


@contextmanager
def monitor(environment: Mapping[str, str], home: Path) -> Iterator[str]:
    """`mlops-assets monitor` on the instance, and where its metrics are."""
    port = free_port()
    command = [sys.executable, "-c", "from mlops_assets.cli import main; main()", "monitor", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with serving(
        command, home / "monitor.log", {**os.environ, **environment, "DAGSTER_HOME": str(home)}, lambda: healthy(url)
    ):
        yield f"{url}/metrics"


def healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/-/healthy", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_people_are_told_once_over_refusals_and_a_restart_and_the_monitor_outlives_the_daemon(tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    with endpoint() as people:
        environment = {
            "MLOPS_ENVIRONMENT": "embedded",
            "MLOPS_HOME": str(tmp_path),
            "MLOPS_LAST_DAY": SECOND,
            URLS: people.url,
            BASE_URL: "https://dagster.example.com",
        }
        people.status = 500
        with serve(home, environment) as server, dg.DagsterInstance.from_config(str(home)) as instance:
            wait_until(lambda: read_outbox(instance))
            runs = [fail_on(server, FIRST)]
            wait_until(lambda: people.attempts)
            runs.append(fail_on(server, SECOND))
        people.status = 200
        with serve(home, environment), dg.DagsterInstance.from_config(str(home)) as instance:
            wait_until(lambda: any(title.startswith("Run failed") for title in people.titles))
            looked = looked_at(instance)
            wait_until(lambda: looked_at(instance) > looked + 31)  # once more, with nothing new
        # The days are late as well, since their clicks have not landed: that is a message of its own.
        failures = [text for title, text in zip(people.titles, people.texts, strict=True) if "Run failed" in title]
        assert [title for title in people.titles if "is late" not in title] == [
            f"Run failed: daily_graph of {FIRST}, and 1 more"
        ]
        assert all(failures[0].count(f"https://dagster.example.com/runs/{run}") == 1 for run in runs)
        with monitor(environment, home) as url:  # and no daemon
            shown = requests.get(url, timeout=60).text
        assert 'mlops_daemon_heartbeat_timestamp_seconds{daemon="SENSOR"}' in shown
        assert f"mlops_messages_sent_total {len(people.titles)}.0" in shown
        assert 'mlops_days{asset="raw_clicks",state="failed"}' in shown
        up = [line for line in shown.splitlines() if line.startswith("mlops_source_up{")]
        assert up
        assert all(line.endswith(" 1.0") for line in up), up
        logs = [path for path in home.rglob("*") if path.is_file()]
        assert not [path for path in logs if SECRET.encode() in path.read_bytes()]


def looked_at(instance: dg.DagsterInstance) -> float:
    found = read_outbox(instance)
    return found.looked_at if found else 0.0
