"""Whether the newest day that is due is there. Dagster's freshness policies look at the latest materialization of any
day, so that a backfill of an old day hides a missing yesterday."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from mlops_assets.automation.run_queues import operators
from mlops_assets.partitions import FIRST_DAY, LAST_DAY
from mlops_assets.resources.environment import SCHEDULES_START

DEADLINE_HOUR: Final = 9
"""A day has to be there at this hour (UTC) of the day after it."""

WATCHED: Final = ("raw_clicks", "promoted_model")


def newest_due(now: datetime, begins: str = FIRST_DAY, ends: str | None = LAST_DAY) -> str | None:
    """The newest day whose deadline is over, None where the data begins later."""
    day = str((now - timedelta(days=1, hours=DEADLINE_HOUR)).date())
    day = min(day, ends) if ends else day
    return day if day >= begins else None


def _newest_day_is_there(asset: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, name="newest_day_is_there", description="The newest day that is due has been made.")
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        day = newest_due(datetime.now(UTC))
        filter_ = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day] if day else None)
        found = day is None or context.instance.fetch_materializations(filter_, limit=1).records
        return dg.AssetCheckResult(
            passed=bool(found), severity=dg.AssetCheckSeverity.WARN, metadata={"newest day due": day or "none"}
        )

    return check


checks: Final = [_newest_day_is_there(asset) for asset in WATCHED]

check_freshness: Final = dg.define_asset_job(
    "check_freshness",
    dg.AssetSelection.checks(*checks),
    tags=operators("check_freshness"),
    description="Looks whether the newest day that is due is there.",
)

check_freshness_daily: Final = dg.ScheduleDefinition(
    job=check_freshness, cron_schedule=f"5 {DEADLINE_HOUR} * * *", default_status=SCHEDULES_START
)
