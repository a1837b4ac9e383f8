"""A person's word on promotions: force a model into production, pin it there, release it, or revoke it."""

from typing import Literal

import dagster as dg
from pydantic import Field

from mlops_assets.assets.deployed_image import publish
from mlops_assets.assets.promoted_model import ledger, production_champion, record
from mlops_assets.automation.run_queues import operators
from mlops_assets.modelling.ledger import Entry, replay
from mlops_assets.resources.images import Images
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow


class OverrideConfig(dg.Config):
    """The decision. It counts from now on and changes no day that was judged."""

    action: Literal["forced", "revoked", "released"] = Field(
        description="forced: into production; revoked: out of it, until it is forced again; released: no longer pinned."
    )
    model_version: str = Field(description="The model's version, as the promotion ledger shows it.")
    pinned: bool = Field(
        default=False, description="With `forced`: no candidate replaces the model until it is released."
    )
    decided_by: str = Field(description="Who decides.")
    reason: str = Field(description="Why; it is kept with the decision.")


@dg.op(pool="promotion")
def record_override(
    context: dg.OpExecutionContext,
    config: OverrideConfig,
    lake: LakeResource,
    mlflow: MLflow,
    images: dg.ResourceParam[Images],
) -> None:
    """Appends the decision to the ledger and has the image of the champion that follows from it at hand."""
    store = lake.lake()
    standing = replay(entries := ledger(store))
    judged = [entry for entry in entries if entry.model_version == config.model_version and entry.run_id]
    if not judged:
        known = sorted({entry.model_version for entry in entries if entry.run_id})
        raise dg.Failure(
            f"no model {config.model_version!r} was ever judged; the ledger knows {', '.join(known)}",
            allow_retries=False,
        )
    if config.pinned and config.action != "forced":
        raise dg.Failure("only a model that is forced can be pinned: leave out `pinned`", allow_retries=False)
    pinned = standing.pin.model_version if standing.pin else None
    if config.action == "released" and pinned != config.model_version:
        raise dg.Failure(f"model {config.model_version} is not pinned; pinned is {pinned}", allow_retries=False)
    entry = Entry(
        day=standing.newest,
        kind=config.action,
        pinned=config.pinned,
        decided_by=config.decided_by,
        reason=config.reason,
        model_version=config.model_version,
        run_id=judged[-1].run_id,
        champion_before=standing.champion.model_version if standing.champion else None,
    )
    record(store, mlflow, entry)
    after = production_champion(store)
    if after is None:
        context.log.warning("no champion is left; the fleet keeps what it runs")
        return
    digest = publish(after, mlflow, images)
    context.log.info(f"champion is now {after.model_version}, image {digest}; the sensor rolls it out")


@dg.job(
    tags=operators("override"),
    description="Force a model into production, pin it there, release it, or revoke it, with a reason. The sensor then "
    "rolls the fleet.",
)
def override() -> None:
    """One decision of a person."""
    record_override()
