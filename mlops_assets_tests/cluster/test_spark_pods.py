"""Single driver pods on a real Kubernetes: why one does not start or ends, its log, its labels, and who may do what."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from mlops_assets.lake.store import Lake
from mlops_assets.resources.ephemeral import RUN, Phase
from mlops_assets_tests.cluster.spark_rig import BUCKET, NAMESPACE, SparkRig
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def lake(spark_rig: SparkRig) -> Lake:
    """A day of clicks on S3."""
    lake = Lake(f"s3://{BUCKET}/reasons")
    write_raw(lake, DAYS[0], clicks=100)
    return lake


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": "127.0.0.1:5000/spark:no-such-tag"}, "the job failed, .*ImagePullBackOff"),
        (
            {"secret": "no-such-secret"},
            'the job failed, .*CreateContainerConfigError: secret "no-such-secret" not foun',
        ),
        (
            {"node_selector": {"pool": "none"}, "deadline_minutes": 0.1},
            "still starting after the deadline of 0.1 minutes. .*didn't match Pod's node affinity/selector",
        ),
        ({"service_account": "no-such-account"}, "Kubernetes refused a driver pod.*no-such-account.* not found"),
    ],
)
def test_why_a_driver_does_not_start(spark_rig: SparkRig, lake: Lake, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        spark_rig.spark(**fields).training_set(lake.root, DAYS[:1], lambda _: None)
    assert spark_rig.pods() == []


def test_a_driver_that_needs_too_much_memory_is_said_to(spark_rig: SparkRig) -> None:
    spark = spark_rig.spark()
    driver = spark.create(spark.labels(), ["timeit", "-n1", "-r1", "b'x' * 3_000_000_000"])
    try:
        deadline = time.monotonic() + 120
        while (status := spark.reconcile(driver, [])).phase in (Phase.STARTING, Phase.RUNNING):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        spark.delete(driver)
    assert (status.phase, "OOMKilled" in status.reason) == (Phase.FAILED, True), status


def test_the_log_comes_once_whatever_the_looks(spark_rig: SparkRig) -> None:
    spark = spark_rig.spark()
    program = "import time; [(print('line', n, flush=True), time.sleep(0.02)) for n in range(200)]"
    driver = spark.create(spark.labels(), ["timeit", "-n1", "-r1", program])
    try:
        text, position, status = "", None, spark.reconcile(driver, [])
        while status.phase in (Phase.STARTING, Phase.RUNNING):
            status = spark.reconcile(driver, [])
            more, position = spark.log(driver, position)
            text += more
        assert status.phase == Phase.SUCCEEDED
    finally:
        spark.delete(driver)
    assert [line for line in text.splitlines() if line.startswith("line")] == [f"line {n}" for n in range(200)]


@pytest.mark.parametrize(
    ("account", "may", "what"),
    [
        ("dagster", True, ["create", "pods"]),
        ("dagster", True, ["delete", "pods"]),
        ("dagster", False, ["create", "pods", "--subresource=exec"]),
        ("dagster", False, ["get", "secrets"]),
        ("spark", True, ["create", "pods"]),
        ("spark", False, ["get", "secrets"]),
        ("spark", False, ["create", "pods", "--subresource=exec"]),
    ],
)
def test_the_accounts_have_just_their_rights(spark_rig: SparkRig, account: str, may: bool, what: list[str]) -> None:
    command = ["kubectl", "auth", "can-i", *what, "-n", NAMESPACE, f"--as=system:serviceaccount:{NAMESPACE}:{account}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert answer.stdout.strip() == ("yes" if may else "no")


def test_clusters_are_found_by_the_labels_of_their_run(spark_rig: SparkRig) -> None:
    mine, others = spark_rig.spark(), spark_rig.spark(code_location="another")
    driver = mine.create(mine.labels(), ["timeit", "-n1", "-r1", "import time; time.sleep(60)"])
    try:
        assert [(each.id, each.run_id) for each in mine.clusters()] == [(driver, mine.labels()[RUN])]
        assert others.clusters() == []
    finally:
        mine.delete(driver)
    assert mine.clusters() == []
    mine.delete(driver)  # gone is no error
