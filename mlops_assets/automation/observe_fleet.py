"""What runs is what Dagster says: every minute a sensor looks at the live fleet, and compares it with the champion.

A look costs a few requests and no run. It is recorded when something changed, and once an hour if nothing did.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

import dagster as dg

from mlops_assets.checks.models import FLEET_CHECK, judge_fleet
from mlops_assets.resources.environment import ENVIRONMENT
from mlops_assets.resources.inference import FleetError, FleetStatus, InferenceFleet
from mlops_assets.resources.lake import LakeResource

DEPLOYMENT: Final = dg.AssetKey("inference_deployment")
LOOK_SECONDS: Final = 60
RECORD_SECONDS: Final = 3600.0
PATIENCE_SECONDS: Final = 10.0
STATUS: Final = (
    dg.DefaultSensorStatus.STOPPED if ENVIRONMENT == "embedded" else dg.DefaultSensorStatus.RUNNING
)  # on a newcomer's machine the fleet is stopped more often than it runs

now = time.time


@dg.sensor(minimum_interval_seconds=LOOK_SECONDS, default_status=STATUS, asset_selection=[DEPLOYMENT])
def observe_fleet(
    context: dg.SensorEvaluationContext, lake: LakeResource, fleet: dg.ResourceParam[InferenceFleet]
) -> dg.SensorResult | dg.SkipReason:
    """Finishes what a killed rollout left behind, observes what runs, and evaluates `fleet_runs_champion`.

    What two looks in a row see alike is recorded, so that a pod that is just being replaced is no news. During a roll
    nothing is judged. A fleet that can't be seen fails the tick. The cursor holds the last look and the last record.
    """
    recovered = fleet.recover()
    events: list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
    try:
        status = fleet.status(PATIENCE_SECONDS)
    except FleetError:
        if recovered is None:
            raise
        status = None
    seen = summary(status) if status else {}
    if recovered is not None:
        context.log.warning(f"{recovered.digest} is {recovered.verdict}: {recovered.reason}")
        story = {name: "none" if value is None else value for name, value in recovered.as_dict().items()}
        events.append(dg.AssetMaterialization(DEPLOYMENT, metadata={**story, **seen}))
    before: dict[str, Any] = json.loads(context.cursor or "{}")
    cursor = {**before, "seen": seen}
    if status and (status.digest or status.workers) and seen == before.get("seen"):
        is_news = seen != before.get("recorded") or now() >= before.get("at", 0.0) + RECORD_SECONDS
        verdict = judge_fleet(lake.lake(), status)
        if is_news or verdict.passed != before.get("passed"):
            events.append(dg.AssetObservation(DEPLOYMENT, metadata=seen))
            cursor |= {"recorded": seen, "at": now()}
            if not status.rolling:
                events.append(
                    dg.AssetCheckEvaluation(
                        check_name=FLEET_CHECK,
                        asset_key=DEPLOYMENT,
                        passed=verdict.passed,
                        metadata=verdict.metadata,
                    )
                )
                cursor["passed"] = verdict.passed
    running = f"{seen['ready']} of {seen['replicas']} workers are ready" if seen else "the fleet was not seen"
    return dg.SensorResult(asset_events=events, cursor=json.dumps(cursor), skip_reason=None if events else running)


def summary(status: FleetStatus) -> dict[str, Any]:
    """A look as an observation's metadata."""
    return {
        "running": status.digest or "none",
        "replicas": status.replicas,
        "ready": status.ready,
        "restarts": sum(worker.restarts for worker in status.workers),
        "rolling": status.rolling,
    }
