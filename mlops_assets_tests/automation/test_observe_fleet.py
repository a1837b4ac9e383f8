"""A sensor looks at the fleet: what changed is recorded, what a killed run left behind is finished, no run is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.assets.deployed_image import record_image
from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.automation import observe_fleet
from mlops_assets.definitions import defs
from mlops_assets.modelling.ledger import Entry
from mlops_assets.resources.inference import FleetError, FleetStatus, InferenceFleet, Rollout, Worker
from mlops_assets.resources.lake import LakeResource

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
NOBODY = FleetStatus(None, replicas=0, workers=(), rolling=False, last_rollout=None)
ONE = Worker("one", OLD, ready=True, restarts=2, metrics_url="")
RUNNING = FleetStatus(OLD, replicas=1, workers=(ONE,), rolling=False, last_rollout=None)
UNDONE = Rollout("undone", NEW, OLD, "the run was killed during the roll", 0.0, transient=True)


@dataclass
class Sight:
    """What the next look sees, and how often anybody looked."""

    status: FleetStatus | FleetError = RUNNING
    recovered: Rollout | None = None
    seconds: float = 1_000_000.0
    asked: list[str] = field(default_factory=list)


SIGHT = Sight()


class Fleet(InferenceFleet):
    """A fleet that is as SIGHT says."""

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        assert patience_seconds is not None
        assert patience_seconds <= 15  # a tick has a minute
        if isinstance(SIGHT.status, FleetError):
            raise SIGHT.status
        return SIGHT.status

    def recover(self) -> Rollout | None:
        recovered, SIGHT.recovered = SIGHT.recovered, None
        return recovered

    def roll(self, digest: str, deadline_seconds: float, unjudged: Any = None) -> Rollout:
        raise AssertionError("an observation rolls nothing")

    stop = recover  # type: ignore[assignment]


class Looks:
    """The sensor's ticks, each a minute after the last."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.lake, self.instance, self.cursor = LakeResource(root=str(home / "lake")), instance, None
        entry = Entry(
            day="2017-11-07",
            kind="verdict",
            decided_by="test",
            reason="better",
            model_version="model",
            run_id="run",
            promoted=True,
            champion_after="model",
        )
        self.lake.lake().append_record(LEDGER, entry.key, entry.as_dict())
        record_image(self.lake.lake(), "model", OLD)

    def look(self, status: FleetStatus | FleetError = RUNNING, times: int = 1, pause: float = 60) -> list[Any]:
        SIGHT.status = status
        events: list[Any] = []
        for _ in range(times):
            SIGHT.seconds += pause
            resources = {"lake": self.lake, "fleet": Fleet()}
            with dg.build_sensor_context(
                self.instance, cursor=self.cursor, resources=resources, definitions=defs
            ) as context:
                data = observe_fleet.observe_fleet.evaluate_tick(context)
            assert not data.run_requests
            self.cursor = data.cursor  # type: ignore[assignment]
            events += data.asset_events
        return events


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    monkeypatch.setattr(observe_fleet, "now", lambda: SIGHT.seconds)
    SIGHT.recovered = None
    with dg.DagsterInstance.ephemeral() as instance:
        yield Looks(tmp_path, instance)


def kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_what_runs_is_observed_and_judged_on_change_and_once_an_hour(looks: Looks) -> None:
    first = looks.look(times=2)
    assert kinds(first) == ["AssetObservation", "AssetCheckEvaluation"]
    seen = {name: value.value for name, value in first[0].metadata.items()}
    assert seen == {"running": OLD, "replicas": 1, "ready": 1, "restarts": 2, "rolling": False}
    assert first[1].passed
    assert looks.look(times=58) == []
    assert kinds(looks.look(times=5)) == ["AssetObservation", "AssetCheckEvaluation"]


def test_drift_is_a_failed_check_within_minutes(looks: Looks) -> None:
    looks.look(times=2)
    other = replace(RUNNING, digest=NEW, workers=(replace(ONE, digest=NEW),))
    (observation, check) = looks.look(other, times=2)
    assert observation.metadata["running"].value == NEW
    assert not check.passed
    (_, check) = looks.look(RUNNING, times=2)
    assert check.passed


def test_a_new_champion_is_drift_until_it_is_rolled(looks: Looks) -> None:
    looks.look(times=2)
    record_image(looks.lake.lake(), "model", NEW)
    (_, check) = looks.look()
    assert not check.passed


def test_a_moment_is_no_news_and_a_roll_is_not_judged(looks: Looks) -> None:
    looks.look(times=2)
    assert looks.look(replace(RUNNING, workers=(replace(ONE, ready=False),))) == []
    assert looks.look(RUNNING, times=3) == []
    assert kinds(looks.look(replace(RUNNING, rolling=True, digest=NEW), times=3)) == ["AssetObservation"]


def test_what_a_killed_run_left_behind_is_undone_and_recorded_at_once(looks: Looks) -> None:
    SIGHT.recovered = UNDONE
    (materialization,) = looks.look()
    seen = {name: value.value for name, value in materialization.metadata.items()}
    assert (seen["verdict"], seen["digest"], seen["running"]) == ("undone", NEW, OLD)


def test_it_is_recorded_also_when_the_fleet_then_cannot_be_seen(looks: Looks) -> None:
    SIGHT.recovered = UNDONE
    assert kinds(looks.look(FleetError("Kubernetes does not answer"))) == ["AssetMaterialization"]


def test_a_fleet_that_cannot_be_seen_fails_the_tick(looks: Looks) -> None:
    with pytest.raises(FleetError):
        looks.look(FleetError("Kubernetes does not answer"))


def test_nothing_is_said_of_a_fleet_that_was_never_rolled(looks: Looks) -> None:
    assert looks.look(NOBODY, times=3) == []
