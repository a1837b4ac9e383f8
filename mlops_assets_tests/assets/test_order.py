"""Days in order: what a run waits for, and for what it does not. test_days_in_order.py sees it with the real daemon."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.assets.order import DAYS, QUEUE, WAITS_FOR, Pending, days_of, pending, priority
from mlops_assets.definitions import defs

EARLY, LATE = "2017-11-06", "2017-11-07"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    folder = tmp_path / "instance"
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as found:
        yield found


def requested(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, day: str, assets: tuple[str, ...] | None = None
) -> str:
    job = defs.resolve_job_def("daily_graph")
    selection = frozenset(dg.AssetKey(asset) for asset in assets) if assets else None
    made = instance.create_run_for_job(
        job.get_subset(asset_selection=selection) if selection else job,
        status=status,
        tags={"dagster/partition": day, QUEUE: DAYS},
        asset_selection=selection,
    )
    return made.run_id


def made(instance: dg.DagsterInstance, run: str, asset: str) -> None:
    event = StepMaterializationData(dg.AssetMaterialization(asset, partition=EARLY))
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.ASSET_MATERIALIZATION.value, "daily_graph", event_specific_data=event), run
    )


def test_a_day_that_a_run_makes_is_pending_for_the_others_until_it_is_made(instance: dg.DagsterInstance) -> None:
    early = requested(instance, dg.DagsterRunStatus.STARTED, EARLY)
    clicks = {"raw_clicks": [EARLY, LATE], "training_set": [EARLY, LATE]}
    assert set(pending(instance, "another", clicks)) == {
        Pending(EARLY, asset, f"run {early}", running=True) for asset in clicks
    }
    assert not pending(instance, early, clicks), "a run does not wait for itself"
    made(instance, early, "training_set")
    left = pending(instance, "another", {"training_set": [EARLY], "promoted_model": [EARLY]})
    assert [each.asset for each in left] == ["promoted_model"]


def test_runs_of_the_same_day_do_not_wait_for_one_another_for_ever(instance: dg.DagsterInstance) -> None:
    runs = [requested(instance, dg.DagsterRunStatus.STARTED, EARLY) for _ in range(3)]
    for run in runs:
        made(instance, run, "training_set")
    assert not any(pending(instance, run, {"training_set": [EARLY]}) for run in runs)


def test_what_waits_itself_is_not_working(instance: dg.DagsterInstance) -> None:
    early = requested(instance, dg.DagsterRunStatus.STARTED, EARLY)
    instance.add_run_tags(early, {WAITS_FOR: "promoted_model of an earlier day"})
    assert [each.running for each in pending(instance, "another", {"promoted_model": [EARLY]})] == [False]


def test_a_range_of_other_partitions_than_days_is_no_days() -> None:
    assert days_of({"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}) == []
    tags = {"dagster/asset_partition_range_start": "2017-11-30", "dagster/asset_partition_range_end": "2017-12-02"}
    assert days_of(tags) == ["2017-11-30", "2017-12-01", "2017-12-02"]


@pytest.mark.parametrize(
    ("status", "waits"),
    [("NOT_STARTED", True), ("STARTED", True), ("SUCCESS", False), ("FAILURE", False), ("CANCELED", False)],
)
def test_a_requested_run_is_waited_for_and_one_that_ended_is_not(
    instance: dg.DagsterInstance, status: str, waits: bool
) -> None:
    requested(instance, dg.DagsterRunStatus[status], EARLY, ("promoted_model",))
    assert bool(pending(instance, "x", {"promoted_model": [EARLY]})) == waits
    assert not pending(instance, "x", {"training_set": [EARLY]}), "it makes no training set"


@given(st.lists(st.dates(), min_size=2, max_size=6))
def test_older_days_come_first(days: list[date]) -> None:
    by_queue = sorted(days, key=lambda day: -int(priority({"dagster/partition": str(day)}) or 0))
    assert by_queue == sorted(days)


def test_a_run_of_no_day_has_no_priority() -> None:
    assert priority({}) is None
    assert priority({"dagster/partition": "3"}) is None
