"""Spark on Yandex Data Proc: the real client against the same services on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from yandex.cloud.dataproc.v1 import cluster_pb2

from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources.dataproc import DataprocSpark
from mlops_assets.resources.ephemeral import CODE_LOCATION, RUN
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.resources.dataproc.conftest import REQUIRED, made
from mlops_assets_tests.resources.dataproc.world import World
from mlops_assets_tests.spark.raw_days import DAYS, write_raw


def really(arguments: list[str], say: Callable[[str], None]) -> bool:
    """The cluster's part, on this machine: the very command that main.py would become."""
    command = arguments[1:]
    while "=" in command[0]:
        command.pop(0)
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    say(done.stdout)
    return done.returncode == 0


@pytest.mark.integration
def test_a_backfill_is_one_cluster_and_none_is_left(
    spark: DataprocSpark, world: World, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(lake, DAYS[1], clicks=200)
    world.play, seen = really, list[Manifest]()
    spark.training_set(lake.root, DAYS[:2], seen.append)
    assert [(manifest.date, manifest.rows) for manifest in seen] == [(DAYS[0], 300), (DAYS[1], 200)]
    assert len(world.requests) == len(world.jobs) == 1
    assert not world.left()
    out = capsys.readouterr().out  # in pages of 40 bytes, as it grew
    assert [line.split(", version")[0] for line in out.splitlines()] == [
        f"training_set of {DAYS[0]}: 300 rows",
        f"training_set of {DAYS[1]}: 200 rows",
    ]


def test_the_cluster_is_the_originals_and_can_be_deleted(spark: DataprocSpark, world: World, lake: Lake) -> None:
    with pytest.raises(FailedDaysError):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    (request,) = world.requests
    assert dict(request.labels) == spark.labels() == {CODE_LOCATION: "mlops-assets", RUN: spark._run_id}
    assert not request.deletion_protection
    nodes = [(each.hosts_count, each.resources.resource_preset_id) for each in request.config_spec.subclusters_spec]
    assert nodes == [(1, "s3-c2-m8"), (3, "s3-c4-m16")]
    assert not any(each.HasField("autoscaling_config") for each in request.config_spec.subclusters_spec)
    (job,) = world.jobs.values()
    archive = "s3a://lake/spark-environment-1-abc/environment.tar.gz"
    assert job.pyspark_job.main_python_file_uri == "s3a://lake/spark-environment-1-abc/main.py"
    assert job.pyspark_job.args[0] == archive
    assert job.pyspark_job.properties["spark.yarn.dist.archives"] == f"{archive}#environment"
    everything = f"{request} {job}"
    assert "PRIVATE KEY" not in everything
    assert "t1." not in everything


def test_preemptible_nodes_are_a_group_of_fixed_size(cloud: tuple[World, dict[str, str]], world: World) -> None:
    spark = made({**cloud[1], "MLOPS_SPARK_SPOT_NODES": "4", "MLOPS_SPARK_NODES": "1"})
    compute = spark.cluster_request(spark.labels()).config_spec.subclusters_spec[-1]
    assert (compute.name, compute.hosts_count, compute.autoscaling_config.max_hosts_count) == ("compute", 4, 4)
    assert compute.autoscaling_config.preemptible


def test_a_job_that_succeeds_without_a_manifest_has_failed(spark: DataprocSpark, world: World, lake: Lake) -> None:
    with pytest.raises(FailedDaysError, match=f"{DAYS[0]}: ClusterError: the job succeeded, this day not committed"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


def test_a_job_that_fails_says_where_to_look_and_brings_its_log(
    spark: DataprocSpark, world: World, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: list[str], say: Callable[[str], None]) -> bool:
        say("Traceback (most recent call last):\n" + "  a frame\n" * 20 + "MemoryError: the driver\n")
        return False

    world.play = fails
    with pytest.raises(FailedDaysError, match="the job ended as ERROR; its log says why"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert capsys.readouterr().out.endswith("  a frame\nMemoryError: the driver\n")
    assert not world.left()


def test_a_job_is_submitted_once_whoever_looks(spark: DataprocSpark, world: World) -> None:
    cluster = spark.create(spark.labels(), ["mlops_assets.spark.training_set"])
    for looker in (spark, DataprocSpark(**spark.model_dump(exclude_none=True))):
        for _ in range(100):
            if looker.reconcile(cluster, ["mlops_assets.spark.training_set"]).phase in ("succeeded", "failed"):
                break
            time.sleep(0.05)
    assert [job.name for job in world.jobs.values()] == ["training-set"]


def test_others_clusters_are_not_ours(spark: DataprocSpark, world: World) -> None:
    for location in ("mlops-assets", "other", "mlops-assets", "mlops-assets", "other"):
        spark.create({CODE_LOCATION: location, RUN: "r"}, ["module"])
    next(iter(world.clusters.values())).status = cluster_pb2.Cluster.STOPPING
    assert [cluster.run_id for cluster in spark.clusters()] == ["r", "r"]


def test_missing_variables_are_all_named_with_their_meaning() -> None:
    some = {"MLOPS_SPARK_YC_FOLDER": "f", "MLOPS_SPARK_YC_SUBNET": "s", "MLOPS_SPARK_YC_BUCKET": ""}
    with pytest.raises(ValueError, match=r"ENVIRONMENT \(address.*SERVICE_ACCOUNT \(id of.*YC_BUCKET \(name of"):
        DataprocSpark.from_environment(some)
    with pytest.raises(ValueError, match="MLOPS_SPARK_NODES is 'three'; it must be a whole number"):
        DataprocSpark.from_environment({**REQUIRED, "MLOPS_SPARK_NODES": "three"})
    form = DataprocSpark.from_environment({**REQUIRED, "MLOPS_SPARK_CONF": "spark.executor.cores=2 spark.a='b c'"})
    assert form.spark_conf == {"spark.executor.cores": "2", "spark.a": "b c"}
