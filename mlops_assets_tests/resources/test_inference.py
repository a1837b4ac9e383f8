from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from mlops_assets.resources import supervisor
from mlops_assets.resources.inference import FleetError, InferenceFleet, LocalFleet, Rollout
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets_tests.resources.models import write_model

DEADLINE = 60.0
REPLICAS = 2


class Fleet:
    """A fleet of fake workers, with what a test wants to know about its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = OciLayout(path=str(root / "images"))
        self.resource = self.with_environment({})

    def with_environment(self, environment: dict[str, str], min_ready_seconds: float = 0.2) -> LocalFleet:
        return LocalFleet(
            images=self.images,
            path=str(self.root / "inference"),
            replicas=REPLICAS,
            min_ready_seconds=min_ready_seconds,
            environment={"TRACE": str(self.root / "trace"), **environment},
            command=[sys.executable, str(Path(__file__).with_name("fake_worker.py"))],
        )

    def image(self, version: str) -> str:
        return self.images.publish(write_model(self.root / version, version), {})

    def roll(self, version: str, deadline: float = DEADLINE) -> Rollout:
        return self.resource.roll(self.image(version), deadline)

    def processes(self) -> list[psutil.Process]:
        """The supervisor and its workers: whatever has this fleet's folders on its command line."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            inside = any(str(self.root) in part for part in process.info["cmdline"] or [])
            if inside and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def workers(self) -> list[str]:
        return [w.digest for w in self.resource.status().workers if w.ready]

    def supervisor(self) -> int:
        return int((self.root / "inference" / "supervisor.lock").read_text())

    def trace(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.root / "trace").read_text().splitlines()]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.resource.stop()
    assert fleet.processes() == []


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_fleet_rolls_one_worker_at_a_time(fleet: Fleet) -> None:
    empty = fleet.resource.status()
    assert (empty.digest, empty.workers, empty.last_rollout) == (None, (), None)
    first = fleet.roll("v1")
    assert (first.verdict, first.previous, first.reason) == ("rolled", None, "")
    second = fleet.roll("v2")
    assert (second.verdict, second.previous, second.digest) == ("rolled", first.digest, fleet.image("v2"))
    status = fleet.resource.status()
    assert (status.digest, status.last_rollout, status.rolling) == (second.digest, second, False)
    assert fleet.workers() == [second.digest] * REPLICAS
    # the order of events: every old worker ends only after a new one has started, and one new one at a time
    events = [(e["model"], e["event"]) for e in fleet.trace()]
    assert events == [("v1", "start")] * 2 + [("v2", "start"), ("v1", "end")] * 2


def test_the_same_image_again_changes_nothing(fleet: Fleet) -> None:
    fleet.roll("v1")
    before = {p.pid for p in fleet.processes()}
    assert fleet.roll("v1").verdict == "unchanged"
    assert {p.pid for p in fleet.processes()} == before


def test_a_stopped_fleet_comes_back_on_the_image_it_had(fleet: Fleet) -> None:
    fleet.roll("one")
    fleet.resource.stop()
    assert fleet.workers() == []
    fleet.roll("one")
    assert fleet.workers() == [fleet.image("one")] * REPLICAS


def test_new_settings_reach_the_workers(fleet: Fleet) -> None:
    digest = fleet.roll("v1").digest
    before = {p.pid for p in fleet.processes()}
    assert fleet.with_environment({"INPUT_TOPIC": "other"}).roll(digest, DEADLINE).verdict == "rolled"
    assert {p.pid for p in fleet.processes()} & before == {fleet.supervisor()}


@pytest.mark.parametrize(
    ("version", "deadline", "reason"),
    [
        ("never-ready", 2, "worker-3 was not ready before the deadline"),
        ("crashing", DEADLINE, "worker-3 crashed 3 times: exit code 1; its last line: cannot reach the broker"),
        ("late-crash", DEADLINE, "crashed 3 times: exit code 3, without a word"),
    ],
)
def test_a_bad_image_is_undone(fleet: Fleet, version: str, deadline: float, reason: str) -> None:
    fleet.resource = fleet.with_environment({}, min_ready_seconds=1.0)
    good = fleet.roll("v1").digest
    before = {w.name for w in fleet.resource.status().workers}
    rollout = fleet.roll(version, deadline)
    assert (rollout.verdict, rollout.previous, rollout.transient) == ("undone", good, False)
    assert reason in rollout.reason
    status = fleet.resource.status()
    assert (status.digest, status.last_rollout) == (good, rollout)
    assert fleet.workers() == [good] * REPLICAS
    assert {w.name for w in status.workers} == before
    assert fleet.roll("v2").verdict == "rolled"


def test_a_first_image_that_fails_leaves_nothing_behind(fleet: Fleet) -> None:
    rollout = fleet.roll("crashing")
    assert (rollout.verdict, rollout.previous, rollout.transient) == ("undone", None, False)
    assert fleet.resource.status().workers == ()


def test_a_worker_that_is_not_ready_where_nobody_is_does_not_blame_the_image(fleet: Fleet) -> None:
    """As without a Kafka: the roll is worth asking for again."""
    rollout = fleet.roll("never-ready", deadline=2)
    assert (rollout.verdict, rollout.transient) == ("undone", True)


def test_a_corrupt_or_unknown_image_touches_no_worker(fleet: Fleet) -> None:
    good = fleet.roll("v1").digest
    before = {p.pid for p in fleet.processes()}
    bad = fleet.image("v2")
    next(b for b in Path(fleet.images.path, "blobs", "sha256").iterdir() if b.name in bad).write_bytes(b"rot")
    for digest, reason in ((bad, "is corrupted"), ("sha256:" + "0" * 64, "no image")):
        rollout = fleet.resource.roll(digest, DEADLINE)
        assert (rollout.verdict, rollout.previous) == ("undone", good)
        assert reason in rollout.reason
    assert {p.pid for p in fleet.processes()} == before


def test_a_killed_worker_is_restarted(fleet: Fleet) -> None:
    digest = fleet.roll("v1").digest
    victim = next(p for p in fleet.processes() if p.pid != fleet.supervisor())
    victim.kill()
    eventually(lambda: any(w.restarts for w in fleet.resource.status().workers))
    eventually(lambda: fleet.workers() == [digest] * REPLICAS)


def test_a_supervisor_killed_in_mid_roll_ends_as_undone(fleet: Fleet) -> None:
    good = fleet.roll("v1").digest
    results: list[Rollout] = []
    caller = threading.Thread(target=lambda: results.append(fleet.roll("never-ready")))
    caller.start()
    eventually(lambda: len(fleet.resource.status().workers) == REPLICAS + 1)
    os.kill(fleet.supervisor(), signal.SIGKILL)
    caller.join(60)
    assert results[0].verdict == "undone"
    assert (results[0].reason, results[0].transient) == ("the supervisor was killed during the roll", True)
    eventually(lambda: fleet.workers() == [good] * REPLICAS)
    assert len(fleet.processes()) == REPLICAS + 1


def test_stop_finds_the_workers_of_a_killed_supervisor(fleet: Fleet) -> None:
    good = fleet.roll("v1").digest
    os.kill(fleet.supervisor(), signal.SIGKILL)
    eventually(lambda: fleet.resource.status().workers == ())  # a process that ends drops its locks last
    assert len(fleet.processes()) == REPLICAS
    fleet.resource.stop()
    assert fleet.processes() == []
    assert fleet.roll("v1") == fleet.resource.status().last_rollout
    assert fleet.workers() == [good] * REPLICAS


def test_stop_in_mid_roll_goes_back(fleet: Fleet) -> None:
    good = fleet.roll("v1").digest
    results: list[Rollout] = []
    caller = threading.Thread(target=lambda: results.append(fleet.roll("never-ready")))
    caller.start()
    eventually(lambda: len(fleet.resource.status().workers) == REPLICAS + 1)
    with pytest.raises(FleetError, match="another roll"):
        fleet.roll("v1")
    fleet.resource.stop()
    caller.join(60)
    assert results[0].verdict == "undone"
    assert (results[0].previous, results[0].reason) == (good, "the fleet was stopped during the roll")
    assert fleet.processes() == []


def test_a_supervisor_whose_folder_is_deleted_ends_with_its_workers(fleet: Fleet) -> None:
    fleet.roll("v1")
    shutil.rmtree(fleet.root / "inference")
    eventually(lambda: fleet.processes() == [])


def test_a_worker_that_ignores_sigterm_is_killed(fleet: Fleet) -> None:
    fleet.roll("deaf")
    os.kill(fleet.supervisor(), signal.SIGKILL)
    supervisor.kill_group(fleet.root / "inference", grace_seconds=0.5)
    eventually(lambda: fleet.processes() == [])


def test_a_kafka_that_is_not_there_is_an_obstacle(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    assert "KAFKA_BOOTSTRAP_SERVERS is not set" in str(fleet.resource.obstacle())
    with socket.create_server(("127.0.0.1", 0)) as broker:
        address = f"127.0.0.1:{broker.getsockname()[1]}"
        assert fleet.with_environment({"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:1,{address}"}).obstacle() is None
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
        assert fleet.resource.obstacle() is None
    assert f"no Kafka answers at {address}" in str(fleet.resource.obstacle())


def test_the_fleet_is_a_dagster_resource(fleet: Fleet) -> None:
    digest = fleet.image("v1")

    @dg.asset
    def deployment(inference: dg.ResourceParam[InferenceFleet]) -> None:
        inference.roll(digest, DEADLINE)

    assert dg.materialize([deployment], resources={"inference": fleet.resource}).success
    assert fleet.workers() == [digest] * REPLICAS
