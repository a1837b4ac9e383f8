"""From promoted model to running fleet: the rollout job, and the sensor that requests it."""

from typing import Any

import dagster as dg

from mlops_assets.assets.promoted_model import ledger, production_champion
from mlops_assets.resources.images import Images
from mlops_assets.resources.lake import LakeResource

rollout = dg.define_asset_job(
    "rollout",
    selection=["inference_deployment"],
    description="Rolls the inference fleet onto an image. The sensor launches it for a new champion; launched by hand "
    "with an earlier image's digest it is the way back.",
)


def rollout_config(digest: str, reason: str) -> dict[str, Any]:
    """The rollout job's run config for an image."""
    return {"ops": {"inference_deployment": {"config": {"digest": digest, "reason": reason}}}}


@dg.sensor(job=rollout, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def champion_changed(
    context: dg.SensorEvaluationContext, lake: LakeResource, images: dg.ResourceParam[Images]
) -> dg.SensorResult | dg.SkipReason:
    """Requests one roll when `promoted_model` has another champion and `deployed_image` holds its image.

    A tick reads the ledger and the image store, never the fleet. The run key is the digest and the ledger's latest
    decision: Dagster remembers a run key for ever, and a model becomes champion again when its successor is revoked.
    """
    store = lake.lake()
    champion = production_champion(store)
    if champion is None:
        return dg.SkipReason("no model is promoted yet")
    digest = images.find(champion.model_version)
    if digest is None:
        return dg.SkipReason(f"the image of model {champion.model_version} is not there yet")
    if context.cursor == digest:
        return dg.SkipReason(f"the roll onto model {champion.model_version} was requested already")
    request = dg.RunRequest(
        run_key=f"{digest}:{ledger(store)[-1].key}",
        run_config=rollout_config(digest, f"{champion.kind} of {champion.day}: {champion.reason}"),
        tags={"model_version": champion.model_version},
    )
    return dg.SensorResult(run_requests=[request], cursor=digest)
