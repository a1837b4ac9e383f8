"""The real daemon tells people: once, over a restart, a refusal and two failures that nobody was there to see."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.automation.tell_people import read_outbox
from mlops_assets.cli.dagster_server import DagsterServer, serve
from mlops_assets.resources.notifier import BASE_URL, URLS
from mlops_assets_tests.automation.endpoint import SECRET, endpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
FIRST, SECOND, THIRD = (f"2017-11-{day:02d}" for day in (6, 7, 8))


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


def test_a_failed_run_reaches_people_once_whatever_restarts_or_refuses(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with endpoint() as people:
        environment = {
            "MLOPS_ENVIRONMENT": "embedded",
            "MLOPS_HOME": str(home),
            "MLOPS_LAST_DAY": THIRD,
            URLS: people.url,
            BASE_URL: "https://dagster.example.com",
        }
        with (
            serve(home / "dagster", environment) as server,
            dg.DagsterInstance.from_config(str(home / "dagster")) as instance,
        ):
            wait_until(lambda: read_outbox(instance))
            first = fail_on(server, FIRST)
            wait_until(lambda: people.titles)
            people.status = 500
            second = fail_on(server, SECOND)
            wait_until(lambda: people.attempts == 2)
        people.status = 200
        with serve(home / "dagster", environment) as server:
            third = fail_on(server, THIRD)
            wait_until(lambda: second in "".join(people.texts) and third in "".join(people.texts), seconds=800)
        told = "".join(people.texts)
        assert all(told.count(f"https://dagster.example.com/runs/{run}") == 1 for run in (first, second, third)), told
        assert f"Run failed: daily_graph of {FIRST}" in people.titles
        logs = [path for path in (home / "dagster").rglob("*") if path.is_file()]
        assert not [path for path in logs if SECRET.encode() in path.read_bytes()]
