"""What runs wait for, with the real webserver and daemon on the settings of deploy/dagster.yaml."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_assets.automation.rollout import rollout_config
from mlops_assets.cli.dagster_server import DagsterServer, serve
from mlops_assets_tests.integration import backfills, queue_world

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
SECONDS = 300
"""Patience, since machines are busy. Nothing here waits for a time to pass."""

WORD = {"action": "forced", "model_version": "none", "decided_by": "test", "reason": "test"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DagsterServer]:
    (tmp_path / "hold").touch()
    with serve(tmp_path / "dagster", {"QUEUE_WORLD": str(tmp_path)}, module=queue_world.__name__) as server:
        yield server


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def roll(server: DagsterServer, digest: str) -> str:
    return server.launch_job("rollout", config=rollout_config(digest, "test"))


def begun(folder: Path, step: str, name: str) -> int | None:
    """The id of the process in which that step of a run (a roll: onto that digest) has begun; None before."""
    file = folder / f"{step}-{name}"
    return int(file.read_text()) if file.exists() else None


def test_an_operator_does_not_wait_behind_a_backfill(server: DagsterServer, tmp_path: Path) -> None:
    numbers = queue_world.NUMBERS.get_partition_keys()
    runs = [server.launch_assets(["candidate"], number) for number in numbers[:10]]
    backfills.launch(server, assetSelection=[{"path": ["candidate"]}], partitionNames=numbers[10:], title="test")

    def statuses() -> Counter[str]:
        return Counter(run["status"] for run in server.runs("__ASSET_JOB"))

    expected = Counter(STARTED=4, QUEUED=16)
    wait_until(lambda: statuses() == expected, "two days run and two of the backfill, the others wait")
    override = server.launch_job("override", config={"ops": {"record_override": {"config": WORD}}})
    roll(server, "sha256:a")
    wait_until(lambda: begun(tmp_path, "rollout", "sha256:a") is not None, "the roll begins")
    wait_until(lambda: server.run(override)["status"] == "FAILURE", "the override is decided")
    assert "no model 'none' was ever judged" in "\n".join(server.failures())
    assert statuses() == expected
    assert {server.run(run)["status"] for run in runs[:2]} == {"STARTED"}


def test_a_killed_run_frees_its_pool(server: DagsterServer, tmp_path: Path) -> None:
    first = {step: server.launch_assets([step], "0") for step in ("spark", "promotion")}
    rolling = roll(server, "sha256:first")
    held = {**first, "rollout": "sha256:first"}
    wait_until(lambda: all(begun(tmp_path, *each) for each in held.items()), "each pool is held")
    second = {step: server.launch_assets([step], "1") for step in ("spark", "promotion")}
    roll(server, "sha256:second")
    waiting = {**second, "rollout": "sha256:second"}
    assert not any(begun(tmp_path, *each) for each in waiting.items())
    (tmp_path / "hold").unlink()
    for each in held.items():
        os.kill(begun(tmp_path, *each) or 0, signal.SIGKILL)
    wait_until(lambda: all(begun(tmp_path, *each) for each in waiting.items()), "the next of each pool has begun")
    assert {server.run(run)["status"] for run in (*first.values(), rolling)} == {"FAILURE"}


def test_runs_that_dagster_took_with_it_are_started_again(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    arguments = (tmp_path / "dagster", {"QUEUE_WORLD": str(tmp_path)})
    with serve(*arguments, module=queue_world.__name__) as server:
        run = server.launch_assets(["spark"], "0")
        wait_until(lambda: begun(tmp_path, "spark", run) is not None, "it has begun")
    (tmp_path / "hold").unlink()
    with serve(*arguments, module=queue_world.__name__) as server:
        expected = Counter(FAILURE=1, SUCCESS=1)
        wait_until(lambda: Counter(each["status"] for each in server.runs("__ASSET_JOB")) == expected, "it ran again")
        assert server.run(run)["status"] == "FAILURE"
