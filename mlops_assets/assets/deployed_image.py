"""The image that carries a day's champion."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.days import day_by_day
from mlops_assets.assets.promoted_model import ledger, production_champion, promoted_model
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry, replay
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.images import BASE_DIGEST, VERSION, ImageError, Images, StoreAwayError
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow

IMAGES: Final = "deployed_images"
"""The lake's log of images, below it one for each model."""


def recorded_image(store: Lake, model_version: str) -> str | None:
    """The digest of the image that carries the model, None before there is one.

    This record, not the image's tag, says what is rolled: a tag can be moved by anybody who may push.
    """
    return next(reversed(recorded_images(store, model_version)), None)


def recorded_images(store: Lake, model_version: str) -> list[str]:
    """The digests of all images that the model ever had, on one runtime after another; the newest is the last."""
    return [str(record["digest"]) for record in store.records(f"{IMAGES}/{model_version}")]


def record_image(store: Lake, model_version: str, digest: str) -> None:
    """From now on the image with that digest is the model's."""
    if recorded_image(store, model_version) != digest:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        record = {"model_version": model_version, "digest": digest, "time": now}
        store.append_record(f"{IMAGES}/{model_version}", now.replace(":", ""), record)


def publish(store: Lake, champion: Entry, mlflow: MLflow, images: Images) -> str:
    """The digest of the champion's image, recorded as such.

    It is built where there is none, and anew where the runtime below today's champion has changed. Images of former
    champions stay as they are. Raises StoreAwayError if the store of images doesn't answer.
    """
    digest = recorded_image(store, champion.model_version) or images.find(champion.model_version)
    if digest is None or not _is_up_to_date(store, champion, images, digest):
        digest = _build(champion, mlflow, images)
    record_image(store, champion.model_version, digest)
    return digest


def _is_up_to_date(store: Lake, champion: Entry, images: Images, digest: str) -> bool:
    try:
        found = images.require(digest)
    except StoreAwayError:
        raise
    except ImageError:  # it was lost, wholly or in part
        return False
    if found.get(VERSION) != champion.model_version:
        return False
    today = production_champion(store)
    is_former = today is not None and today.model_version != champion.model_version
    return is_former or found.get(BASE_DIGEST) == images.runtime_digest()


def _build(champion: Entry, mlflow: MLflow, images: Images) -> str:
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
    op_tags={"dagster/priority": "1"},  # ahead of the day's batch predictions, for which no roll has to wait
    description="The image that carries the day's champion: the inference runtime and the model as one layer. The same "
    "champion is the same digest; the model answers its golden rows in the image's own files before it is stored.",
)
def deployed_image(
    context: dg.AssetExecutionContext, lake: LakeResource, mlflow: MLflow, images: dg.ResourceParam[Images]
) -> dg.MaterializeResult[None]:
    """Builds the images that are missing or have an old runtime; a day without a champion has none."""
    with day_by_day(context) as days:
        store = lake.lake()
        standing = replay(ledger(store))
        for day in days:
            with days.isolated(day):
                champion = standing.as_of(day)
                if champion is None:
                    days.report(day, {"digest": "none", "reason": "no model is promoted yet"})
                    continue
                digest, version = publish(store, champion, mlflow, images), champion.model_version
                days.report(day, {"digest": digest, "model_version": version, "champion_since": champion.day})
    return dg.MaterializeResult()
