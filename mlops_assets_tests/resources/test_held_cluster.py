"""A day's two jobs on one cluster: it is kept between them, and never longer than the run or its limit."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.interrupts import capture_interrupts

from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources.dataproc import DataprocSpark
from mlops_assets.resources.emr import EmrSpark
from mlops_assets.resources.ephemeral import Phase, Status, common_settings
from mlops_assets.resources.spark import LocalSpark, Usage
from mlops_assets.resources.spark_kubernetes import KubernetesSpark
from mlops_assets.spark import predictions
from mlops_assets.spark.both import NO_MORE, REQUEST, WAITING
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.assets.graph import land, run
from mlops_assets_tests.inference.tiny_model import write_model
from mlops_assets_tests.resources.fake_cloud import Cloud, FakeCloudSpark
from mlops_assets_tests.resources.test_spark import commit
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

DAY = DAYS[0]


pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "model"))


class Applications:
    """What a cluster runs, a look at a time: the application waits, or has ended at its `limit`, or is `lost`."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.at_limit = self.lost = self.lost_when_asked = False

    def __call__(self, command: Sequence[str]) -> Status:
        options = dict(zip(command[1::2], command[2::2], strict=True))
        if command[0].endswith(".predictions"):
            return self.predict(options["--days"].split(","), options["--model"])
        for day in options["--days"].split(","):
            commit(self.lake, day)
        if command[0].endswith(".training_set"):
            return Status(Phase.SUCCEEDED)
        assert command[0] == "mlops_assets.spark.both"
        assert float(options["--minutes"]) > 0
        if self.lost:
            return Status(Phase.FAILED, "the node was lost")
        folder = options["--folder"]
        self.lake.storage.put_if(f"{folder}/{WAITING}", b"{}", None)
        if self.at_limit:
            self.lake.storage.put_if(f"{folder}/{REQUEST}", NO_MORE, None)
        found = self.lake.storage.get(f"{folder}/{REQUEST}")
        if found is None or (self.at_limit and found[0] == NO_MORE):  # the cloud tells of an end only later
            return Status(Phase.RUNNING)
        request = json.loads(found[0])
        if self.lost_when_asked:
            return Status(Phase.FAILED, "the node was lost")
        return self.predict(request["days"], request["model"]) if request else Status(Phase.SUCCEEDED)

    def predict(self, days: Sequence[str], model: str) -> Status:
        with predictions.local_folder(model) as folder:
            for day in days:
                inputs = predictions._inputs(self.lake, day, str(folder))
                with self.lake.stage(predictions.DATASET, day) as staging:
                    with staging.other("part-00000", ".parquet") as part:
                        part.write(b"probabilities")
                    staging.commit([part.staged], inputs=inputs, code_version=predictions.PREDICTIONS_VERSION)
        return Status(Phase.SUCCEEDED)


def held(lake: Lake, minutes: float = 1) -> tuple[FakeCloudSpark, Cloud, Applications]:
    """A Spark whose cluster is kept after a day's training set."""
    spark, applications = FakeCloudSpark(hold_minutes=minutes), Applications(lake)
    cloud = Cloud(applications)
    spark.use(cloud)
    spark.training_set(lake.root, [DAY], lambda _: None, then_predictions=True)
    return spark, cloud, applications


def end_of_run(spark: FakeCloudSpark) -> None:
    spark.teardown_after_execution(dg.build_init_resource_context())


def applications_of(cloud: Cloud) -> list[str]:
    return [command[0].rsplit(".", 1)[-1] for command in cloud.commands]


def left_in(lake: Lake) -> list[str]:
    return lake.storage.list("_jobs")


def test_the_predictions_of_the_same_run_use_the_cluster_and_pay_for_the_wait(
    lake: Lake, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spark, seen, used = FakeCloudSpark(hold_minutes=1), list[Manifest](), list[Usage]()
    cloud = Cloud(Applications(lake))
    spark.use(cloud)
    spark.training_set(lake.root, [DAY], seen.append, used.append, then_predictions=True)
    assert [manifest.dataset for manifest in seen] == ["training_set"]
    assert set(cloud.existing) == {"c-0"}
    time.sleep(0.2)
    began = time.monotonic()
    spark.predictions(lake.root, [DAY], model, seen.append, used.append)
    took = time.monotonic() - began
    assert [manifest.dataset for manifest in seen] == ["training_set", "batch_predictions"]
    assert applications_of(cloud) == ["both"]
    assert cloud.deleted == ["c-0"]
    assert used[1].cluster_seconds >= 0.2
    assert used[1].seconds <= took + 0.1
    said = capfd.readouterr().out.splitlines()
    assert said == [f"driver says {number}" for number in range(1, len(said) + 1)]
    assert not left_in(lake)
    end_of_run(spark)
    assert cloud.deleted == ["c-0"]


@pytest.mark.parametrize(("minutes", "follow"), [(0, True), (1, False)])
def test_it_is_not_kept_where_that_is_dearer_or_no_predictions_follow(
    lake: Lake, model: str, minutes: float, follow: bool
) -> None:
    spark, cloud = FakeCloudSpark(hold_minutes=minutes), Cloud(Applications(lake))
    spark.use(cloud)
    spark.training_set(lake.root, [DAY], lambda _: None, then_predictions=follow)
    assert cloud.deleted == ["c-0"]
    spark.predictions(lake.root, [DAY], model, lambda _: None)
    assert applications_of(cloud) == ["training_set", "predictions"]
    assert cloud.deleted == ["c-0", "c-1"]


def test_without_predictions_it_goes_with_the_run(lake: Lake) -> None:
    spark, cloud, _ = held(lake)
    assert not cloud.deleted
    end_of_run(spark)
    assert cloud.deleted == ["c-0"]
    assert not left_in(lake)


def test_after_its_limit_it_goes_although_the_run_goes_on(lake: Lake, model: str) -> None:
    spark, cloud, _ = held(lake, 0.002)
    until = time.monotonic() + 30
    while left_in(lake) and time.monotonic() < until:
        time.sleep(0.01)
    assert cloud.deleted == ["c-0"]
    spark.predictions(lake.root, [DAY], model, lambda _: None)
    assert cloud.deleted == ["c-0", "c-1"]


def gone(spark: FakeCloudSpark, cloud: Cloud, applications: Applications) -> None:
    applications.lost = True


def at_its_limit(spark: FakeCloudSpark, cloud: Cloud, applications: Applications) -> None:
    applications.at_limit = True


def ended_just_now(spark: FakeCloudSpark, cloud: Cloud, applications: Applications) -> None:
    (waiting,) = left_in(applications.lake)
    applications.at_limit = True
    applications.lake.storage.put_if(waiting.replace(WAITING, REQUEST), NO_MORE, None)


def near_its_deadline(spark: FakeCloudSpark, cloud: Cloud, applications: Applications) -> None:
    assert spark._kept
    spark._kept.deadline -= 30 * spark.deadline_minutes + 1


@pytest.mark.parametrize("trouble", [gone, at_its_limit, ended_just_now, near_its_deadline])
def test_where_the_kept_cluster_takes_no_request_a_new_one_does(
    lake: Lake, model: str, trouble: Callable[[FakeCloudSpark, Cloud, Applications], None]
) -> None:
    spark, cloud, applications = held(lake)
    trouble(spark, cloud, applications)
    seen = list[Manifest]()
    spark.predictions(lake.root, [DAY], model, seen.append)
    assert [manifest.date for manifest in seen] == [DAY]
    assert applications_of(cloud) == ["both", "predictions"]
    assert cloud.deleted == ["c-0", "c-1"]
    assert not left_in(lake)


def test_a_job_that_is_lost_after_it_was_asked_has_failed_as_any_other(lake: Lake, model: str) -> None:
    spark, cloud, applications = held(lake)
    applications.lost_when_asked = True
    with pytest.raises(FailedDaysError, match=r"the job failed, this day not committed\. the node was lost"):
        spark.predictions(lake.root, [DAY], model, lambda _: None)
    assert cloud.deleted == ["c-0"]
    assert not left_in(lake)


def test_another_run_makes_its_own_cluster_and_leaves_this_one(lake: Lake, model: str) -> None:
    spark, cloud, _ = held(lake)
    other = FakeCloudSpark(hold_minutes=1)
    other.use(cloud)
    other.predictions(lake.root, [DAY], model, lambda _: None)
    end_of_run(other)
    assert cloud.deleted == ["c-1"]
    end_of_run(spark)
    assert cloud.deleted == ["c-1", "c-0"]


def test_of_two_champions_the_second_gets_a_cluster_of_its_own(lake: Lake, model: str, tmp_path: Path) -> None:
    spark, cloud = FakeCloudSpark(hold_minutes=1), Cloud(Applications(lake))
    spark.use(cloud)
    spark.training_set(lake.root, DAYS[:2], lambda _: None, then_predictions=True)
    seen = list[Manifest]()
    spark.predictions(lake.root, DAYS[:1], model, seen.append)
    spark.predictions(lake.root, DAYS[1:2], str(write_model(tmp_path / "second", threshold=0.2)), seen.append)
    assert [manifest.date for manifest in seen] == list(DAYS[:2])
    assert applications_of(cloud) == ["both", "predictions"]
    assert cloud.deleted == ["c-0", "c-1"]


def test_a_training_set_that_is_made_again_first_ends_what_was_kept(lake: Lake) -> None:
    spark, cloud, _ = held(lake)
    write_raw(lake, DAY, clicks=200, seed=2)
    spark.training_set(lake.root, [DAY], lambda _: None, then_predictions=True)
    assert cloud.deleted == ["c-0"]
    assert set(cloud.existing) == {"c-1"}
    end_of_run(spark)
    assert not cloud.existing


def a_run(lake: Lake, model: str, between: Callable[[], None]) -> tuple[bool, Cloud]:
    """Success of a run of three steps, and its cloud."""

    @dg.op(out=dg.Out(dg.Nothing))
    def first(spark: FakeCloudSpark) -> None:
        spark.training_set(lake.root, [DAY], lambda _: None, then_predictions=True)

    @dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
    def candidate() -> None:
        between()

    @dg.op(ins={"start": dg.In(dg.Nothing)})
    def last(spark: FakeCloudSpark) -> None:
        spark.predictions(lake.root, [DAY], model, lambda _: None)

    spark, cloud = FakeCloudSpark(hold_minutes=1), Cloud(Applications(lake))
    spark.use(cloud)

    @dg.job(resource_defs={"spark": spark}, executor_def=dg.in_process_executor)
    def job() -> None:
        last(candidate(first()))

    try:
        return job.execute_in_process(raise_on_error=False).success, cloud
    finally:
        assert not cloud.existing
        assert cloud.deleted == ["c-0"]
        assert not left_in(lake)


def test_the_steps_of_a_run_share_the_cluster(lake: Lake, model: str) -> None:
    success, cloud = a_run(lake, model, lambda: None)
    assert success
    assert applications_of(cloud) == ["both"]
    assert lake.days("batch_predictions") == [DAY]


def test_a_candidate_that_fails_leaves_no_cluster(lake: Lake, model: str) -> None:
    def between() -> None:
        raise RuntimeError("no candidate")

    success, _ = a_run(lake, model, between)
    assert not success


def test_a_run_that_is_terminated_between_the_jobs_leaves_no_cluster(lake: Lake, model: str) -> None:
    def between() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    with capture_interrupts():
        success, _ = a_run(lake, model, between)
    assert not success
    assert lake.days("batch_predictions") == []


def test_the_clouds_keep_a_cluster_for_as_long_as_its_start_takes_and_kubernetes_none() -> None:
    defaults = [form.model_fields["hold_minutes"].default for form in (EmrSpark, DataprocSpark, KubernetesSpark)]
    assert defaults == [10, 10, 0]
    given = common_settings({"MLOPS_SPARK_HOLD_MINUTES": "0"})
    assert given == {"hold_minutes": 0}
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="hold_minutes"):
            FakeCloudSpark(hold_minutes=wrong)


def test_only_a_run_that_makes_the_predictions_too_may_keep_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training_set(spark: LocalSpark, *_: object, then_predictions: bool) -> None:
        seen.append(then_predictions)

    seen = list[bool]()
    monkeypatch.setattr(LocalSpark, "training_set", training_set)
    land(tmp_path, DAY, 2_000)
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as instance:
        for assets in (("raw_clicks", "training_set"), ("raw_clicks", "training_set", "batch_predictions")):
            run(tmp_path, instance, assets, [DAY])
    assert seen == [False, True]
