"""The landing files: not made here, only observed."""

import dagster as dg
from dagster import AssetKey, DagsterEventType

from mlops_assets.partitions import daily
from mlops_assets.resources.lake import LakeResource

DATA_VERSION = "dagster/data_version"


@dg.observable_source_asset(
    name="landing",
    partitions_def=daily,
    group_name="clicks",
    description="The day's clicks as they arrived: `landing/YYYY-MM-DD.csv.gz`, written by `mlops-assets import` or by "
    "whoever delivers clicks. Observing it notes which files are new or changed, by content; a changed file makes its "
    "day stale.",
)
def landing(context: dg.OpExecutionContext, lake: LakeResource) -> dg.DataVersionsByPartition:
    """The versions of the files that are new or changed since the last observation."""
    known = context.instance.event_log_storage.get_latest_tags_by_partition(
        AssetKey("landing"), DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION]
    )
    versions = lake.landing().days()
    outside = sorted(day for day in versions if not daily.has_partition_key(day))
    if outside:
        context.log.warning(f"landing files of days that are no partition, left alone: {', '.join(outside)}")
    return dg.DataVersionsByPartition(
        {
            day: version
            for day, version in versions.items()
            if day not in outside and known.get(day, {}).get(DATA_VERSION) != version
        }
    )
