"""A person's word on promotions: force a model into production, or revoke one, with a reason."""

from dataclasses import replace
from typing import Literal

import dagster as dg
from pydantic import Field

from mlops_assets.assets.deployed_image import publish
from mlops_assets.assets.promoted_model import END_OF_TIME, ledger, production_champion, record
from mlops_assets.automation.run_queues import operators
from mlops_assets.modelling.ledger import Entry, champion_as_of
from mlops_assets.resources.images import Images
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow


class OverrideConfig(dg.Config):
    """The decision. `forced` needs a model version that was once judged, `revoked` one that was promoted."""

    action: Literal["forced", "revoked"] = Field(description="forced: into production; revoked: out of it, for good.")
    model_version: str = Field(description="The model's version, as the promotion ledger shows it.")
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
    entries = ledger(store)
    judged = [entry for entry in entries if entry.model_version == config.model_version and entry.run_id]
    if not judged:
        known = sorted({entry.model_version for entry in entries if entry.run_id})
        raise dg.Failure(f"no model {config.model_version!r} was ever judged; the ledger knows {', '.join(known)}")
    before = production_champion(store)
    last_day = max(entry.day for entry in entries)
    entry = Entry(
        day=last_day if config.action == "forced" else min(entry.day for entry in judged),
        kind=config.action,
        decided_by=config.decided_by,
        reason=config.reason,
        model_version=config.model_version,
        run_id=judged[-1].run_id,
        champion_before=before.model_version if before else None,
    )
    after = champion_as_of([*entries, entry], END_OF_TIME)
    record(store, mlflow, replace(entry, champion_after=after.model_version if after else None))
    if after is None:
        context.log.warning("no champion is left; the fleet keeps what it runs")
        return
    digest = publish(after, mlflow, images)
    context.log.info(f"champion is now {after.model_version}, image {digest}; the sensor rolls it out")


@dg.job(
    tags=operators("override"),
    description="Force a model into production or revoke one, with a reason. The sensor then rolls the fleet.",
)
def override() -> None:
    """One decision of a person."""
    record_override()
