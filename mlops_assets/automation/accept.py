"""A person's word on a day's clicks: they are right, although they are fewer than usual, or none led to an install."""

import dagster as dg
from pydantic import Field

from mlops_assets.assets.quality import ACCEPTABLE, accept
from mlops_assets.automation.run_queues import operators
from mlops_assets.lake.manifest import MissingPartitionError
from mlops_assets.resources.lake import LakeResource


class AcceptConfig(dg.Config):
    """The decision. It holds for the clicks that the lake has of the day now."""

    day: str = Field(description="The day, like 2017-11-09.")
    decided_by: str = Field(description="Who decides.")
    reason: str = Field(description="Why; it is kept with the decision.")


@dg.op
def record_acceptance(context: dg.OpExecutionContext, config: AcceptConfig, lake: LakeResource) -> None:
    """Adds the decision to the lake's log of accepted days."""
    if not (config.decided_by.strip() and config.reason.strip()):
        raise dg.Failure("a day is accepted by somebody, for a reason: give both", allow_retries=False)
    try:
        version = accept(lake.lake(), config.day, config.decided_by, config.reason)
    except MissingPartitionError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info(f"{config.day} is accepted as it is (clicks {version[:12]}); run the day again")


@dg.job(
    tags=operators("accept_day"),
    description=f"Accept a day that fails {' or '.join(ACCEPTABLE)}, as it is, with a reason. Then run the day again.",
)
def accept_day() -> None:
    """One decision of a person."""
    record_acceptance()
