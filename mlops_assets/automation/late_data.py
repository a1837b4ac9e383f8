"""Clicks that arrive late: a changed landing file makes its day stale, and just that day is materialized again."""

from typing import Final

import dagster as dg

from mlops_assets.automation.daily import daily_graph
from mlops_assets.automation.run_queues import operators
from mlops_assets.partitions import daily
from mlops_assets.resources.environment import SCHEDULES_START

EVENTS_PER_TICK: Final = 200

observe_landing = dg.define_asset_job(
    "observe_landing",
    selection=["landing"],
    tags=operators("observe_landing"),
    description="Lists the landing files and notes which of them are new or changed.",
)

observe_landing_hourly = dg.ScheduleDefinition(
    job=observe_landing,
    cron_schedule="15 * * * *",
    default_status=SCHEDULES_START,
    description="The listing runs in a job, since that of a large bucket can outlast a sensor's tick.",
)


@dg.sensor(job=daily_graph, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def late_data(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Requests a day again when its landing file was seen to change.

    What is there when the sensor is first turned on is history, for a backfill to take up; it only sets the cursor.
    """
    landing = dg.AssetKey("landing")
    if context.cursor is None:
        latest = context.instance.fetch_observations(landing, limit=1).records
        return dg.SensorResult(cursor=str(latest[0].storage_id if latest else 0), skip_reason="from now on")
    since = dg.AssetRecordsFilter(asset_key=landing, after_storage_id=int(context.cursor))
    records = context.instance.fetch_observations(since, limit=EVENTS_PER_TICK, ascending=True).records
    if not records:
        return dg.SkipReason("no landing file changed")
    # A later change of the same day replaces an earlier one. The observation's number makes the run key: a file that
    # changes back to what it once was must be taken up again, and Dagster remembers a run key for ever.
    changed = {record.partition_key: record.storage_id for record in records if record.partition_key}
    requests = [
        dg.RunRequest(run_key=f"{day}:{observation}", partition_key=day)
        for day, observation in sorted(changed.items())
        if daily.has_partition_key(day)
    ]
    return dg.SensorResult(run_requests=requests, cursor=str(records[-1].storage_id))
