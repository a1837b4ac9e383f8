"""Spark on EMR: the real client against moto's server, whose clusters live and end as EMR's do."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlops_assets.lake import s3 as lake_s3
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources import emr_requests, ephemeral
from mlops_assets.resources.emr import EmrSpark
from mlops_assets.resources.ephemeral import CODE_LOCATION, RUN, ClusterError, Phase
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.resources.emr.server import LOGS, UNKNOWN, World, amazon
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

REQUIRED = {
    "MLOPS_SPARK_ENVIRONMENT": "s3://lake/spark-environment-1-abc",
    "MLOPS_SPARK_EMR_SUBNETS": "subnet-1,subnet-2",
    "MLOPS_SPARK_EMR_LOG_URI": f"s3://{LOGS}/logs/",
}
COMMAND = ["mlops_assets.spark.training_set", "--lake", "s3://lake", "--days", DAYS[0]]


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[World, dict[str, str]]]:
    with amazon() as served:
        yield served


@pytest.fixture
def world(cloud: tuple[World, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Without clusters and faults; this process' variables name it."""
    for name, value in cloud[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ephemeral, "DELETE_SECONDS", 0.1)
    for client in (lake_s3.client, emr_requests.client):
        client.cache_clear()
    cloud[0].__dict__.update(World(address=cloud[0].address).__dict__)
    for cluster in cloud[0].clusters():
        cluster.state = "TERMINATED"
    boto3.client("s3", region_name=os.environ["AWS_REGION"]).create_bucket(Bucket=LOGS)
    yield cloud[0]
    for client in (lake_s3.client, emr_requests.client):
        client.cache_clear()


def made(**changes: Any) -> EmrSpark:
    form = EmrSpark.from_environment(REQUIRED)
    return EmrSpark(**{**form.model_dump(exclude_none=True), "poll_seconds": 0.1, "deadline_minutes": 2, **changes})


@pytest.fixture
def spark(world: World) -> EmrSpark:
    return made()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path / "lake"))
    write_raw(made, DAYS[0], clicks=300)
    return made


def application(words: list[str]) -> list[str]:
    """The command that main.py would become, of the step's words."""
    start = next(number for number, word in enumerate(words) if word.endswith("main.py"))
    return [word for word in words[start + 2 :] if not word.startswith("AWS_")]


def really(words: list[str]) -> tuple[bool, str]:
    """The cluster's part, on this machine."""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [sys.executable, "-m", *application(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    return done.returncode == 0, done.stdout


@pytest.mark.integration
def test_a_backfill_is_one_cluster_and_none_is_left(spark: EmrSpark, world: World, lake: Lake) -> None:
    write_raw(lake, DAYS[1], clicks=200)
    world.play, seen, before = really, list[Manifest](), len(world.clusters())
    spark.training_set(lake.root, DAYS[:2], seen.append)
    assert [(manifest.date, manifest.rows) for manifest in seen] == [(DAYS[0], 300), (DAYS[1], 200)]
    assert len(world.clusters()) == before + 1
    assert not world.left()


def test_the_cluster_ends_by_itself_whoever_lives(spark: EmrSpark, world: World) -> None:
    cluster = spark.create(spark.labels(), COMMAND)
    described = emr_requests.client().describe_cluster(ClusterId=cluster)["Cluster"]
    assert described["AutoTerminate"]
    assert not described["TerminationProtected"]
    assert {tag["Key"]: tag["Value"] for tag in described["Tags"]} == {
        CODE_LOCATION: "mlops-assets",
        RUN: spark._run_id,
        "for-use-with-amazon-emr-managed-policies": "true",
    }
    (step,) = emr_requests.client().list_steps(ClusterId=cluster)["Steps"]
    assert step["ActionOnFailure"] == "TERMINATE_CLUSTER"
    words = step["Config"]["Args"]
    assert words[:5] == ["timeout", "--kill-after=60", "420", "spark-submit", "--master"], "2 minutes, and 5 more"
    assert "spark.yarn.dist.archives=s3://lake/spark-environment-1-abc/environment.tar.gz#environment" in words
    assert application(words) == COMMAND
    assert spark.reconcile(cluster, COMMAND).phase is Phase.STARTING


def test_spot_nodes_are_tasks_that_fall_back_to_on_demand(world: World) -> None:
    spark = made(spot_nodes=4, nodes=1, node_type="m5.xlarge|m5a.xlarge")
    spark.create(spark.labels(), COMMAND)
    master, core, task = world.requests[-1]["Instances"]["InstanceFleets"]
    assert (master["TargetOnDemandCapacity"], core["TargetOnDemandCapacity"]) == (1, 1)
    assert not {"TargetSpotCapacity"} & {*master, *core}
    assert task["TargetSpotCapacity"] == 4
    assert [kind["InstanceType"] for kind in task["InstanceTypeConfigs"]] == ["m5.xlarge", "m5a.xlarge"]
    assert task["LaunchSpecifications"]["SpotSpecification"]["TimeoutAction"] == "SWITCH_TO_ON_DEMAND"


def test_a_job_that_succeeds_without_a_manifest_has_failed(spark: EmrSpark, world: World, lake: Lake) -> None:
    with pytest.raises(FailedDaysError, match=f"{DAYS[0]}: ClusterError: the job succeeded, this day not committed"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


def test_a_job_that_ends_between_two_questions_is_not_taken_for_failed(spark: EmrSpark, world: World) -> None:
    asked = threading.Event()
    world.play = lambda words: (asked.wait(30), "")

    def end_the_job(call: str) -> None:
        if call == "DescribeCluster" and world.clusters()[-1].steps[0].state == "RUNNING":
            asked.set()
            while world.clusters()[-1].state == "RUNNING":
                time.sleep(0.01)

    world.before = end_the_job
    cluster = spark.create(spark.labels(), COMMAND)
    phase = Phase.STARTING
    while phase in (Phase.STARTING, Phase.RUNNING):
        phase = spark.reconcile(cluster, COMMAND).phase
        time.sleep(0.01)
    assert phase is Phase.SUCCEEDED


def test_a_job_that_fails_says_why_and_its_late_log_is_waited_for(
    spark: EmrSpark, world: World, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    world.play = lambda words: (False, "MemoryError: the driver\n")
    with pytest.raises(FailedDaysError, match=r"the step is FAILED\. Unknown Error\.\. s3://.*STEP_FAILURE: Shut down"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    out = capsys.readouterr().out
    assert out.startswith("MemoryError: the driver\nINFO Client: done\n")
    assert f"will be at s3://{LOGS}/logs/j-" in out
    assert not world.left()


def test_a_log_that_does_not_come_is_said_where_to_find(
    world: World, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    world.play, world.keeps_logs = lambda words: (False, "too late"), True
    with pytest.raises(FailedDaysError):
        made(log_seconds=0.5).training_set(lake.root, DAYS[:1], lambda _: None)
    assert capsys.readouterr().out.startswith("The whole log is or will be at s3://")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (("VALIDATION_ERROR", "The subnet has no route"), "VALIDATION_ERROR: The subnet has no route: check roles"),
        (("BOOTSTRAP_FAILURE", "On the master instance"), "BOOTSTRAP_FAILURE: On the master instance: see the nodes"),
        (("INSTANCE_FLEET_TIMEOUT", "No capacity"), "INSTANCE_FLEET_TIMEOUT: No capacity: no instances could be had"),
    ],
)
def test_a_cluster_that_does_not_start_says_why(
    spark: EmrSpark, world: World, lake: Lake, reason: tuple[str, str], said: str
) -> None:
    world.fails_to_start = reason
    with pytest.raises(FailedDaysError, match=said):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


def test_a_creation_that_hangs_ends_at_the_deadline(world: World, lake: Lake) -> None:
    world.hangs = True
    with pytest.raises(FailedDaysError, match=r"still starting after the deadline of 0\.02 minutes"):
        made(deadline_minutes=0.02).training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


def test_an_interrupted_creation_leaves_nothing(spark: EmrSpark, world: World, lake: Lake) -> None:
    def interrupt() -> None:
        _thread.interrupt_main()  # the run is terminated
        time.sleep(1)

    world.on_create = interrupt
    with pytest.raises(KeyboardInterrupt):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert len(world.requests) == 1
    assert not world.left()


def test_throttling_is_waited_out(spark: EmrSpark, world: World, lake: Lake) -> None:
    world.throttled = 2
    with pytest.raises(FailedDaysError, match="the job succeeded"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert world.calls[:3] == ["RunJobFlow"] * 3
    assert len(world.requests) == 1
    assert not world.left()


def test_a_lost_answer_leaves_no_second_cluster(spark: EmrSpark, world: World) -> None:
    world.hangs, world.lost_answers = True, 1
    cluster = spark.create(spark.labels(), COMMAND)
    assert len(world.requests) == 2, "EMR knows no request twice"
    assert world.left() == [cluster]


def test_a_refusal_is_no_passing_fault(spark: EmrSpark, world: World) -> None:
    with pytest.raises(ClusterError, match=r"EMR, looking at the cluster: .*InvalidRequest"):
        spark.reconcile(UNKNOWN, COMMAND)


def test_deleting_what_is_gone_is_no_error(spark: EmrSpark, world: World) -> None:
    cluster = spark.create(spark.labels(), COMMAND)
    for _ in range(2):
        spark.delete(cluster)
    spark.delete(UNKNOWN)
    assert spark.clusters() == []


def test_others_clusters_are_not_ours(spark: EmrSpark, world: World) -> None:
    world.hangs = True
    for location in ("mlops-assets", "mlops-assets-2", "other", "mlops-assets"):
        spark.create({CODE_LOCATION: location, RUN: "r"}, COMMAND)
    assert [cluster.run_id for cluster in spark.clusters()] == ["r", "r"]
    assert world.calls.count("DescribeCluster") == 2


def test_missing_variables_are_all_named_with_their_meaning() -> None:
    with pytest.raises(ValueError, match=r"ENVIRONMENT \(address.*EMR_SUBNETS \(ids of.*EMR_LOG_URI \(where EMR"):
        EmrSpark.from_environment({})
    form = EmrSpark.from_environment({**REQUIRED, "MLOPS_SPARK_SPOT_NODES": "2", "MLOPS_SPARK_PRICE_PER_HOUR": "1.5"})
    assert (form.spot_nodes, form.price_per_hour, form.subnets) == (2, 1.5, ["subnet-1", "subnet-2"])
    assert form.log_uri == f"s3://{LOGS}/logs"
