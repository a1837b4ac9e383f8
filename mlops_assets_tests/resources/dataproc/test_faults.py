"""Spark on Yandex Data Proc in foul weather: whatever goes wrong is said, and no cluster is left."""

from __future__ import annotations

import _thread
import time
from pathlib import Path

import grpc
import pytest

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.lake.store import Lake
from mlops_assets.resources import dataproc
from mlops_assets.resources.dataproc import DataprocSpark
from mlops_assets.resources.ephemeral import ClusterError
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.resources.dataproc.conftest import made
from mlops_assets_tests.resources.dataproc.world import World
from mlops_assets_tests.spark.raw_days import DAYS


def test_a_quota_is_said_with_what_to_do(spark: DataprocSpark, world: World, lake: Lake) -> None:
    world.quota = "The limit on total number of virtual CPUs has been exceeded."
    with pytest.raises(ClusterError, match=r"RESOURCE_EXHAUSTED: The limit on .* CPUs .*: a quota .* raise it"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.clusters


def test_a_quota_that_the_creation_meets_later_costs_no_cluster(spark: DataprocSpark, world: World, lake: Lake) -> None:
    world.quota_later = "Quota compute.instanceCores.count exceeded"
    with pytest.raises(FailedDaysError, match=r"the cluster was not created: Quota compute\.instance"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert world.events.count("cluster.Delete") == 1, "what is in status ERROR must go too"
    assert not world.left()


def test_a_creation_that_hangs_ends_at_the_deadline(
    cloud: tuple[World, dict[str, str]], world: World, lake: Lake
) -> None:
    world.hangs = True
    with pytest.raises(FailedDaysError, match=r"still starting after the deadline of 0\.02 minutes\. .*CREATING"):
        made(cloud[1], deadline_minutes=0.02).training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


def test_a_deletion_that_fails_is_tried_again(spark: DataprocSpark, world: World, lake: Lake) -> None:
    world.delete_failures = 1
    with pytest.raises(FailedDaysError):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert world.events.count("cluster.Delete") == 2
    assert not world.clusters


def test_deleting_what_is_gone_is_no_error(spark: DataprocSpark, world: World) -> None:
    cluster = spark.create(spark.labels(), ["module"])
    spark.delete(cluster)
    spark.delete(cluster)
    assert world.events.count("cluster.Delete") == 2
    assert spark.clusters() == []


def test_an_api_that_is_away_for_a_while_costs_no_job(spark: DataprocSpark, world: World, lake: Lake) -> None:
    world.unavailable = {"cluster.Get": 12, "job.Get": 7, "operation.Get": 3, "job.ListLog": 6}
    with pytest.raises(FailedDaysError, match="the job succeeded"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert len(world.requests) == len(world.jobs) == 1
    assert not any(world.unavailable.values())
    assert not world.left()


def test_an_api_that_stays_away_is_given_up(
    spark: DataprocSpark, world: World, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataproc, "UNANSWERED_LOOKS", 1)
    world.unavailable = {"cluster.Get": 1_000}
    with pytest.raises(ClusterError, match=r"looking at the cluster: UNAVAILABLE: upstream connect error"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert not world.left()


@pytest.mark.parametrize("remembers_keys", [True, False])
def test_a_lost_answer_makes_no_second_cluster(
    spark: DataprocSpark, world: World, lake: Lake, remembers_keys: bool
) -> None:
    world.lost_answers, world.remembers_keys = 1, remembers_keys
    with pytest.raises(FailedDaysError, match="the job succeeded"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert len(world.requests) == 1
    assert not world.left()


def test_an_interrupted_creation_leaves_nothing(spark: DataprocSpark, world: World, lake: Lake) -> None:
    def interrupt() -> None:
        _thread.interrupt_main()  # the run is terminated
        time.sleep(1)

    world.on_create = interrupt
    with pytest.raises(KeyboardInterrupt):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert len(world.requests) == 1
    assert not world.left()


def test_wrong_credentials_are_said_without_showing_them(
    cloud: tuple[World, dict[str, str]], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {name: value for name, value in cloud[1].items() if name != "YC_SERVICE_ACCOUNT_KEY_FILE"}
    monkeypatch.setenv("YC_IAM_TOKEN", "t1.secret-but-old")
    with pytest.raises(
        ClusterError, match=r"UNAUTHENTICATED: The token is invalid: check YC_SERVICE_ACCOUNT"
    ) as raised:
        made(variables).clusters()
    assert "secret-but-old" not in str(raised.value)
    (tmp_path / "key.json").write_text("{ no JSON, but a secret")
    with pytest.raises(ClusterError, match=r"key.json can't be read: JSONDecodeError") as raised:
        made({**variables, "YC_SERVICE_ACCOUNT_KEY_FILE": str(tmp_path / "key.json")}).clusters()
    assert "but a secret" not in str(raised.value)


def test_an_api_that_is_not_there_is_given_up_in_time(
    cloud: tuple[World, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.resources.yandex.TIMEOUT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"looking up its addresses: (DEADLINE_EXCEEDED|UNAVAILABLE)") as raised:
        made({**cloud[1], "MLOPS_YC_ENDPOINT": f"localhost:{free_port()}"}).clusters()
    assert raised.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)  # type: ignore[attr-defined]
