"""Rolls of the fleet on an API server whose answers a test chooses; good weather is tested on a real one (cluster/)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.resources import kubernetes_api
from mlops_assets.resources.images import VERSION, ImageError
from mlops_assets.resources.inference import FleetError
from mlops_assets.resources.kubernetes import KubernetesFleet
from mlops_assets.resources.kubernetes_roll import LAST, ROLLING
from mlops_assets.resources.registry import MissingError, Registry
from mlops_assets_tests.resources.fake_kubernetes import FakeKubernetes, running

OLD, NEW, OTHER = (f"sha256:{letter * 64}" for letter in "abc")
CANARY = "inference-canary"
DEADLINE = 20.0


def image(digest: str) -> str:
    return f"registry.test/inference@{digest}"


class Store(Registry):
    """A registry that holds every image but those that PROBLEMS names."""

    def describe(self, digest: str) -> dict[str, str]:
        if problem := PROBLEMS.get(digest):
            raise problem
        return {VERSION: "model"}

    def require(self, digest: str) -> dict[str, str]:
        return self.describe(digest)


PROBLEMS: dict[str, ImageError] = {}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeKubernetes]:
    PROBLEMS.clear()
    with running(image(OLD), tmp_path) as (server, _):
        yield server


@pytest.fixture
def fleet(api: FakeKubernetes, tmp_path: Path) -> Callable[..., KubernetesFleet]:
    def made(canary_seconds: float = 0, **fields: Any) -> KubernetesFleet:
        return KubernetesFleet(
            registry=Store(repository="registry.test/inference"),
            kubeconfig=str(tmp_path / "kubeconfig"),
            canary_seconds=canary_seconds,
            **fields,
        )

    return made


Fleet = Callable[..., KubernetesFleet]


def mark(api: FakeKubernetes, seconds: float) -> None:
    """What a killed roll onto NEW leaves behind, `seconds` before it counts as dead."""
    marker = {"from": image(OLD), "to": image(NEW), "until": time.time() + seconds, "by": "another run"}
    api.annotations()[ROLLING] = json.dumps(marker)


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def caught() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    return thread, results


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_roll_in_good_weather(api: FakeKubernetes, fleet: Fleet) -> None:
    rollout = fleet().roll(NEW, DEADLINE)
    assert (rollout.verdict, rollout.previous, rollout.reason, rollout.transient) == ("rolled", OLD, "", False)
    assert api.image() == image(NEW)
    assert ROLLING not in api.annotations()
    assert fleet().status().last_rollout == rollout
    assert fleet().roll(NEW, DEADLINE).verdict == "unchanged"


# Rolls exclude one another


def test_a_second_roll_leaves_the_first_alone(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour[image(NEW)] = "running"
    first, results = in_background(lambda: fleet().roll(NEW, 4))
    eventually(lambda: api.image() == image(NEW))
    with pytest.raises(FleetError, match="another roll"):
        fleet().roll(OTHER, 1)
    assert api.image() == image(NEW)
    first.join()
    assert (results[0].verdict, "not ready before the deadline" in results[0].reason) == ("undone", True)
    assert fleet().roll(OTHER, DEADLINE).verdict == "rolled"


def test_a_second_roll_goes_on_when_the_first_has_ended(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour[image(NEW)] = "running"
    first, results = in_background(lambda: fleet().roll(NEW, 2))
    eventually(lambda: api.image() == image(NEW))
    assert fleet().roll(OTHER, DEADLINE).verdict == "rolled"
    first.join()
    assert results[0].verdict == "undone"
    assert api.image() == image(OTHER)


def test_a_roll_that_was_overtaken_says_so_and_touches_nothing(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour[image(NEW)] = "running"
    first, results = in_background(lambda: fleet(lease_seconds=0.0).roll(NEW, 3))
    eventually(lambda: api.image() == image(NEW))
    assert fleet().roll(OTHER, DEADLINE).verdict == "rolled"
    first.join()
    assert results[0].verdict == "overtaken"
    assert api.image() == image(OTHER)
    assert json.loads(api.annotations()[LAST])["digest"] == OTHER


def test_an_image_that_a_person_sets_in_mid_roll_stands(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour[image(NEW)] = "running"
    first, results = in_background(lambda: fleet().roll(NEW, 5))
    eventually(lambda: api.image() == image(NEW))
    container = {"name": "inference", "image": image(OTHER)}
    api.patch("inference", {"spec": {"template": {"spec": {"containers": [container]}}}})
    first.join()
    assert (results[0].verdict, image(OTHER) in results[0].reason) == ("overtaken", True)
    assert api.image() == image(OTHER)
    assert ROLLING not in api.annotations()


def test_two_that_begin_at_once_do_not_both_roll(api: FakeKubernetes, fleet: Fleet) -> None:
    """Between one's look at the marker and its own marker, another roll puts its own there."""
    seen: list[str] = []

    def another_is_quicker(name: str, body: dict[str, Any]) -> None:
        if ROLLING in body.get("metadata", {}).get("annotations", {}) and not seen:
            seen.append(name)
            marker = {"from": image(OLD), "to": image(OTHER), "until": time.time() + 60, "by": "another"}
            api.patch("inference", {"metadata": {"annotations": {ROLLING: json.dumps(marker)}}})

    api.before_patch = another_is_quicker
    with pytest.raises(FleetError, match="another roll"):
        fleet().roll(NEW, 1)
    assert api.image() == image(OLD)


def test_a_run_killed_after_its_last_step_is_not_undone(api: FakeKubernetes, fleet: Fleet) -> None:
    fleet().roll(NEW, DEADLINE)
    mark(api, seconds=-1)
    recovered = fleet().recover()
    assert recovered is not None
    assert (recovered.verdict, recovered.digest, recovered.previous) == ("rolled", NEW, OLD)
    assert api.image() == image(NEW)
    assert ROLLING not in api.annotations()


def test_a_run_killed_in_mid_roll_is_undone_and_not_before_it_counts_as_dead(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour[image(NEW)] = "running"
    container = {"name": "inference", "image": image(NEW)}
    api.patch("inference", {"spec": {"template": {"spec": {"containers": [container]}}}})
    mark(api, seconds=60)
    assert fleet().recover() is None
    assert api.image() == image(NEW)
    mark(api, seconds=-1)
    recovered = fleet().recover()
    assert recovered is not None
    assert (recovered.verdict, recovered.transient) == ("undone", True)
    assert api.image() == image(OLD)


# Whose fault a failure is


@pytest.mark.parametrize(("kind", "transient"), [("crash", False), ("running", False), ("pull", True)])
@pytest.mark.parametrize("canary_seconds", [0.0, 1.0])
def test_it_is_told_whether_the_image_is_to_blame(
    api: FakeKubernetes, fleet: Fleet, kind: str, transient: bool, canary_seconds: float
) -> None:
    api.behaviour[image(NEW)] = kind
    if not canary_seconds:  # two of three are new, one old pod goes on
        api.kept = {"inference-old": image(OLD)}
    rollout = fleet(canary_seconds).roll(NEW, 3)
    assert (rollout.verdict, rollout.transient) == ("undone", transient), rollout


def test_workers_that_are_not_ready_where_nobody_is_do_not_blame_the_image(api: FakeKubernetes, fleet: Fleet) -> None:
    api.behaviour = {image(NEW): "running", image(OLD): "running"}  # as without a Kafka
    rollout = fleet(canary_seconds=1).roll(NEW, 2)
    assert (rollout.verdict, rollout.transient) == ("undone", True), rollout


@pytest.mark.parametrize(
    ("problem", "transient"), [(MissingError("no such image"), False), (ImageError("it is corrupted"), False)]
)
def test_an_image_that_is_not_there_touches_nothing(
    api: FakeKubernetes, fleet: Fleet, problem: ImageError, transient: bool
) -> None:
    PROBLEMS[NEW] = problem
    rollout = fleet().roll(NEW, DEADLINE)
    assert (rollout.verdict, rollout.transient, rollout.reason) == ("undone", transient, str(problem))
    assert (api.image(), ROLLING in api.annotations()) == (image(OLD), False)


def test_old_restarts_of_an_old_pod_are_no_reason(api: FakeKubernetes, fleet: Fleet) -> None:
    """An undo that works was reported as `the old image does not come back`."""
    api.behaviour[image(NEW)] = "crash"
    api.restarts = {pod["metadata"]["name"]: 5 for pod in api.listed()}
    before = api.read
    looks: list[int] = []

    def slowly(name: str) -> dict[str, Any]:  # the controller needs a moment on the way back
        found = before(name)
        if api.image() == image(OLD) and "crash" in json.dumps(api.annotations().get("kubernetes.io/change-cause", "")):
            return found
        looks.append(1)
        if name == "inference" and api.annotations().get(ROLLING) and api.image() == image(OLD) and len(looks) < 12:
            found = {**found, "status": {**found["status"], "availableReplicas": 2}}
        return found

    api.read = slowly  # type: ignore[method-assign]
    rollout = fleet().roll(NEW, DEADLINE)
    assert rollout.verdict == "undone"
    assert "the old image does not come back" not in rollout.reason
    assert "ended 3 times" in rollout.reason or "ended 2 times" in rollout.reason


# A canary that can't be judged


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        (50, 150, "answered 50 clicks and the fleet 450"),
        (0, 0, "answered 0 clicks and the fleet 0"),
        (None, 9_000, "the canary's metrics can't be read"),
        (9_000, None, "the fleet's metrics can't be read"),
    ],
)
def test_a_canary_that_cannot_be_judged_stops_the_roll_unless_the_operator_says_proceed(
    api: FakeKubernetes, fleet: Fleet, new: int | None, old: int | None, said: str
) -> None:
    api.traffic = {image(digest): clicks for digest, clicks in ((NEW, new), (OLD, old)) if clicks is not None}
    rollout = fleet(canary_seconds=1).roll(NEW, DEADLINE)
    assert (rollout.verdict, rollout.transient) == ("undone", True), rollout
    assert "could not be judged" in rollout.reason
    assert "unjudged" in rollout.reason  # the setting to use
    assert api.image() == image(OLD)
    api.looked.clear()
    proceeded = fleet(canary_seconds=1).roll(NEW, DEADLINE, unjudged="proceed")
    assert proceeded.verdict == "rolled", proceeded
    assert "could not be judged" in proceeded.reason
    assert api.image() == image(NEW)


def test_the_first_roll_needs_no_traffic(api: FakeKubernetes, fleet: Fleet) -> None:
    api.deployments["inference"] = api._deployment("inference", "registry.test/inference:runtime", 3)
    assert fleet(canary_seconds=1).roll(NEW, DEADLINE).verdict == "rolled"


# An API server that is unwell


class Clock:
    """Time that passes in sleep alone, for what must wait for minutes."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        time.sleep(0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kubernetes_api, "time", clock, raising=False)
    return clock


@pytest.mark.parametrize("failure", [500, 429, "before", "after"])
@pytest.mark.parametrize("when", [0, 12])
def test_two_minutes_of_trouble_change_no_roll(
    api: FakeKubernetes, fleet: Fleet, clock: Clock, failure: int | str, when: int
) -> None:
    begun: list[float] = []

    def plan(method: str, path: str) -> int | str | None:
        if len(api.requests) > when and not begun:
            begun.append(clock.seconds)
        return failure if begun and clock.seconds < begun[0] + 120 else None

    api.plan = plan
    rollout = fleet(canary_seconds=1, unjudged="proceed").roll(NEW, 60)
    assert (rollout.verdict, rollout.previous) == ("rolled", OLD), rollout
    assert api.image() == image(NEW)
    assert api.replicas(CANARY) == 0
    assert ROLLING not in api.annotations()


def test_an_api_server_that_stays_away_ends_the_roll_with_an_error(
    api: FakeKubernetes, fleet: Fleet, clock: Clock
) -> None:
    api.plan = lambda method, path: 500
    with pytest.raises(FleetError, match="the API server is unwell"):
        fleet().roll(NEW, DEADLINE)
    assert 120 <= clock.seconds - 1_000 <= 180


def test_a_refusal_is_said_at_once(api: FakeKubernetes, fleet: Fleet, clock: Clock) -> None:
    api.plan = lambda method, path: 403
    with pytest.raises(FleetError, match="refused"):
        fleet().roll(NEW, DEADLINE)
    assert clock.seconds == 1_000
