"""Days in order: what a run waits for, and for what it does not. test_days_in_order.py sees it with the real daemon."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.assets.order import DAYS, QUEUE, Pending, pending, priority
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


def test_a_day_that_a_run_makes_is_pending_for_the_others_until_it_is_made(instance: dg.DagsterInstance) -> None:
    early = requested(instance, dg.DagsterRunStatus.STARTED, EARLY)
    clicks = ["raw_clicks", "training_set"]
    assert set(pending(instance, "another", clicks, [EARLY, LATE])) == {
        Pending(EARLY, asset, f"run {early}", running=True) for asset in clicks
    }
    assert not pending(instance, early, clicks, [EARLY]), "a run does not wait for itself"
    made = StepMaterializationData(dg.AssetMaterialization("training_set", partition=EARLY))
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.ASSET_MATERIALIZATION.value, "daily_graph", event_specific_data=made), early
    )
    left = pending(instance, "another", ["training_set", "promoted_model"], [EARLY])
    assert [each.asset for each in left] == ["promoted_model"]


@pytest.mark.parametrize(
    ("status", "waits"),
    [("NOT_STARTED", True), ("STARTED", True), ("SUCCESS", False), ("FAILURE", False), ("CANCELED", False)],
)
def test_a_requested_run_is_waited_for_and_one_that_ended_is_not(
    instance: dg.DagsterInstance, status: str, waits: bool
) -> None:
    requested(instance, dg.DagsterRunStatus[status], EARLY, ("promoted_model",))
    assert bool(pending(instance, "x", ["promoted_model"], [EARLY])) == waits
    assert not pending(instance, "x", ["training_set"], [EARLY]), "it makes no training set"


@given(st.lists(st.tuples(st.dates(), st.booleans()), min_size=2, max_size=6))
def test_older_days_come_first_and_backfills_last(days: list) -> None:  # type: ignore[type-arg]
    def tags(day: object, backfill: bool) -> dict[str, str]:
        return {"dagster/partition": str(day), **({"dagster/backfill": "b"} if backfill else {})}

    by_queue = sorted(days, key=lambda each: -int(priority(tags(*each)) or 0))
    assert by_queue == sorted(days, key=lambda each: (each[1], each[0]))


def test_a_run_of_no_day_has_no_priority() -> None:
    assert priority({}) is None
    assert priority({"dagster/partition": "3"}) is None
