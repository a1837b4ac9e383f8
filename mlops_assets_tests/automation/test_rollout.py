"""The sensor `champion_changed` asks for a roll until that roll has an outcome of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.assets.deployed_image import record_image
from mlops_assets.assets.inference_deployment import inference_deployment
from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.automation import rollout
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry
from mlops_assets.resources.inference import FleetError, FleetStatus, InferenceFleet, Rollout
from mlops_assets.resources.lake import LakeResource

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
RENEWED = "sha256:" + "f" * 64
MODELS = {"model-a": A, "model-b": B}
HOUR = 3600.0


class Fleet(InferenceFleet):
    """A fleet whose next roll comes to what a test says."""

    def roll(self, digest: str, deadline_seconds: float, unjudged: Any = None) -> Rollout:
        outcome = OUTCOMES.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        verdict, reason, *transient = outcome
        return Rollout(verdict, digest, None, reason, 1.0, *transient)

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        return FleetStatus(None, 0, (), rolling=False, last_rollout=None)

    def obstacle(self) -> str | None:
        return OBSTACLES[-1] if OBSTACLES else None

    def recover(self) -> Rollout | None:
        return None

    stop = recover  # type: ignore[assignment]


OUTCOMES: list[Any] = []
OBSTACLES: list[str] = []


class World:
    """A ledger, a Dagster instance with the rollout job, and a clock that a test turns on."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.lake, self.instance = LakeResource(root=str(home / "lake")), instance
        self.resources: dict[str, Any] = {"lake": self.lake, "fleet": Fleet()}
        self.definitions = dg.Definitions(
            assets=[inference_deployment],
            jobs=[rollout.rollout],
            sensors=[rollout.champion_changed],
            resources=self.resources,
        )
        self.cursor: str | None = None
        self.later = 0.0
        self.said = ""

    @property
    def store(self) -> Lake:
        return self.lake.lake()

    def promote(self, model: str, day: str, kind: Any = "verdict") -> None:
        entry = Entry(
            day=day,
            kind=kind,
            decided_by="test",
            reason="better",
            model_version=model,
            run_id="run",
            promoted=kind == "verdict",
            champion_after=model,
        )
        self.store.append_record(LEDGER, entry.key, entry.as_dict())
        if model in MODELS:
            record_image(self.store, model, MODELS[model])

    def tick(self) -> list[dg.RunRequest]:
        needed = {name: self.resources[name] for name in rollout.champion_changed.required_resource_keys}
        with dg.build_sensor_context(
            self.instance, cursor=self.cursor, resources=needed, definitions=self.definitions
        ) as context:
            data = rollout.champion_changed.evaluate_tick(context)
        self.cursor, self.said = data.cursor, data.skip_message or ""
        return list(data.run_requests or [])

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """What the daemon does with a request."""
        return self.roll(request.run_config, {"dagster/sensor_name": "champion_changed", **request.tags})

    def roll(self, config: Any, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def("rollout")
        return job.execute_in_process(run_config=config, instance=self.instance, tags=tags, raise_on_error=False)

    def by_hand(self, digest: str) -> dg.ExecuteInProcessResult:
        return self.roll(rollout.rollout_config(digest, "a person wants it"))

    def turn(self, *outcomes: Any) -> list[str]:
        """Ticks an hour apart, each request carried out with the next of the outcomes; the digests asked for."""
        asked = []
        for outcome in outcomes:
            self.later += HOUR
            for request in self.tick():
                OUTCOMES[:] = [outcome]
                self.run(request)
                asked.append(digest_of(request))
        return asked


def digest_of(request: dg.RunRequest) -> str:
    return str(request.run_config["ops"]["inference_deployment"]["config"]["digest"])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(tmp_path, instance)
        clock: Callable[[], float] = lambda: datetime.now(UTC).timestamp() + world.later  # noqa: E731
        monkeypatch.setattr(rollout, "now", clock, raising=False)
        OBSTACLES.clear()
        OUTCOMES.clear()
        yield world


REFUSED = FleetError("Kubernetes does not answer")
PULL = ("undone", "ImagePullBackOff: connection refused", True)
ROLLED, UNCHANGED = ("rolled", ""), ("unchanged", "")
CRASHED = ("undone", "crashed 3 times", False)


@pytest.mark.parametrize("outcome", [ROLLED, UNCHANGED, CRASHED])
@pytest.mark.parametrize("trouble", [(), (REFUSED,), (PULL, REFUSED, PULL)])
def test_a_champion_is_asked_for_until_its_roll_has_an_outcome(world: World, trouble: Any, outcome: Any) -> None:
    world.promote("model-a", "2017-11-06")
    assert world.turn(*trouble, outcome, ROLLED, ROLLED) == [A] * (len(trouble) + 1)


def test_trouble_is_followed_by_a_pause_that_grows(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    pauses: list[float] = []
    for _ in range(6):
        waited = 0.0
        while not (requests := world.tick()):
            waited, world.later = waited + 20, world.later + 20
        OUTCOMES[:] = [PULL]
        world.run(requests[0])
        pauses.append(waited)
    assert pauses[0] == 0
    assert 30 <= pauses[1] <= 120
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(pauses[1:]))
    assert rollout.pause(100) == HOUR
    assert world.tick() == []
    assert "connection refused" in world.said


def test_every_request_has_a_run_key_of_its_own(world: World) -> None:
    keys = []
    for day, model in enumerate(["model-a", "model-b", "model-a"], start=6):
        world.promote(model, f"2017-11-{day:02}")
        for _ in range(2):
            world.later += HOUR
            (request,) = world.tick()
            keys.append(request.run_key)
            OUTCOMES[:] = [PULL]
            world.run(request)
    assert len(set(keys)) == 6


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
)
def test_nothing_is_asked_while_a_rollout_is_queued_or_under_way(world: World, status: dg.DagsterRunStatus) -> None:
    world.promote("model-a", "2017-11-06")
    job, config = world.definitions.resolve_job_def("rollout"), rollout.rollout_config(B, "by hand")
    run = world.instance.create_run_for_job(job, run_config=config, status=status)
    assert world.tick() == []
    assert run.run_id in world.said
    world.instance.delete_run(run.run_id)
    assert len(world.tick()) == 1


def test_a_persons_way_back_stands_until_the_next_promotion(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    assert world.turn(ROLLED) == [A]
    world.promote("model-b", "2017-11-07")
    assert world.turn(PULL) == [B]
    OUTCOMES[:] = [UNCHANGED]
    assert world.by_hand(A).success
    assert world.turn(ROLLED, ROLLED) == []
    world.promote("model-b", "2017-11-07", kind="forced")
    assert world.turn(ROLLED, ROLLED) == [B]


def test_a_persons_roll_that_fails_changes_nothing(world: World) -> None:
    world.promote("model-b", "2017-11-07")
    assert world.turn(PULL) == [B]
    OUTCOMES[:] = [CRASHED]
    assert not world.by_hand(A).success
    assert world.turn(ROLLED, ROLLED) == [B]


def test_a_run_that_a_person_cancels_is_not_asked_for_again(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    (request,) = world.tick()
    job = world.definitions.resolve_job_def("rollout")
    run = world.instance.create_run_for_job(
        job, run_config=request.run_config, tags=request.tags, status=dg.DagsterRunStatus.STARTED
    )
    world.instance.report_run_canceled(run)
    assert world.turn(ROLLED, ROLLED) == []


def test_a_bad_image_is_asked_for_again_only_by_a_person(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    assert world.turn(CRASHED, ROLLED) == [A]
    assert "crashed 3 times" in world.said
    world.promote("model-a", "2017-11-06")  # the newest day judged again, with the same result
    assert world.turn(ROLLED) == []
    world.promote("model-a", "2017-11-06", kind="forced")
    assert world.turn(ROLLED) == [A]


@pytest.mark.parametrize(
    ("before", "asked"), [(ROLLED, 0), (CRASHED, 0), (REFUSED, 1), (None, 1)], ids=["rolled", "bad", "refused", "lost"]
)
def test_the_cursor_of_an_earlier_version_is_understood(world: World, before: Any, asked: int) -> None:
    world.promote("model-a", "2017-11-06")
    if before:
        OUTCOMES[:] = [before]
        world.roll(rollout.rollout_config(A, "the earlier version"), {"model_version": "model-a"})
    world.cursor = A
    assert world.turn(ROLLED) == [A] * asked
    world.promote("model-b", "2017-11-07")
    assert world.turn(ROLLED, ROLLED) == [B]


def test_the_champions_image_on_a_new_runtime_is_rolled_too(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    assert world.turn(ROLLED, ROLLED) == [A]
    record_image(world.store, "model-a", RENEWED)
    assert world.turn(PULL, ROLLED, ROLLED) == [RENEWED, RENEWED]
    record_image(world.store, "model-a", A)  # back to the former runtime
    assert world.turn(ROLLED, ROLLED) == [A]


def test_a_new_runtime_does_not_undo_a_persons_way_back(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    world.promote("model-b", "2017-11-07")
    assert world.turn(ROLLED) == [B]
    OUTCOMES[:] = [ROLLED]
    assert world.by_hand(A).success
    record_image(world.store, "model-b", RENEWED)
    assert world.turn(ROLLED, ROLLED) == []


def test_a_person_may_go_back_to_the_former_runtime(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    assert world.turn(ROLLED) == [A]
    record_image(world.store, "model-a", RENEWED)
    assert world.turn(PULL) == [RENEWED]
    OUTCOMES[:] = [UNCHANGED]
    assert world.by_hand(A).success
    assert world.turn(ROLLED, ROLLED) == []


def test_a_champion_whose_image_is_not_there_yet_waits(world: World) -> None:
    world.promote("model-c", "2017-11-06")
    assert world.turn(ROLLED) == []
    assert "the image of model model-c is not there yet" in world.said
    record_image(world.store, "model-c", A)
    assert world.turn(ROLLED, ROLLED) == [A]


def test_without_a_kafka_it_is_said_and_skipped(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    OBSTACLES.append("no Kafka is configured: set KAFKA_BOOTSTRAP_SERVERS")
    assert world.turn(ROLLED) == []
    assert "set KAFKA_BOOTSTRAP_SERVERS" in world.said
    OBSTACLES.clear()
    assert world.turn(ROLLED, ROLLED) == [A]


def test_a_cursor_that_nobody_can_read_is_begun_anew(world: World) -> None:
    world.promote("model-a", "2017-11-06")
    world.cursor = json.dumps({"of": "a later version"})
    assert world.turn(ROLLED, ROLLED) == [A]
