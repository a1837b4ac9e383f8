"""Backfills as the UI launches them, and days requested at once, with the real webserver and daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.assets.promoted_model import ledger
from mlops_assets.cli.dagster_server import DagsterServer, serve
from mlops_assets.lake.store import Lake
from mlops_assets.partitions import GRAPH
from mlops_assets.resources.environment import embedded, variables
from mlops_assets_tests.assets.graph import land
from mlops_assets_tests.integration import backfills

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAYS = [f"2017-11-{day:02}" for day in range(6, 18)]
CHOSEN = ["2017-11-07", "2017-11-08", "2017-11-11"]

RUNS = """
query { runsOrError(limit: 100) { ... on Runs { results { runId status pipelineName tags { key value } } } } }"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for day in DAYS:
        land(tmp_path, day, 3_000)
    return tmp_path


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterServer]:
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    # A world whose days go on until yesterday has thousands of later days to take along.
    environment = {name: value for name, value in variables("embedded", home).items() if name != "MLOPS_LAST_DAY"}
    with serve(home / "dagster", environment) as server:
        yield server


def launch(server: DagsterServer, **params: Any) -> dict[str, Any]:
    """A backfill with these parameters of the UI's own request, at its end."""
    backfill_id = backfills.launch(server, **params)
    while (found := backfills.look(server, backfill_id))["status"] in ("REQUESTED", "CANCELING"):
        time.sleep(2)
    return found


def counts(backfill: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Days targeted, made and failed, by asset."""
    names = ("numPartitionsTargeted", "numPartitionsMaterialized", "numPartitionsFailed")
    statuses = backfill["assetBackfillData"]["assetBackfillStatuses"]
    return {each["assetKey"]["path"][0]: tuple(each[name] for name in names) for each in statuses}


def judged(home: Path) -> list[str]:
    return [entry.day for entry in ledger(Lake(str(home / "lake"))) if entry.kind == "verdict"]


def runs_end(server: DagsterServer, runs: Sequence[str]) -> list[str]:
    while any((status := server.run(run)["status"]) not in ("SUCCESS", "FAILURE", "CANCELED") for run in runs):
        assert status
        time.sleep(2)
    return [server.run(run)["status"] for run in runs]


def test_a_backfill_from_the_ui_takes_the_chosen_days_and_judges_them_in_order(
    server: DagsterServer, home: Path
) -> None:
    assets = [{"path": [asset]} for asset in GRAPH]
    done = launch(server, assetSelection=assets, partitionNames=CHOSEN)
    assert counts(done) == dict.fromkeys(GRAPH, (3, 3, 0)), server.failures()
    assert done["status"] == "COMPLETED_SUCCESS"
    assert judged(home) == CHOSEN
    assert Lake(str(home / "lake")).days("training_set") == CHOSEN


def test_one_missing_day_of_a_backfill_costs_no_other(server: DagsterServer, home: Path) -> None:
    (home / "lake" / "landing" / f"{CHOSEN[1]}.csv.gz").unlink()
    assets = [{"path": [asset]} for asset in GRAPH]
    done = launch(server, assetSelection=assets, partitionNames=CHOSEN)
    assert counts(done) == dict.fromkeys(GRAPH, (3, 2, 1))
    assert judged(home) == [CHOSEN[0], CHOSEN[2]]
    assert any(f"landing/{CHOSEN[1]}.csv.gz is missing" in failure for failure in server.failures())


def test_a_backfill_of_a_jobs_partitions_judges_them_in_order(server: DagsterServer, home: Path) -> None:
    location = {"repositoryName": "__repository__", "repositoryLocationName": "mlops_assets.definitions"}
    selector = {"partitionSetName": "daily_graph_partition_set", "repositorySelector": location}
    done = launch(server, selector=selector, partitionNames=DAYS[:3][::-1])
    assert done["status"] == "COMPLETED_SUCCESS"
    assert judged(home) == DAYS[:3]


def test_two_days_requested_at_once_are_trained_and_judged_in_order(server: DagsterServer, home: Path) -> None:
    late = server.launch_job("daily_graph", DAYS[1])
    early = server.launch_job("daily_graph", DAYS[0])
    assert runs_end(server, [late, early]) == ["SUCCESS", "SUCCESS"], server.failures()
    assert judged(home) == DAYS[:2]
    entry = ledger(Lake(str(home / "lake")))[-1]
    assert list(entry.data_versions) == DAYS[:2], "trained on the day before"
    assert embedded(home)["mlflow"].champion().run_id == entry.run_id
