"""What the inference fleet runs."""

from typing import Literal

import dagster as dg
from pydantic import Field

from mlops_assets.assets import metadata
from mlops_assets.resources.inference import InferenceFleet

ROLL_SECONDS = 300.0


class RolloutConfig(dg.Config):
    """Which image to roll onto, and why."""

    digest: str = Field(description="The image's digest, sha256:...; any image that was ever deployed can be named.")
    reason: str = Field(description="Why it is rolled, for the record.")
    unjudged: Literal["default", "stop", "proceed"] = Field(
        default="default",
        description="What follows on a canary that can't be judged, for lack of traffic or metrics; by default what "
        "the fleet is set to. Say proceed for a way back that can't wait.",
    )
    deadline_seconds: float = Field(default=ROLL_SECONDS, description="After this long the old image comes back.")


@dg.asset(
    deps=["deployed_image"],
    group_name="production",
    owners=metadata.OWNERS,
    kinds={"kubernetes", "kafka"},
    code_version="1",
    pool="rollout",
    description="What the fleet runs now: image, model, replicas, and how the last roll ended. Only the rollout job "
    "materializes it; a roll that fails is undone, recorded here, and not tried again for the same promotion.",
)
def inference_deployment(
    context: dg.AssetExecutionContext, config: RolloutConfig, fleet: dg.ResourceParam[InferenceFleet]
) -> dg.MaterializeResult[None]:
    """Rolls the fleet onto an image and records the verdict; an undone roll fails the run after that."""
    rollout = fleet.roll(
        config.digest, config.deadline_seconds, None if config.unjudged == "default" else config.unjudged
    )
    status = fleet.status()
    story = {
        **{name: value if value is not None else "none" for name, value in rollout.as_dict().items()},
        "requested_because": config.reason,
        "running": status.digest or "none",
        "replicas": status.replicas,
        "ready": status.ready,
    }
    if rollout.verdict in ("undone", "overtaken"):
        # The record of what runs must stand although the run fails.
        context.log_event(dg.AssetMaterialization(context.asset_key, metadata=story))
        raise dg.Failure(f"the roll onto {config.digest} was {rollout.verdict}: {rollout.reason}", allow_retries=False)
    return dg.MaterializeResult(metadata=story)
