"""P(install) for every click of a day."""

from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day, spark_reports
from mlops_assets.assets.promoted_model import ledger, promoted_model
from mlops_assets.assets.training_set import training_set
from mlops_assets.lake.tables import BATCH_PREDICTIONS
from mlops_assets.modelling.ledger import replay
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.resources.spark import Spark


@dg.asset(
    deps=["raw_clicks", training_set, "candidate_model", promoted_model],
    partitions_def=daily,
    backfill_policy=run_of_its_own("batch_predictions"),
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
    with day_by_day(context) as days, TemporaryDirectory(prefix="predictions-") as scratch:
        standing = replay(ledger(lake.lake()))
        scored_by: dict[str, list[str]] = {}
        for day in days:
            champion = standing.as_of(day)
            if champion is None:
                days.report(day, {"dagster/row_count": 0, "reason": "no model is promoted yet"})
            else:
                scored_by.setdefault(champion.run_id, []).append(day)
        for run_id, its_days in scored_by.items():
            with days.spark_job(its_days):
                model = mlflow.model_folder(run_id, Path(scratch, run_id))
                spark.predictions(lake.root, its_days, str(model), *spark_reports(days))
    return dg.MaterializeResult()
