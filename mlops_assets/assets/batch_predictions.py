"""P(install) for every click of a day."""

from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day, spark_reports
from mlops_assets.assets.promoted_model import ledger, promoted_model
from mlops_assets.assets.training_set import training_set
from mlops_assets.lake.tables import BATCH_PREDICTIONS
from mlops_assets.modelling.ledger import champion_as_of
from mlops_assets.partitions import daily, one_run_per_backfill
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.resources.spark import Spark


@dg.asset(
    deps=[training_set, promoted_model],
    partitions_def=daily,
    backfill_policy=one_run_per_backfill,
    group_name="production",
    owners=metadata.OWNERS,
    kinds={"spark", "onnx", "parquet"},
    code_version="1",
    pool="spark",
    metadata={
        "dagster/column_schema": metadata.column_schema(
            BATCH_PREDICTIONS, {"probability": "P(install) by the champion as of the day"}
        )
    },
    description="P(install) for every click of the day by the day's champion, through Spark, from the same ONNX file "
    "and the same features as the inference service.",
)
def batch_predictions(
    context: dg.AssetExecutionContext, lake: LakeResource, mlflow: MLflow, spark: dg.ResourceParam[Spark]
) -> dg.MaterializeResult[None]:
    """Scores the days champion by champion; days without one are reported so."""
    entries = ledger(lake.lake())
    days_of: dict[str, list[str]] = {}
    with day_by_day(context) as report, TemporaryDirectory(prefix="predictions-") as scratch:
        for day in sorted(context.partition_keys):
            champion = champion_as_of(entries, day)
            if champion is None:
                report(day, {"dagster/row_count": 0, "reason": "no model is promoted yet"})
            else:
                days_of.setdefault(champion.run_id, []).append(day)
        for run_id, days in days_of.items():
            model = mlflow.model_folder(run_id, Path(scratch, run_id))
            spark.predictions(lake.root, days, str(model), *spark_reports(report))
    return dg.MaterializeResult()
