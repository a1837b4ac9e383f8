"""Days in order, whoever requested them and however many run at a time.

A candidate is not trained while a day of its window is being made: its model would depend on luck. A day is not judged
before an earlier day that is on its way: that day's verdict would come too late to count. So the step of the later day
waits, as a retry, which gives up what it holds of a pool. Nobody waits for history: only for days after the newest that
was judged, or of the window.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from typing import Final, NamedTuple

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
)

from mlops_assets.partitions import daily

QUEUE: Final = "mlops-assets/queue"
"""The tag with the queue of a run: the daemon starts a bounded number of runs of each queue at a time."""
DAYS: Final = "days"
"""The queue of whatever has not been given one: the days' runs, backfills, and what a person materializes in the UI."""
ASIDE: Final = "aside"
"""The queue of a run that gave up its place, because what it waits for is behind it in the queue of days."""

WAITS_FOR: Final = "mlops-assets/waits-for"
"""The tag that says what a run waits for, to people and to other runs; empty when it goes on."""

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


def wait_turn(context: dg.AssetExecutionContext, assets: Collection[str], days: Collection[str]) -> None:
    """Raises dg.RetryRequested while some of these days of these assets are on their way, in other runs than this."""
    waiting = pending(context.instance, context.run.run_id, assets, days) if days else []
    if not waiting:
        if _tags(context).get(WAITS_FOR):
            context.instance.add_run_tags(context.run.run_id, {WAITS_FOR: "", QUEUE: DAYS})
        return
    first = min(waiting)
    said = f"{first.asset} of {first.day}, by {first.by}"
    context.log.info(f"waiting for {said}{f', and {len(waiting) - 1} more' if len(waiting) > 1 else ''}")
    tags = {WAITS_FOR: said[:255]}
    if not any(each.running for each in waiting) and _only_waiters(context):
        tags[QUEUE] = ASIDE
    context.instance.add_run_tags(context.run.run_id, tags)
    raise dg.RetryRequested(max_retries=FOR_EVER, seconds_to_wait=WAIT_SECONDS)


def pending(
    instance: dg.DagsterInstance, own_run: str, assets: Collection[str], days: Collection[str]
) -> list[Pending]:
    """Which of these days of these assets other runs and backfills are going to make."""
    found = [
        Pending(day, asset, f"run {run.run_id}", run.status in RUNNING)
        for run in _unfinished_runs(instance)
        if run.run_id != own_run
        for asset in _assets_of(instance, run) & set(assets)
        for day in days_of(run.tags)
        if day in days and not _made_by(instance, run, asset, day)
    ]
    for backfill in instance.get_backfills(status=BulkActionStatus.REQUESTED):
        planned = _planned(instance, backfill, assets)
        found += [
            Pending(day, asset, f"backfill {backfill.backfill_id}", False) for asset, day in planned if day in days
        ]
    return found


def days_of(tags: Mapping[str, str]) -> list[str]:
    """The days that a run with these tags is for, in order."""
    if day := tags.get(PARTITION_NAME_TAG):
        return [day]
    first, last = tags.get(ASSET_PARTITION_RANGE_START_TAG), tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if not (first and last):
        return []
    return list(daily.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)))


def _unfinished_runs(instance: dg.DagsterInstance) -> Iterator[dg.DagsterRun]:
    yield from instance.get_runs(dg.RunsFilter(statuses=[*QUEUED, *RUNNING]))
    crashed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={WILL_RETRY_TAG: "true"})
    for record in instance.get_run_records(crashed, limit=20):
        recent = time.time() - (record.end_time or 0) < RETRIED_WITHIN_SECONDS
        if recent and AUTO_RETRY_RUN_ID_TAG not in record.dagster_run.tags:
            yield record.dagster_run


def _assets_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[str]:
    if run.asset_selection is not None:
        return {key.to_user_string() for key in run.asset_selection}
    events = instance.event_log_storage.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    ).records
    keys = [event.event_log_entry.dagster_event.asset_key for event in events if event.event_log_entry.dagster_event]
    return {key.to_user_string() for key in keys if key}


def _made_by(instance: dg.DagsterInstance, run: dg.DagsterRun, asset: str, day: str) -> bool:
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day])
    latest = instance.fetch_materializations(wanted, limit=1).records
    return bool(latest) and latest[0].run_id == run.run_id


def _planned(
    instance: dg.DagsterInstance, backfill: PartitionBackfill, assets: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """The assets and days that a backfill is to make and has neither made nor given up; those of its runs too."""
    if not backfill.is_asset_backfill:
        runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill.backfill_id}))
        submitted = {day for run in runs for day in days_of(run.tags)}
        for day in backfill.partition_names or ():
            if day not in submitted:
                yield from ((asset, day) for asset in assets)
        return
    if (data := backfill.asset_backfill_data) is None:
        return
    for asset in assets:
        key = dg.AssetKey(asset)
        subsets = [
            subset.get_partitions_subset(key).get_partition_keys() if key in subset.asset_keys else ()
            for subset in (data.target_subset, data.materialized_subset, data.failed_and_downstream_subset)
        ]
        targeted, *settled = map(set, subsets)
        yield from ((asset, day) for day in targeted.difference(*settled))


def _only_waiters(context: dg.AssetExecutionContext) -> bool:
    """Whether all other runs of days that have started are waiting too, so that a queued one might never start."""
    runs = context.instance.get_runs(dg.RunsFilter(statuses=list(RUNNING), tags={QUEUE: DAYS}))
    return all(run.tags.get(WAITS_FOR) for run in runs if run.run_id != context.run.run_id)


def _tags(context: dg.AssetExecutionContext) -> dict[str, str]:
    run = context.instance.get_run_by_id(context.run.run_id)
    return dict(run.tags) if run else {}


def priority(tags: Mapping[str, str]) -> str | None:
    """The priority of a run in the queue of days, None without one: older days first, backfills after all others."""
    try:
        day = date.fromisoformat(tags.get(PARTITION_NAME_TAG) or tags.get(ASSET_PARTITION_RANGE_START_TAG) or "")
    except ValueError:
        return None
    return str(-day.toordinal() - (date.max.toordinal() if BACKFILL_ID_TAG in tags else 0))
