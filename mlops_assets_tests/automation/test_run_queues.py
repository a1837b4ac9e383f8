"""Every run has a queue, and what killed runs held is freed in time. test_queues.py sees it happen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.execution.plan import instance_concurrency_context
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext

from mlops_assets.assets.order import DAYS, QUEUE
from mlops_assets.automation.run_queues import RunQueues, operators
from mlops_assets.cli.dagster_server import INSTANCE_SETTINGS
from mlops_assets.definitions import defs

SETTINGS = yaml.safe_load(INSTANCE_SETTINGS.read_text())


@dg.op
def nothing() -> None:
    """Nothing."""


@dg.job
def untagged() -> None:
    nothing()


@dg.job(tags=operators("urgent"))
def urgent() -> None:
    nothing()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=SETTINGS) as instance:
        yield instance


def submitted(instance: dg.DagsterInstance, job: dg.JobDefinition, tags: dict[str, str]) -> dg.DagsterRun:
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "these"), job.name)
    run = instance.create_run_for_job(job, tags={**job.run_tags, **tags}, remote_job_origin=origin)
    assert isinstance(instance.run_coordinator, RunQueues)
    # the workspace is for the launcher, whom this never reaches
    return instance.run_coordinator.submit_run(SubmitRunContext(run, workspace=None))  # type: ignore[arg-type]


def test_a_run_that_has_no_queue_is_one_of_the_days(instance: dg.DagsterInstance) -> None:
    run = submitted(instance, untagged, {"dagster/partition": "2017-11-06", "dagster/from_ui": "true"})
    assert run.status is dg.DagsterRunStatus.QUEUED
    assert run.tags[QUEUE] == DAYS
    assert run.tags["dagster/partition"] == "2017-11-06"


def test_an_operators_run_keeps_its_own_queue_and_goes_ahead(instance: dg.DagsterInstance) -> None:
    run = submitted(instance, urgent, {})
    assert run.status is dg.DagsterRunStatus.QUEUED
    assert (run.tags[QUEUE], int(run.tags["dagster/priority"])) == ("urgent", 10)


def test_operators_jobs_each_have_a_queue_and_the_day_has_none() -> None:
    jobs = {job.name: job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert {"rollout", "override", "reap_clusters"} < jobs.keys()
    queues = {name: job.run_tags.get(QUEUE) for name, job in jobs.items()}
    assert queues == {name: None if name == "daily_graph" else name for name in jobs}


def test_each_queue_is_bounded_and_nothing_else_is() -> None:
    runs = SETTINGS["concurrency"]["runs"]
    assert runs["max_concurrent_runs"] == -1
    (limit,) = runs["tag_concurrency_limits"]
    assert limit == {"key": QUEUE, "value": {"applyLimitPerUniqueValue": True}, "limit": 2}


def test_a_killed_runs_pool_is_free_within_two_minutes() -> None:
    """At worst: the monitor finds the run's end at its poll, frees the pool at a later one, and a waiting run asks."""
    monitoring = SETTINGS["run_monitoring"]
    freed = monitoring["free_slots_after_run_end_seconds"]
    assert freed
    polls = 2 * monitoring["poll_interval_seconds"]
    assert polls + freed + instance_concurrency_context.MAX_CONCURRENCY_CLAIM_BLOCKED_INTERVAL < 120
