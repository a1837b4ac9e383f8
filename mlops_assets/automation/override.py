"""A person's word on promotions: force a model into production, pin it there, release it, or revoke it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import dagster as dg
from pydantic import Field

from mlops_assets.assets.deployed_image import publish
from mlops_assets.assets.promoted_model import align_alias, ledger, record
from mlops_assets.automation.run_queues import operators
from mlops_assets.modelling.ledger import Entry, replay, time_after
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


@dg.op(pool="promotion", retry_policy=dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL))
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
    # An attempt that a server or a kill cut short may have come as far as the ledger.
    repeated = context.retry_number > 0 or context.run.parent_run_id is not None
    is_recorded = repeated and bool(entries) and _decided(entries[-1]) == config.model_dump()
    if not is_recorded:
        entries = [*entries, replace(_entry(config, entries), time=time_after(entries))]
    champion = replay(entries).champion
    # The image comes first: what can't be deployed must not be decided.
    digest = publish(store, champion, mlflow, images) if champion else None
    if is_recorded:
        align_alias(store, mlflow)
    else:
        record(store, mlflow, entries[-1])
    if champion is None:
        context.log.warning("no champion is left; the fleet keeps what it runs")
        return
    context.log.info(f"champion is now {champion.model_version}, image {digest}; the sensor rolls it out")


def _entry(config: OverrideConfig, entries: Sequence[Entry]) -> Entry:
    """The decision as the ledger takes it. Raises dg.Failure for one that makes no sense."""
    standing = replay(entries)
    judged = [entry for entry in entries if entry.model_version == config.model_version and entry.run_id]
    pinned = standing.pin.model_version if standing.pin else None
    if not judged:
        known = sorted({entry.model_version for entry in entries if entry.run_id})
        refusal = f"no model {config.model_version!r} was ever judged; the ledger knows {', '.join(known)}"
        raise dg.Failure(refusal, allow_retries=False)
    if config.pinned and config.action != "forced":
        raise dg.Failure("only a model that is forced can be pinned: leave out `pinned`", allow_retries=False)
    if config.action == "released" and pinned != config.model_version:
        refusal = f"model {config.model_version} is not pinned; {f'pinned is {pinned}' if pinned else 'no model is'}"
        raise dg.Failure(refusal, allow_retries=False)
    return Entry(
        day=standing.newest,
        kind=config.action,
        pinned=config.pinned,
        decided_by=config.decided_by,
        reason=config.reason,
        model_version=config.model_version,
        run_id=judged[-1].run_id,
        champion_before=standing.champion.model_version if standing.champion else None,
    )


def _decided(entry: Entry) -> dict[str, object]:
    """A person's decision as it was configured."""
    return {
        "action": entry.kind,
        "model_version": entry.model_version,
        "pinned": entry.pinned,
        "decided_by": entry.decided_by,
        "reason": entry.reason,
    }


@dg.job(
    tags=operators("override"),
    description="Force a model into production, pin it there, release it, or revoke it, with a reason. The sensor then "
    "rolls the fleet.",
)
def override() -> None:
    """One decision of a person."""
    record_override()
