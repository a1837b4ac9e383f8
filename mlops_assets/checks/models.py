"""Checks of what goes into production."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import dagster as dg

from mlops_assets.assets.candidate_model import data_versions, fingerprint
from mlops_assets.assets.deployed_image import recorded_image
from mlops_assets.assets.promoted_model import ledger, production_champion
from mlops_assets.assets.quality import Judgement
from mlops_assets.checks.clicks import day_by_day
from mlops_assets.inference.model import Model, ModelError
from mlops_assets.modelling.ledger import champion_as_of
from mlops_assets.partitions import daily
from mlops_assets.resources.images import ImageError, Images
from mlops_assets.resources.inference import InferenceFleet
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow


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


@dg.asset_check(asset="inference_deployment")
def fleet_runs_champion(lake: LakeResource, fleet: dg.ResourceParam[InferenceFleet]) -> dg.AssetCheckResult:
    """What runs is the champion's image, on every replica."""
    store, status = lake.lake(), fleet.status()
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


checks: Final = [onnx_answers_as_trained, image_carries_champion, fleet_runs_champion]
