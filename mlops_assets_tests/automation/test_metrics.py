"""What Prometheus sees of Dagster's side, by the days, runs, verdicts and messages that make it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.automation import metrics
from mlops_assets.automation.metrics import Vitals, expected_days
from mlops_assets.modelling.ledger import Entry
from mlops_assets.partitions import daily
from mlops_assets.resources.lake import LakeResource

TODAY = datetime.now(UTC).date()
RAW = "raw_clicks"
Labels = dict[str, str]


def day(back: int) -> str:
    return str(TODAY - timedelta(days=back))


@dg.asset(name=RAW, partitions_def=daily)
def broken() -> None:
    raise ValueError("no file")


@dg.job(name="rollout")
def rollout() -> None:
    pass


class World:
    """An instance, a lake and what a scrape of them shows."""

    def __init__(self, instance: dg.DagsterInstance, root: Path) -> None:
        self.instance, self.lake = instance, LakeResource(root=str(root))
        self.vitals = Vitals(instance, self.lake, due_hours=9)
        self.registry = CollectorRegistry()
        self.registry.register(self.vitals)

    def scrape(self) -> dict[str, list[tuple[Labels, float]]]:
        self.vitals._seen = None
        found: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def value(self, name: str, **labels: str) -> float:
        (value,) = [value for found, value in self.scrape()[name] if labels.items() <= found.items()]
        return value

    def materialize(self, asset: str, day: str, **metadata: Any) -> None:
        event = dg.AssetMaterialization(asset, partition=day, metadata=metadata)
        self.instance.report_runless_asset_event(event)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(instance, tmp_path / "lake")


def test_a_day_is_expected_when_it_is_due_and_a_month_back() -> None:
    noon = datetime(2018, 3, 10, 12, tzinfo=UTC)
    assert expected_days(noon, 9)[-1] == "2018-03-09"
    assert expected_days(noon, 13)[-1] == "2018-03-08"
    assert len(expected_days(noon, 9)) == metrics.WINDOW_DAYS
    assert expected_days(datetime(2017, 11, 8, 12, tzinfo=UTC), 9) == ["2017-11-06", "2017-11-07"]


def test_days_that_are_late_are_counted_from_the_first_there_is(world: World) -> None:
    assert world.value("mlops_days", asset=RAW, state="late") == 0  # nothing yet: this may be a new deployment
    for back in (12, 11, 9, 8):
        world.materialize(RAW, day(back))
    expected = [each for each in expected_days(datetime.now(UTC), 9) if each > day(12)]
    assert world.value("mlops_days", asset=RAW, state="late") == len(expected) - 3
    newest = datetime.combine(TODAY - timedelta(days=8), datetime.min.time(), UTC).timestamp()
    assert world.value("mlops_newest_day_timestamp_seconds", asset=RAW) == newest


def test_a_day_whose_last_attempt_failed_is_counted_until_it_is_there(world: World) -> None:
    job = dg.Definitions(assets=[broken], jobs=[dg.define_asset_job("one", [RAW])]).resolve_job_def("one")
    job.execute_in_process(instance=world.instance, partition_key=day(3), raise_on_error=False)
    assert world.value("mlops_days", asset=RAW, state="failed") == 1
    world.materialize(RAW, day(3))
    assert world.value("mlops_days", asset=RAW, state="failed") == 0


def test_the_queue_and_the_last_runs(world: World) -> None:
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "graph"), "rollout")
    for number, status in enumerate(
        (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED)
    ):
        run = dg.DagsterRun(job_name="rollout", run_id=str(number), status=status, remote_job_origin=origin)
        world.instance.run_storage.add_run(run)
    rollout.execute_in_process(instance=world.instance)
    assert world.value("mlops_runs", status="queued") == 2
    assert world.value("mlops_runs", status="started") == 1
    assert 0 <= world.value("mlops_queue_oldest_seconds") < 60
    assert world.value("mlops_job_last_timestamp_seconds", dagster_job="rollout", status="success") == pytest.approx(
        time.time(), abs=60
    )


def test_the_champions_age_and_a_lake_that_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = datetime.now(UTC) - timedelta(days=3)
    entry = Entry(
        day=day(4),
        kind="verdict",
        decided_by="gate",
        reason="better",
        model_version="m",
        run_id="r",
        promoted=True,
        time=decided.isoformat(timespec="microseconds"),
    )
    world.lake.lake().append_record(LEDGER, entry.key, entry.as_dict())
    assert world.value("mlops_champion_timestamp_seconds", model_version="m") == pytest.approx(decided.timestamp())

    def lost(self: LakeResource) -> None:
        raise OSError("S3 does not answer")

    monkeypatch.setattr(LakeResource, "lake", lost)
    shown = world.scrape()
    assert "mlops_champion_timestamp_seconds" not in shown
    up = {labels["source"]: value for labels, value in shown["mlops_source_up"]}
    assert up.pop("champion") == 0
    assert set(up.values()) == {1}


def test_cluster_seconds_count_a_job_of_several_days_once(world: World) -> None:
    for back in (3, 2):
        world.materialize("training_set", day(back), **{"spark/cluster_seconds": 600.0, "spark/days": 2})
    assert world.value("mlops_spark_cluster_seconds_total", asset="training_set") == 600
    world.materialize("training_set", day(1), **{"spark/cluster_seconds": 300.0, "spark/days": 1})
    world.materialize("training_set", day(1))  # unchanged: no cluster
    assert world.value("mlops_spark_cluster_seconds_total", asset="training_set") == 900
    assert world.value("mlops_spark_cluster_seconds_total", asset="batch_predictions") == 0


def test_a_scrape_asks_no_more_of_the_database_after_a_thousand_runs_than_after_ten(world: World) -> None:
    asked = 0

    def count(*_: object) -> None:
        nonlocal asked
        asked += 1

    def fill(runs: int) -> int:
        nonlocal asked
        for number in range(runs):
            status = dg.DagsterRunStatus.SUCCESS if number % 7 else dg.DagsterRunStatus.FAILURE
            run = dg.DagsterRun(job_name="daily_graph", run_id=f"{runs}-{number}", status=status)
            world.instance.run_storage.add_run(run)
        asked = 0
        world.scrape()
        return asked

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", count)
    try:
        few, many = fill(10), fill(1000)
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", count)
    assert few == many


def test_two_scrapes_at_once_are_one_look(world: World) -> None:
    assert generate_latest(world.registry) == generate_latest(world.registry)
