"""Clicks to features, on Spark."""

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day, spark_reports
from mlops_assets.assets.quality import insist
from mlops_assets.assets.raw_clicks import raw_clicks
from mlops_assets.assets.training_window import observe_windows
from mlops_assets.lake.tables import TRAINING_SET
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.spark import Spark
from mlops_assets.spark.training_set import FEATURES_VERSION

GROUPED_BY = {
    "ip_count": ("ip",),
    "ip_day_hour": ("ip",),
    "ip_hour_channel": ("ip", "channel"),
    "ip_hour_os": ("ip", "os"),
    "ip_hour_app": ("ip", "app"),
    "ip_hour_device": ("ip", "device"),
}
COLUMNS = {
    "arrival": "the click's number within its day",
    "hour": "hour of the click, UTC",
    "day_of_week": "Monday = 0, UTC",
    "ip_count": "clicks of this ip so far in the UTC day, this one included",
    **{
        name: f"clicks with the same {' and '.join(keys)} so far in the UTC hour, this one included"
        for name, keys in GROUPED_BY.items()
        if name != "ip_count"
    },
}
ORIGINS = {
    **{name: (name,) for name in ("arrival", "click_time", "ip", "app", "device", "os", "channel", "is_attributed")},
    "hour": ("click_time",),
    "day_of_week": ("click_time",),
    **{name: (*keys, "click_time", "arrival") for name, keys in GROUPED_BY.items()},
}


@dg.asset(
    deps=[raw_clicks],
    partitions_def=daily,
    backfill_policy=run_of_its_own("training_set"),
    group_name="clicks",
    owners=metadata.OWNERS,
    kinds={"spark", "parquet"},
    code_version=FEATURES_VERSION,
    pool="spark",
    metadata={
        "dagster/column_schema": metadata.column_schema(TRAINING_SET, COLUMNS),
        "dagster/column_lineage": metadata.column_lineage("raw_clicks", ORIGINS),
    },
    description="A day's clicks with their features. The grouped counts are causal: they see the clicks that arrived "
    "up to and including this one, never the future and never the label. One Spark cluster for all days of a backfill.",
)
def training_set(
    context: dg.AssetExecutionContext, lake: LakeResource, spark: dg.ResourceParam[Spark]
) -> dg.MaterializeResult[None]:
    """Runs the Spark application for all days; days whose input did not change are kept as they are."""
    with day_by_day(context) as days:
        store, fit = lake.lake(), []
        for day in days:
            with days.isolated(day):
                insist(context, store, "raw_clicks", day)
                fit.append(day)
        with days.spark_job(fit):
            follow = context.job_def.has_node_named("batch_predictions")  # in this very run
            spark.training_set(lake.root, fit, *spark_reports(days), then_predictions=follow)
        for day in days.made:
            with days.isolated(day):
                insist(context, store, "training_set", day)
        observe_windows(context, store, days.made)
    return dg.MaterializeResult()
