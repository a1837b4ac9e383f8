"""Checks of what goes into production."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import dagster as dg
import numpy as np

from mlops_assets.assets.candidate_model import data_versions, fingerprint, holdout
from mlops_assets.assets.deployed_image import recorded_image
from mlops_assets.assets.promoted_model import GATE, ledger, production_champion
from mlops_assets.assets.quality import Judgement
from mlops_assets.assets.thresholds import THRESHOLDS, Thresholds
from mlops_assets.checks.clicks import day_by_day
from mlops_assets.inference.model import Model, ModelError
from mlops_assets.lake.ingest import DATASET as RAW_CLICKS
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.evaluation import auc
from mlops_assets.modelling.ledger import Entry, champion_as_of, verdict_of
from mlops_assets.partitions import daily
from mlops_assets.resources.images import ImageError, Images
from mlops_assets.resources.inference import FleetStatus, InferenceFleet
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.spark.predictions import DATASET as BATCH_PREDICTIONS


@dg.asset_check(asset="candidate_model", partitions_def=daily, blocking=True)
def onnx_answers_as_trained(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, mlflow: MLflow
) -> dg.AssetCheckResult:
    """The ONNX model, as MLflow gives it back, answers its golden rows with the probabilities it was trained to."""

    def judge(day: str) -> Judgement:
        run_id = mlflow.find({"day": day, "fingerprint": fingerprint(data_versions(lake.lake(), day))})
        if run_id is None:
            return True, {"model": "none", "problem": None}
        with TemporaryDirectory(prefix="parity-") as scratch:
            try:
                return True, {"model": Model.load(mlflow.model_folder(run_id, Path(scratch))).version, "problem": None}
            except ModelError as error:
                return False, {"model": run_id, "problem": str(error)}

    return day_by_day(context, judge)


def champion_auc(lake: Lake, mlflow: MLflow, entries: Sequence[Entry], day: str) -> float | None:
    """The AUC of the day's champion on the day's clicks: its verdict's, else computed; None where it is undefined.

    Raises LookupError where the day has no champion.
    """
    champion, entry = champion_as_of(entries, day), verdict_of(entries, day)
    if champion is None:
        raise LookupError(f"{day} has no champion")
    if entry:
        names = {entry.champion_before: "champion_auc", entry.model_version: "candidate_auc"}
        if (judged := entry.verdict.get(names.get(champion.model_version, ""))) is not None:
            return float(judged)
    clicks = holdout(lake, day)
    if clicks.installs in (0, len(clicks)):
        return None
    with TemporaryDirectory(prefix="floor-") as scratch:
        model = Model.load(mlflow.model_folder(champion.run_id, Path(scratch)))
    return auc(clicks.label.astype(bool), model.probability(clicks.features).astype(np.float64))


@dg.asset_check(asset="promoted_model", partitions_def=daily)
def champion_reaches_floor(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, mlflow: MLflow
) -> dg.AssetCheckResult:
    """The day's champion, on the day's clicks, is as good as any champion has to be."""
    entries = ledger(lake.lake())

    def judge(day: str) -> Judgement:
        champion = champion_as_of(entries, day)
        found = champion_auc(lake.lake(), mlflow, entries, day) if champion else None
        numbers = {"champion": champion.model_version if champion else "none", "AUC": found, "floor": GATE.floor}
        return found is None or found >= GATE.floor, numbers

    return day_by_day(context, judge, dg.AssetCheckSeverity.WARN)


def champion_age(entries: Sequence[Entry], day: str, thresholds: Thresholds = THRESHOLDS) -> Judgement:
    """The days since the day's champion was promoted are not too many."""
    champion = champion_as_of(entries, day)
    age = (date.fromisoformat(day) - date.fromisoformat(champion.day)).days if champion else None
    numbers = {
        "champion": champion.model_version if champion else "none",
        "promoted on": champion.day if champion else None,
        "days old": age,
        "old after": thresholds.champion_days,
    }
    return age is None or age <= thresholds.champion_days, numbers


@dg.asset_check(asset="promoted_model", partitions_def=daily)
def champion_is_young(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The day's champion was promoted not too long ago: clicks change, and so should what judges them."""
    entries = ledger(lake.lake())
    return day_by_day(context, lambda day: champion_age(entries, day), dg.AssetCheckSeverity.WARN)


def clicks_scored(lake: Lake, entries: Sequence[Entry], day: str) -> Judgement:
    """As many predictions as clicks, if the day has a champion."""
    champion, clicks = champion_as_of(entries, day), lake.require(RAW_CLICKS, day).rows
    manifest = lake.manifest(BATCH_PREDICTIONS, day)
    predictions = manifest.rows if manifest else 0
    numbers = {"clicks": clicks, "predictions": predictions, "champion": champion.model_version if champion else "none"}
    return champion is None or predictions == clicks, numbers


@dg.asset_check(asset="batch_predictions", partitions_def=daily)
def every_click_is_scored(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Each click of the day has its prediction."""
    store = lake.lake()
    entries = ledger(store)
    return day_by_day(context, lambda day: clicks_scored(store, entries, day), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset="deployed_image", partitions_def=daily)
def image_carries_champion(
    context: dg.AssetCheckExecutionContext, lake: LakeResource, images: dg.ResourceParam[Images]
) -> dg.AssetCheckResult:
    """The image of the day's champion can be pulled, and the model in it is the champion."""
    store = lake.lake()
    entries = ledger(store)

    def judge(day: str) -> Judgement:
        champion = champion_as_of(entries, day)
        if champion is None:
            return True, {"champion": None, "digest": None, "problem": None}
        digest = recorded_image(store, champion.model_version)
        found = {"champion": champion.model_version, "digest": digest}
        if digest is None:
            return False, {**found, "problem": "there is no image of it"}
        with TemporaryDirectory(prefix="pull-") as scratch:
            try:
                version = Model.load(images.model_folder(digest, Path(scratch, "model"))).version
            except (ImageError, ModelError) as error:
                return False, {**found, "problem": str(error)}
        return version == champion.model_version, {**found, "problem": None}

    return day_by_day(context, judge)


FLEET_CHECK: Final = "fleet_runs_champion"


@dg.asset_check(asset="inference_deployment", name=FLEET_CHECK)
def fleet_runs_champion(lake: LakeResource, fleet: dg.ResourceParam[InferenceFleet]) -> dg.AssetCheckResult:
    """What runs is the champion's image, on every replica. The sensor `observe_fleet` evaluates it too."""
    return judge_fleet(lake.lake(), fleet.status())


def judge_fleet(store: Lake, status: FleetStatus) -> dg.AssetCheckResult:
    """Whether what runs is the champion's image, on every replica."""
    champion = production_champion(store)
    digest = champion and recorded_image(store, champion.model_version)
    running = sorted({worker.digest for worker in status.workers})
    return dg.AssetCheckResult(
        passed=digest is not None and running == [digest] and status.ready == status.replicas,
        metadata={
            "champion": champion.model_version if champion else "none",
            "image": digest or "none",
            "running": ", ".join(running) or "nothing",
            "replicas": status.replicas,
            "ready": status.ready,
        },
    )


checks: Final = [
    onnx_answers_as_trained,
    champion_reaches_floor,
    champion_is_young,
    image_carries_champion,
    every_click_is_scored,
    fleet_runs_champion,
]
