"""Days in order, whoever requested them and however many run at a time.

A candidate is not trained while a day of its window is being made: its model would depend on luck. A day is not judged
before an earlier day that is on its way: that day's verdict would come too late to count. So the step of the later day
waits, as a retry, which gives up what it holds of a pool. Nobody waits for history: only for days after the newest that
was judged, or of the window.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date, timedelta
from typing import Final, NamedTuple

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
)

QUEUE: Final = "mlops-assets/queue"
"""The tag with the queue of a run: the daemon starts a bounded number of runs of each queue at a time."""
DAYS: Final = "days"
"""The queue of whatever has not been given one: the days' runs, and what a person materializes in the UI."""
BACKFILLS: Final = "backfills"
ASIDE: Final = "aside"
"""The queue of a run that gave up its place, because what it waits for is behind it in the queue of days."""

WAITS_FOR: Final = "mlops-assets/waits-for"
"""The tag that says what a run waits for, to people and to other runs; empty when it goes on."""

DAYS_OF_JOB: Final = "daily_graph_partition_set"
HALF_A_DAY: Final = 43_200
"""How long a run may take by `max_runtime_seconds` of dagster.yaml."""
WAIT_SECONDS: Final = 10.0
FOR_EVER: Final = 1_000_000  # run monitoring ends a run that waits too long
RETRIED_WITHIN_SECONDS: Final = 600
"""A run that crashed is started again by the daemon within this time, or never."""

QUEUED: Final = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
RUNNING: Final = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


class Pending(NamedTuple):
    """A day of an asset that somebody is going to make: `by` a run that is `running` or not, or a backfill."""

    day: str
    asset: str
    by: str
    running: bool


def wait_turn(context: dg.AssetExecutionContext, wanted: Mapping[str, Collection[str]]) -> None:
    """Raises dg.RetryRequested while other runs or backfills than this run are going to make what is wanted.

    `wanted` holds the days by asset.
    """
    instance, run_id = context.instance, context.run.run_id
    waiting = pending(instance, run_id, wanted)
    record = instance.get_run_record_by_id(run_id)
    tags = dict(record.dagster_run.tags) if record else {}
    if not waiting:
        if tags.get(WAITS_FOR):
            queue = queue_of(tags) if tags.get(QUEUE) == ASIDE else tags[QUEUE]
            instance.add_run_tags(run_id, {WAITS_FOR: "", QUEUE: queue})
        return
    first = min(waiting)
    said = f"{first.asset} of {first.day}, by {first.by}"
    context.log.info(f"waiting for {said}{f', and {len(waiting) - 1} more' if len(waiting) > 1 else ''}")
    new = {WAITS_FOR: said[:255]}
    if not any(each.running for each in waiting) and _only_waiters(instance, run_id, tags.get(QUEUE, DAYS)):
        new[QUEUE] = ASIDE
    if record and record.start_time:
        new |= _time_to_wait(tags, time.time() - record.start_time)
    if changed := {name: value for name, value in new.items() if tags.get(name) != value}:
        instance.add_run_tags(run_id, changed)
    raise dg.RetryRequested(max_retries=FOR_EVER, seconds_to_wait=WAIT_SECONDS)


def pending(instance: dg.DagsterInstance, own_run: str, wanted: Mapping[str, Collection[str]]) -> list[Pending]:
    """Which of the days that are wanted of each asset other runs and backfills are going to make."""
    sought = {asset: set(days) for asset, days in wanted.items() if days}
    if not sought:
        return []
    found = []
    unfinished = [run for run in _unfinished_runs(instance) if run.run_id != own_run]
    for run in unfinished:
        days = set(days_of(run.tags))
        if not any(days & each for each in sought.values()):
            continue
        made = _of_run(instance, run, dg.DagsterEventType.ASSET_MATERIALIZATION)
        # A run that waits itself does not work: what it waits for may be behind it in the queue.
        working = run.status in RUNNING and not run.tags.get(WAITS_FOR)
        for asset in {asset for asset, _ in _of_run(instance, run, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)}:
            left = sorted(day for day in days & sought.get(asset, set()) if (asset, day) not in made)
            found += [Pending(day, asset, f"run {run.run_id}", working) for day in left]
    for backfill in instance.get_backfills(status=BulkActionStatus.REQUESTED):
        under_way = {
            day
            for run in unfinished
            if run.tags.get(BACKFILL_ID_TAG) == backfill.backfill_id
            for day in days_of(run.tags)
        }
        by = f"backfill {backfill.backfill_id}"
        planned = _planned(instance, backfill, sought, under_way)
        found += [Pending(day, asset, by, running=False) for asset, day in planned if day in sought[asset]]
    return found


def days_of(tags: Mapping[str, str]) -> list[str]:
    """The days that a run with these tags is for, in order."""
    if day := tags.get(PARTITION_NAME_TAG):
        return [day]
    try:
        first = date.fromisoformat(tags.get(ASSET_PARTITION_RANGE_START_TAG, ""))
        last = date.fromisoformat(tags.get(ASSET_PARTITION_RANGE_END_TAG, ""))
    except ValueError:  # none, or of assets that have other partitions than days
        return []
    return [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]


def queue_of(tags: Mapping[str, str]) -> str:
    """The queue of a run that no job has given one. Backfills have their own: what is due today must not wait."""
    return BACKFILLS if BACKFILL_ID_TAG in tags else DAYS


def _unfinished_runs(instance: dg.DagsterInstance) -> Iterator[dg.DagsterRun]:
    yield from instance.get_runs(dg.RunsFilter(statuses=[*QUEUED, *RUNNING]))
    crashed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={WILL_RETRY_TAG: "true"})
    for record in instance.get_run_records(crashed, limit=20):
        recent = time.time() - (record.end_time or 0) < RETRIED_WITHIN_SECONDS
        if recent and AUTO_RETRY_RUN_ID_TAG not in record.dagster_run.tags:
            yield record.dagster_run


def _of_run(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType) -> set[tuple[str, str | None]]:
    """The assets and partitions that the run has materialized, or plans to; the plan of a range names no partition."""
    records = instance.event_log_storage.get_records_for_run(run.run_id, of_type=kind).records
    events = [record.event_log_entry.dagster_event for record in records]
    return {(event.asset_key.to_user_string(), event.partition) for event in events if event and event.asset_key}


def _planned(
    instance: dg.DagsterInstance, backfill: PartitionBackfill, assets: Iterable[str], under_way: Collection[str]
) -> Iterator[tuple[str, str]]:
    """The assets and days that a backfill is to make and has neither made nor given up; those of its runs too.

    Dagster counts a day as given up also while a run of it that crashed is tried again: such days are `under_way`.
    """
    if not backfill.is_asset_backfill:
        if backfill.partition_set_name != DAYS_OF_JOB:
            return
        runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill.backfill_id}))
        submitted = {day for run in runs for day in days_of(run.tags)}
        for day in backfill.partition_names or ():
            if day not in submitted:
                yield from ((asset, day) for asset in assets)
        return
    if (data := backfill.asset_backfill_data) is None:
        return
    for asset in assets:
        targeted, made, given_up = (
            _days(subset, asset)
            for subset in (data.target_subset, data.materialized_subset, data.failed_and_downstream_subset)
        )
        yield from ((asset, day) for day in targeted - made - (given_up - set(under_way)))


def _days(subset: AssetGraphSubset, asset: str) -> set[str]:
    key = dg.AssetKey(asset)
    return set(subset.get_partitions_subset(key).get_partition_keys()) if key in subset.asset_keys else set()


def _only_waiters(instance: dg.DagsterInstance, own_run: str, queue: str) -> bool:
    """Whether all other runs of the queue that have started are waiting too, so that a queued one might never start."""
    runs = instance.get_runs(dg.RunsFilter(statuses=list(RUNNING), tags={QUEUE: queue}))
    return all(run.tags.get(WAITS_FOR) for run in runs if run.run_id != own_run)


def _time_to_wait(tags: Mapping[str, str], elapsed: float) -> dict[str, str]:
    """The tag that gives a run more time: run monitoring counts waiting as running."""
    limit = float(tags.get(MAX_RUNTIME_SECONDS_TAG, HALF_A_DAY))
    return {MAX_RUNTIME_SECONDS_TAG: str(int(elapsed) + 2 * HALF_A_DAY)} if limit - elapsed < HALF_A_DAY / 2 else {}


def priority(tags: Mapping[str, str]) -> str | None:
    """The priority of a run of days in its queue, None without a day: older days first."""
    try:
        day = date.fromisoformat(tags.get(PARTITION_NAME_TAG) or tags.get(ASSET_PARTITION_RANGE_START_TAG) or "")
    except ValueError:
        return None
    return str(-day.toordinal())
