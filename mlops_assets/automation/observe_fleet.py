"""What runs is what Dagster says: every few minutes the live fleet is looked at, and compared with the champion."""

from typing import Any

import dagster as dg

from mlops_assets.automation.run_queues import operators
from mlops_assets.resources.environment import SCHEDULES_START
from mlops_assets.resources.inference import InferenceFleet

DEPLOYMENT = dg.AssetKey("inference_deployment")


@dg.op(description="Undoes what a killed rollout left behind, and observes what runs.")
def look_at_fleet(context: dg.OpExecutionContext, fleet: dg.ResourceParam[InferenceFleet]) -> None:
    """Records an observation of `inference_deployment`; an undone roll also as its materialization."""
    undone = fleet.recover()
    status = fleet.status()
    seen: dict[str, Any] = {
        "running": status.digest or "none",
        "replicas": status.replicas,
        "ready": status.ready,
        "restarts": sum(worker.restarts for worker in status.workers),
        "rolling": status.rolling,
    }
    if undone is not None:
        context.log.warning(f"{undone.digest}: {undone.reason}; {undone.previous} is back")
        context.log_event(dg.AssetMaterialization(DEPLOYMENT, metadata={**undone.as_dict(), **seen}))
    context.log_event(dg.AssetObservation(DEPLOYMENT, metadata=seen))


@dg.job(
    tags=operators("observe_fleet"),
    description="Looks at what the fleet really runs, and finishes the undoing of a roll whose run was killed.",
)
def observe_fleet() -> None:
    """One look."""
    look_at_fleet()


check_fleet = dg.define_asset_job(
    "check_fleet",
    selection=dg.AssetSelection.checks_for_assets(DEPLOYMENT),
    tags=operators("check_fleet"),
    description="Compares what runs with the champion: drift between the two is a failed check.",
)

schedules = [
    dg.ScheduleDefinition(job=observe_fleet, cron_schedule="*/5 * * * *", default_status=SCHEDULES_START),
    dg.ScheduleDefinition(job=check_fleet, cron_schedule="*/15 * * * *", default_status=SCHEDULES_START),
]
