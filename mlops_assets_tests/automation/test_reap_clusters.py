"""The reaper: what no run waits for any more is deleted, and nothing else."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.assets.notices import NOTICES
from mlops_assets.automation.reap_clusters import reap_clusters
from mlops_assets.resources.ephemeral import JOBS, RUN
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.spark import LocalSpark, Spark
from mlops_assets_tests.resources.fake_cloud import Cloud, FakeCloudSpark

STATUSES = dg.DagsterRunStatus
ENDED = {STATUSES.SUCCESS, STATUSES.FAILURE, STATUSES.CANCELED}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def reap(
    instance: dg.DagsterInstance, tmp_path: Path, cloud: Cloud, spark: Spark | None = None
) -> dg.ExecuteInProcessResult:
    if spark is None:
        spark = FakeCloudSpark(deadline_minutes=60)
        spark.use(cloud)
    resources = {"spark": spark, "lake": LakeResource(root=str(tmp_path / "lake"))}
    definitions = dg.Definitions(jobs=[reap_clusters], resources=resources)
    job = definitions.resolve_job_def("reap_clusters")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def run_in(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    run_id: str = instance.create_run_for_job(reap_clusters, status=status).run_id
    return run_id


def minutes_ago(minutes: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes)


@pytest.mark.parametrize("age", [5, 65, 75])
@pytest.mark.parametrize("status", [*(status for status in STATUSES if status is not STATUSES.QUEUED), None])
def test_a_cluster_goes_when_its_run_has_ended_or_should_have(
    instance: dg.DagsterInstance, tmp_path: Path, status: dg.DagsterRunStatus | None, age: float
) -> None:
    cloud, run_id = Cloud(), run_in(instance, status) if status else "no-such-run"
    cloud.add("c", {RUN: run_id}, minutes_ago(age))
    assert reap(instance, tmp_path, cloud).success
    assert cloud.deleted == (["c"] if status in ENDED or age > 70 else [])


def test_each_cluster_is_judged_by_its_own_run_and_the_log_says_why(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    cloud = Cloud()
    for status in (STATUSES.STARTED, STATUSES.CANCELED, STATUSES.FAILURE):
        cloud.add(status.value, {RUN: run_in(instance, status)}, minutes_ago(1))
    result = reap(instance, tmp_path, cloud)
    assert sorted(cloud.deleted) == ["CANCELED", "FAILURE"]
    said = [record.user_message for record in instance.all_logs(result.run_id)]
    assert any(line.startswith("CANCELED: deleting it, its run") and "has ended: CANCELED" in line for line in said)
    assert any(line.startswith("STARTED: of run") and line.endswith("stays") for line in said)
    assert "2 of 3 clusters deleted" in said


def test_a_cluster_that_does_not_go_fails_the_job_after_the_others_are_deleted(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    cloud, ended = Cloud(refused_deletions=1), run_in(instance, STATUSES.FAILURE)
    cloud.add("stuck", {RUN: ended})
    cloud.add("willing", {RUN: ended})
    result = reap(instance, tmp_path, cloud)
    assert not result.success
    assert cloud.deleted == ["willing"]
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "not deleted: stuck: the cloud has an incident" in str(failure.event_specific_data)
    assert reap(instance, tmp_path, cloud).success
    assert not cloud.existing


def test_the_model_of_a_killed_run_goes_too(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    models = tmp_path / "lake" / JOBS
    kept, gone = (models / run_in(instance, status) for status in (STATUSES.STARTED, STATUSES.FAILURE))
    for folder in (kept, gone):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"a model")
    assert reap(instance, tmp_path, Cloud()).success
    assert list(models.iterdir()) == [kept]


def test_a_local_spark_has_no_clusters(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    assert reap(instance, tmp_path, Cloud(), LocalSpark()).success


def test_people_are_told_of_each_cluster_that_was_left_and_whether_it_went(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    cloud, run_id = Cloud(), run_in(instance, STATUSES.FAILURE)
    cloud.add("c1", {RUN: run_id}, minutes_ago(30))
    cloud.add("c2", {RUN: run_in(instance, STATUSES.STARTED)}, minutes_ago(1))
    reap(instance, tmp_path, cloud)
    (record,) = instance.fetch_observations(NOTICES, limit=10).records
    assert record.asset_observation
    told = {name: value.value for name, value in record.asset_observation.metadata.items()}
    assert told["kind"] == "orphan clusters"
    assert told["key"] == "orphan c1"
    assert "Spark cluster c1 was left behind, and is deleted" in str(told["title"])
    assert f"Its run {run_id} has ended" in str(told["text"])
    assert told["path"] == f"runs/{run_id}"
