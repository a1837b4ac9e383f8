"""The best model that could have been trained before a day, judged on that day."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import dagster as dg
import numpy as np

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day
from mlops_assets.assets.order import wait_turn
from mlops_assets.assets.training_set import training_set
from mlops_assets.assets.training_window import training_window, window_versions
from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import Model
from mlops_assets.lake.manifest import ConflictError
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.evaluation import evaluate, importance
from mlops_assets.modelling.sample import Batch, Sample, sample
from mlops_assets.partitions import TRAINING_WINDOW_DAYS, daily, run_of_its_own
from mlops_assets.partitions import training_window as window_of
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.spark.training_set import DATASET as TRAINING_SET

CODE_VERSION: Final = "2"
"""Raise it with any change to the candidates, the sample or the evaluation: days are then trained again."""

TRAINING_ROWS: Final = 1_000_000
HOLDOUT_ROWS: Final = 2_000_000
SEED: Final = 7


def made_of(days: Iterable[str]) -> dict[str, set[str]]:
    """What candidates of these days are trained and judged on: days by asset."""
    clicks = {each for day in days for each in [*window_of(day), day]}
    return {"raw_clicks": clicks, "training_set": clicks}


def data_versions(lake: Lake, day: str) -> dict[str, str]:
    """The versions of what the candidate of `day` is made of: the window's training sets, and its own day's.

    Raises MissingPartitionError without the training set of `day`.
    """
    return {**window_versions(lake, day), day: lake.require(TRAINING_SET, day).version}


def fingerprint(versions: dict[str, str]) -> str:
    """Names a candidate by what it is made of: equal input is trained once."""
    content = json.dumps([CODE_VERSION, TRAINING_ROWS, HOLDOUT_ROWS, SEED, versions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def trainable(lake: Lake, day: str) -> bool:
    """Whether the training window of `day` holds both kinds of click."""
    window = [lake.require(TRAINING_SET, each) for each in window_versions(lake, day)]
    installs = sum(int(each.metadata["installs"]) for each in window)
    return 0 < installs < sum(each.rows for each in window)


def holdout(lake: Lake, day: str) -> Sample:
    """The clicks of `day` on which candidate and champion are judged: all, or a bounded sample with every install."""
    return sample(_batches(lake, [day]), HOLDOUT_ROWS, SEED)


def _batches(lake: Lake, days: Sequence[str]) -> Iterator[Batch]:
    columns = [*FEATURES, "is_attributed", "ip"]
    for day in days:
        for batch in lake.read(TRAINING_SET, day, columns):
            arrays = [batch.column(name).to_numpy(zero_copy_only=False) for name in columns]
            *features, label, ip = arrays
            yield np.column_stack([array.astype(np.float32) for array in features]), label, ip


def train(log: logging.Logger, lake: Lake, mlflow: MLflow, day: str, dagster_run: str) -> dict[str, Any]:
    """Trains the day's candidate, unless MLflow has the one of the same data and code; judges it either way.

    Returns what people read about it.
    """
    # scikit-learn and matplotlib take five seconds to import, which every process that loads the graph would pay.
    from mlops_assets.modelling import plots
    from mlops_assets.modelling.training import NothingToLearn, train_candidate

    versions = data_versions(lake, day)
    days = list(versions)[:-1]
    tags = {"day": day, "fingerprint": fingerprint(versions)}
    run_id = mlflow.find(tags)
    with TemporaryDirectory(prefix="candidate-") as scratch:
        if run_id is not None:
            log.info(f"{day}: MLflow run {run_id} has the same data and code; nothing is trained")
            folder = mlflow.model_folder(run_id, Path(scratch))
        else:
            window = sample(_batches(lake, days), TRAINING_ROWS, SEED)
            log.info(f"{day}: training on {len(window):,} clicks of {', '.join(days) or 'no day'}")
            try:
                candidate = train_candidate(window, day=day, trained_on=days, seed=SEED)
            except NothingToLearn as reason:
                return {"algorithm": "none", "reason": str(reason)}
            if data_versions(lake, day) != versions:
                raise ConflictError(f"{day}: a training set was replaced while it was trained on; train it again")
            folder = Path(scratch)
            candidate.write(folder)
        model = Model.load(folder)
        clicks = holdout(lake, day)
        probability = model.probability(clicks.features)
        evaluation = evaluate(clicks.label, probability, SEED)
        pictures, lost = {}, importance(model.probability, clicks.features, clicks.label, SEED)
        if evaluation.mean is not None:
            pictures = {
                "roc": plots.roc(clicks.label, probability),
                "calibration": plots.calibration(clicks.label, probability, clicks.weight),
                "importance": plots.importance(lost),
            }
        if run_id is None:
            numbers = {name: value for name, value in evaluation.as_dict().items() if value is not None}
            run_id = mlflow.log_candidate(
                name=f"{day} {model.description['algorithm']}",
                tags={**tags, "model_version": model.version, "dagster_run": dagster_run},
                model=folder,
                parameters={
                    "algorithm": model.description["algorithm"],
                    "trained_on": ", ".join(days),
                    "training_rows": model.description["clicks"],
                    "training_installs": model.description["installs"],
                    "negative_rate": model.description["negative_rate"],
                    "threshold": model.threshold,
                },
                metrics={
                    **numbers,
                    **{f"selection_auc_{name}": value for name, value in model.description["selection"].items()},
                    **{f"importance_{name}": value for name, value in lost.items()},
                },
                series={"bootstrap_auc": evaluation.bootstrap.tolist()},
                plots=pictures,
            )
    url = mlflow.url(run_id)
    return {
        "algorithm": model.description["algorithm"],
        "model_version": model.version,
        "mean_bootstrap_auc": "undefined" if evaluation.mean is None else evaluation.mean,
        "clicks_judged_on": evaluation.clicks,
        "installs_judged_on": evaluation.installs,
        "trained_on": ", ".join(days),
        "training_rows": model.description["clicks"],
        "selection_auc": dg.MetadataValue.json(model.description["selection"]),
        "mlflow_run": dg.MetadataValue.url(url) if url else run_id,
        **{name: metadata.picture(png) for name, png in pictures.items()},
    }


@dg.asset(
    deps=["raw_clicks", training_set, training_window],
    partitions_def=daily,
    backfill_policy=run_of_its_own("candidate_model"),
    group_name="models",
    owners=metadata.OWNERS,
    kinds={"scikitlearn", "mlflow"},
    code_version=CODE_VERSION,
    description="The best of LogisticRegression, HistGradientBoosting and RandomForest, trained and chosen on the days "
    f"before this one ({TRAINING_WINDOW_DAYS} at most), and its ROC-AUC on this day as the mean of 100 bootstrap "
    "samples. Exported to ONNX, checked against scikit-learn, and logged to MLflow. The first day has none.",
)
def candidate_model(
    context: dg.AssetExecutionContext, lake: LakeResource, mlflow: MLflow
) -> dg.MaterializeResult[None]:
    """Trains the candidates day by day, once nobody is making a day that they are trained or judged on."""
    wait_turn(context, made_of(context.partition_keys))
    with day_by_day(context) as days:
        for day in days:
            with days.isolated(day):
                days.report(day, train(context.log, lake.lake(), mlflow, day, context.run.run_id))
    return dg.MaterializeResult()
