"""The image that carries a day's champion."""

from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day
from mlops_assets.assets.promoted_model import ledger, promoted_model
from mlops_assets.modelling.ledger import Entry, replay
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.images import Images
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow


def publish(champion: Entry, mlflow: MLflow, images: Images) -> str:
    """The digest of the champion's image, which is built unless the store holds it."""
    digest = images.find(champion.model_version)
    if digest is not None:
        return digest
    annotations = {
        "mlops-assets.model-version": champion.model_version,
        # What to type into MLflow's search. A run's id is random: the same model would be another digest elsewhere.
        "mlops-assets.mlflow-search": f"tags.model_version = '{champion.model_version}'",
        "mlops-assets.promoted-on": champion.day,
        **{f"mlops-assets.data-version.{day}": version for day, version in champion.data_versions.items()},
    }
    if champion.verdict.get("candidate_auc") is not None:
        annotations["mlops-assets.mean-bootstrap-auc"] = f"{champion.verdict['candidate_auc']:.6f}"
    with TemporaryDirectory(prefix="image-") as scratch:
        return images.publish(mlflow.model_folder(champion.run_id, Path(scratch)), annotations)


@dg.asset(
    deps=["raw_clicks", "training_set", "candidate_model", promoted_model],
    partitions_def=daily,
    backfill_policy=run_of_its_own("deployed_image"),
    group_name="production",
    owners=metadata.OWNERS,
    kinds={"docker", "onnx"},
    code_version="1",
    pool="promotion",
    description="The image that carries the day's champion: the inference runtime and the model as one layer. The same "
    "champion is the same digest; the model answers its golden rows in the image's own files before it is stored.",
)
def deployed_image(
    context: dg.AssetExecutionContext, lake: LakeResource, mlflow: MLflow, images: dg.ResourceParam[Images]
) -> dg.MaterializeResult[None]:
    """Builds the images that are missing; a day without a champion has none."""
    with day_by_day(context) as days:
        standing = replay(ledger(lake.lake()))
        for day in days:
            with days.isolated(day):
                champion = standing.as_of(day)
                if champion is None:
                    days.report(day, {"digest": "none", "reason": "no model is promoted yet"})
                    continue
                digest, version = publish(champion, mlflow, images), champion.model_version
                days.report(day, {"digest": digest, "model_version": version, "champion_since": champion.day})
    return dg.MaterializeResult()
