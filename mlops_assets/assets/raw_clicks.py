"""Landing file to typed, validated clicks."""

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day
from mlops_assets.assets.quality import insist
from mlops_assets.lake.ingest import INGEST_VERSION, ingest
from mlops_assets.lake.tables import RAW_CLICKS
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.lake import LakeResource

COLUMNS = {
    "ip": "anonymised address of the click",
    "app": "id of the advertised app",
    "device": "id of the device's type",
    "os": "id of the operating system's version",
    "channel": "id of the ad publisher's channel",
    "click_time": "UTC, in whole seconds",
    "attributed_time": "UTC time of the install, where there was one",
    "is_attributed": "1 where the click led to an install",
    "arrival": "the click's number within its day, in the order of the landing file; ties of click_time are real",
}


@dg.asset(
    deps=["landing"],
    partitions_def=daily,
    backfill_policy=run_of_its_own("raw_clicks"),
    group_name="clicks",
    owners=metadata.OWNERS,
    kinds={"python", "parquet"},
    code_version=INGEST_VERSION,
    metadata={"dagster/column_schema": metadata.column_schema(RAW_CLICKS, COLUMNS)},
    description="A day's clicks, typed and validated. A line that is no click of the day is kept in a quarantine file "
    "beside the partition with its reason: lines in = rows out + rows quarantined.",
)
def raw_clicks(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult[None]:
    """Ingests each day's landing file by itself; a day that can't be read fails alone."""
    with day_by_day(context) as days:
        for day in days:
            with days.isolated(day):
                manifest = ingest(lake.landing(), lake.lake(), day)
                context.log.info(f"{day}: {manifest.rows:,} clicks")
                insist(context, lake.lake(), "raw_clicks", day)
                days.report(day, metadata.of_partition(manifest))
    return dg.MaterializeResult()
