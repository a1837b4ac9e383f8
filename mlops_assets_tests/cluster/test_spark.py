"""Spark on a real Kubernetes: one cluster for a run, gone when that ends, and files equal to those of a local Spark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.automation.reap_clusters import reap_clusters
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.spark import LocalSpark, Usage
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.cluster.rig import ROOT
from mlops_assets_tests.cluster.spark_rig import BUCKET, NAMESPACE, SparkRig
from mlops_assets_tests.spark.raw_days import DAYS, data, write_raw
from mlops_assets_tests.spark.test_predictions import model_folder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
CLICKS = 60_000
NUMBERS = count()


@pytest.fixture(scope="module")
def expected(spark_rig: SparkRig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The lake as a local Spark makes it of the same clicks."""
    lake = Lake(str(tmp_path_factory.mktemp("local")))
    for day in DAYS:
        write_raw(lake, day, CLICKS)
    LocalSpark(memory="1g").training_set(lake.root, DAYS, lambda _: None)
    return data(lake)


@pytest.fixture
def lake(spark_rig: SparkRig) -> Iterator[Lake]:
    """Three days of clicks on S3. No test leaves a pod."""
    lake = Lake(f"s3://{BUCKET}/{next(NUMBERS)}")
    for day in DAYS:
        write_raw(lake, day, CLICKS)
    assert spark_rig.pods() == []
    yield lake
    assert spark_rig.pods() == []


def content(lake: Lake) -> dict[str, bytes]:
    """Every object of the lake by its key."""
    keys = [key for folder in ("raw_clicks", "training_set", "_staging", "_jobs") for key in lake.storage.list(folder)]
    return {key: lake.storage.get(key)[0] for key in keys}  # type: ignore[index]


def start_run(spark_rig: SparkRig, lake: Lake, home: Path, days: Sequence[str]) -> subprocess.Popen[str]:
    """A run in the real environment, as a code location would be configured."""
    spark = spark_rig.spark()
    variables = {
        "MLOPS_ENVIRONMENT": "real",
        "MLOPS_LAKE": lake.root,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nothing here asks it
        "MLOPS_SPARK": "kubernetes",
        "MLOPS_SPARK_IMAGE": spark.image,
        "MLOPS_SPARK_NAMESPACE": NAMESPACE,
        "MLOPS_SPARK_SECRET": str(spark.secret),
        "MLOPS_SPARK_CPU_REQUEST": str(spark.cpu_request),
        "MLOPS_SPARK_HEAP_MIB": str(spark.heap_mib),
        "MLOPS_SPARK_PYTHON_MIB": str(spark.python_mib),
        "MLOPS_SPARK_DEADLINE_MINUTES": "5",
        "MLOPS_SPARK_PRICE_PER_HOUR": "3.6",
        "KUBECONFIG": str(spark_rig.kubeconfig),
        "JAVA_HOME": "/nowhere",  # the run needs no Java
    }
    command = [sys.executable, "-m", "mlops_assets_tests.cluster.spark_run", str(home), *days]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def in_background(work: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def wait_for_day(lake: Lake, day: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while lake.manifest("training_set", day) is None:
        assert time.monotonic() < deadline, f"{day} is not committed"
        time.sleep(0.1)


def test_a_backfill_of_three_days_uses_one_cluster_and_leaves_none(
    spark_rig: SparkRig, lake: Lake, expected: dict[str, bytes], tmp_path: Path
) -> None:
    process, drivers, executors, most = start_run(spark_rig, lake, tmp_path, DAYS), set[str](), set[str](), 0
    while process.poll() is None:
        present = spark_rig.pods()
        most = max(most, len(present))
        drivers |= {name for name in present if "-exec-" not in name}
        executors |= {name for name in present if "-exec-" in name}
        time.sleep(0.2)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-5000:]
    assert (len(drivers), len(executors), most) == (1, 2, 3)
    assert spark_rig.pods() == []
    assert content(lake) == expected
    for day in DAYS:  # the driver's log, in the run's
        assert f"training_set of {day}: {CLICKS:,} rows" in output
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        events = instance.fetch_materializations(dg.AssetKey("training_set"), limit=9).records
        materialized = [record.asset_materialization for record in events if record.asset_materialization]
    found: list[dict[str, Any]] = [{name: v.value for name, v in each.metadata.items()} for each in materialized]
    assert [each["dagster/row_count"] for each in found] == [CLICKS] * 3
    (where,) = {each["spark/where"] for each in found}
    assert where == "Kubernetes, namespace spark: a driver and 2 executors of 1 cores"
    for each in found:
        assert (each["spark/days"], each["spark/rows"]) == (3, 3 * CLICKS)
        assert each["spark/estimated_cost"] == pytest.approx(each["spark/cluster_seconds"] / 1000, abs=1e-3)


def test_executors_that_are_killed_cost_nothing(spark_rig: SparkRig, lake: Lake, expected: dict[str, bytes]) -> None:
    job = in_background(lambda: spark_rig.spark().training_set(lake.root, DAYS, lambda _: None))
    wait_for_day(lake, DAYS[0])
    victims = spark_rig.wait_for_pods("executor")  # all of them, so that one of them was at work
    spark_rig.kubectl("delete", "pod", *victims, "--grace-period=0", "--force")
    assert lake.manifest("training_set", DAYS[2]) is None  # else the test shows nothing
    job.result(300)
    assert content(lake) == expected


def test_a_driver_that_is_killed_leaves_whole_days_and_no_pod_and_a_rerun_does_the_rest(
    spark_rig: SparkRig, lake: Lake, expected: dict[str, bytes]
) -> None:
    seen, used = list[Manifest](), list[Usage]()
    job = in_background(lambda: spark_rig.spark().training_set(lake.root, DAYS, seen.append, used.append))
    wait_for_day(lake, DAYS[0])
    (driver,) = spark_rig.pods("driver")
    spark_rig.kubectl("delete", "pod", driver, "--grace-period=0", "--force")
    with pytest.raises(FailedDaysError, match="the job failed, this day not committed"):
        job.result(300)
    assert spark_rig.pods() == []
    there = [day for day in DAYS if lake.manifest("training_set", day)]
    assert [manifest.date for manifest in seen] == there == list(used[0].days)
    assert 1 <= len(there) < 3
    whole = {key: value for key, value in content(lake).items() if any(f"training_set/date={d}/" in key for d in there)}
    assert {key: value for key, value in whole.items() if not key.startswith("_")}.items() <= expected.items()
    spark_rig.spark().training_set(lake.root, DAYS, lambda _: None)
    assert content(lake) == expected


def test_a_run_terminated_while_its_cluster_is_created_leaves_nothing(
    spark_rig: SparkRig, lake: Lake, tmp_path: Path
) -> None:
    process = start_run(spark_rig, lake, tmp_path, DAYS)
    deadline = time.monotonic() + 120
    while not spark_rig.pods():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # as Dagster's launcher does when somebody terminates the run
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert spark_rig.pods() == [], output[-3000:]
    assert lake.days("training_set") == []


def test_what_a_killed_run_leaves_is_deleted_by_the_reaper_once_the_run_has_ended(
    spark_rig: SparkRig, lake: Lake, tmp_path: Path
) -> None:
    process = start_run(spark_rig, lake, tmp_path, DAYS)
    spark_rig.wait_for_pods("executor")
    process.kill()
    process.communicate(timeout=30)
    spark = spark_rig.spark()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        resources = {"spark": spark, "lake": LakeResource(root=lake.root)}
        job = dg.Definitions(jobs=[reap_clusters], resources=resources).resolve_job_def("reap_clusters")
        (cluster,) = spark.clusters()
        run = instance.get_run_by_id(cluster.run_id)
        assert run is not None
        assert job.execute_in_process(instance=instance).success
        assert [each.id for each in spark.clusters()] == [cluster.id]  # its run goes on, for all that Dagster knows
        instance.report_run_failed(run)  # as Dagster's run monitoring does
        assert job.execute_in_process(instance=instance).success
    assert spark_rig.pods() == []


def test_predictions_take_their_model_along(spark_rig: SparkRig, lake: Lake, tmp_path: Path) -> None:
    local = Lake(str(tmp_path / "local"))
    write_raw(local, DAYS[0], CLICKS)
    model = model_folder(tmp_path / "model")
    for each, spark in ((local, LocalSpark(memory="1g")), (lake, spark_rig.spark(executors=1))):
        spark.training_set(each.root, DAYS[:1], lambda _: None)
        spark.predictions(each.root, DAYS[:1], str(model), lambda _: None)
    there, here = (each.require("batch_predictions", DAYS[0]) for each in (lake, local))
    assert (there.version, there.rows) == (here.version, CLICKS)
    assert not lake.storage.list("_jobs")
