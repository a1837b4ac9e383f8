from __future__ import annotations

from typing import Any

import dagster as dg

from mlops_assets.automation.observe_fleet import DEPLOYMENT, observe_fleet
from mlops_assets.resources.inference import FleetStatus, InferenceFleet, Rollout, Worker

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Fleet(InferenceFleet):
    """A fleet whose last roll's run was killed, or not."""

    killed: bool

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        workers = (Worker("one", OLD, ready=True, restarts=2, metrics_url=""),)
        return FleetStatus(OLD, replicas=1, workers=workers, rolling=False, last_rollout=None)

    def recover(self) -> Rollout | None:
        return Rollout("undone", NEW, OLD, "the run was killed during the roll", 0.0) if self.killed else None

    def roll(self, digest: str, deadline_seconds: float, unjudged: Any = None) -> Rollout:
        raise AssertionError("an observation rolls nothing")

    stop = recover  # type: ignore[assignment]


def observed(killed: bool) -> dg.DagsterInstance:
    instance = dg.DagsterInstance.ephemeral()
    assert observe_fleet.execute_in_process(resources={"fleet": Fleet(killed=killed)}, instance=instance).success
    return instance


def test_what_runs_is_observed() -> None:
    instance = observed(killed=False)
    (record,) = instance.fetch_observations(DEPLOYMENT, limit=9).records
    assert record.asset_observation is not None
    seen = {name: value.value for name, value in record.asset_observation.metadata.items()}
    assert seen == {"running": OLD, "replicas": 1, "ready": 1, "restarts": 2, "rolling": False}
    assert instance.fetch_materializations(DEPLOYMENT, limit=9).records == []


def test_what_a_killed_run_left_behind_is_undone_and_recorded() -> None:
    (record,) = observed(killed=True).fetch_materializations(DEPLOYMENT, limit=9).records
    assert record.asset_materialization is not None
    seen = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert (seen["verdict"], seen["digest"], seen["running"]) == ("undone", NEW, OLD)
