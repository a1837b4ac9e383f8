"""A Spark cluster for one run: deleted however that ends, and judged by what it committed."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources import ephemeral
from mlops_assets.resources.ephemeral import RUN, Cluster, ClusterError, Phase, Status, common_settings
from mlops_assets.resources.spark import Usage
from mlops_assets.spark.days import FailedDaysError
from mlops_assets.spark.predictions import local_folder
from mlops_assets_tests.inference.tiny_model import write_model
from mlops_assets_tests.resources.fake_cloud import NOW, Cloud, FakeCloudSpark
from mlops_assets_tests.resources.test_spark import commit
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def spark() -> Iterator[FakeCloudSpark]:
    """Whatever a test does, no cluster is left but those it says."""
    spark = FakeCloudSpark()
    yield spark
    assert set(spark.cloud_used.existing) <= {"other"}


def committing(lake: Lake, days: Sequence[str], end: Status | None = None) -> Cloud:
    """A cloud whose job commits these days and then ends so."""

    def job(command: Sequence[str]) -> Status:
        for day in days:
            commit(lake, day)
        return end or Status(Phase.SUCCEEDED)

    return Cloud(job)


def test_the_job_gets_its_command_and_the_caller_its_days_usage_and_log(
    spark: FakeCloudSpark, lake: Lake, capfd: pytest.CaptureFixture[str]
) -> None:
    spark.use(committing(lake, DAYS))
    seen, used = list[Manifest](), list[Usage]()
    spark.training_set(lake.root, DAYS, seen.append, used.append)
    assert [manifest.date for manifest in seen] == list(DAYS)
    assert spark.cloud_used.commands == [
        ["mlops_assets.spark.training_set", "--lake", lake.root, "--days", ",".join(DAYS)],
    ]
    assert spark.cloud_used.deleted == ["c-0"]
    (usage,) = used
    assert (usage.where, usage.days, usage.rows, usage.cost) == ("FakeCloudSpark", DAYS, 300, None)
    assert 0 <= usage.seconds <= usage.cluster_seconds
    assert capfd.readouterr().out == "driver says 1\ndriver says 2\ndriver says 3\n"


def test_a_price_gives_an_estimate_of_the_cost() -> None:
    assert FakeCloudSpark(price_per_hour=1.2).cost(1800) == 0.6


def test_a_failed_job_keeps_the_days_that_it_committed(spark: FakeCloudSpark, lake: Lake) -> None:
    spark.use(committing(lake, DAYS[:1], Status(Phase.FAILED, "gone")))
    seen, used = list[Manifest](), list[Usage]()
    with pytest.raises(FailedDaysError, match=rf"failed for {DAYS[1]}, {DAYS[2]};.*\n.*failed.*gone") as caught:
        spark.training_set(lake.root, DAYS, seen.append, used.append)
    assert set(caught.value.errors) == set(DAYS[1:])
    assert [manifest.date for manifest in seen] == [DAYS[0]] == list(used[0].days)


def test_success_without_a_manifest_is_none(spark: FakeCloudSpark, lake: Lake) -> None:
    with pytest.raises(FailedDaysError, match=r"the job succeeded, this day not committed"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)


def test_a_failed_job_that_committed_everything_is_a_success(spark: FakeCloudSpark, lake: Lake) -> None:
    spark.use(committing(lake, DAYS, Status(Phase.FAILED, "lost while it stopped")))
    seen: list[Manifest] = []
    spark.training_set(lake.root, DAYS, seen.append)
    assert len(seen) == 3


def test_at_the_deadline_the_cluster_goes_and_says_what_it_waited_for(lake: Lake) -> None:
    spark = FakeCloudSpark(deadline_minutes=0.0005)
    spark.use(Cloud(looks_to_start=10**9))
    with pytest.raises(FailedDaysError, match=r"still starting after the deadline of 0.0005 minutes. waiting for mach"):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert spark.cloud_used.deleted == ["c-0"]


def test_no_cluster_is_said_as_the_cloud_says_it(spark: FakeCloudSpark, lake: Lake) -> None:
    spark.use(Cloud(refused_creations=1))
    used = list[Usage]()
    with pytest.raises(ClusterError, match="quota of vCPUs"):
        spark.training_set(lake.root, DAYS, lambda _: None, used.append)
    assert used[0].days == ()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_run_terminated_while_the_cluster_is_created_leaves_none(
    spark: FakeCloudSpark, lake: Lake, hidden: bool
) -> None:
    spark.use(Cloud(interrupted_creation=True, hidden_at_first=hidden))
    with pytest.raises(KeyboardInterrupt):
        spark.training_set(lake.root, DAYS, lambda _: None)
    assert spark.cloud_used.deleted == ["c-0"]


def test_a_run_terminated_in_mid_job_reports_what_was_committed(spark: FakeCloudSpark, lake: Lake) -> None:
    def job(command: Sequence[str]) -> Status:
        commit(lake, DAYS[0])
        raise KeyboardInterrupt

    spark.use(Cloud(job))
    seen = list[Manifest]()
    with pytest.raises(KeyboardInterrupt):
        spark.training_set(lake.root, DAYS, seen.append)
    assert [manifest.date for manifest in seen] == [DAYS[0]]
    assert spark.cloud_used.deleted == ["c-0"]


def test_a_delete_that_fails_once_is_repeated(spark: FakeCloudSpark, lake: Lake) -> None:
    spark.use(committing(lake, DAYS))
    spark.cloud_used.refused_deletions = 1
    spark.training_set(lake.root, DAYS, lambda _: None)
    assert spark.cloud_used.deleted == ["c-0"]


def test_a_delete_that_never_succeeds_is_an_error_in_the_log_and_keeps_the_jobs_outcome(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    spark, seen = FakeCloudSpark(), list[Manifest]()
    spark.use(committing(lake, DAYS))
    spark.cloud_used.refused_deletions = 10**9
    spark.training_set(lake.root, DAYS, seen.append)
    assert len(seen) == 3
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "may be left; the reaper deletes them" in errors[0]
    assert set(spark.cloud_used.existing) == {"c-0"}


def test_a_lost_log_costs_no_job(spark: FakeCloudSpark, lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    spark.use(committing(lake, DAYS))
    spark.cloud_used.log_is_lost = True
    spark.training_set(lake.root, DAYS, lambda _: None)
    assert "no log today" in caplog.text


def test_the_clusters_of_other_runs_are_left_alone(spark: FakeCloudSpark, lake: Lake) -> None:
    spark.use(committing(lake, DAYS))
    spark.cloud_used.existing["other"] = Cluster("other", "another-run", NOW)
    spark.training_set(lake.root, DAYS, lambda _: None)
    assert spark.cloud_used.deleted == ["c-0"]


def test_no_two_processes_share_a_run_id() -> None:
    ids = {FakeCloudSpark().labels()[RUN] for _ in range(10)}
    assert len(ids) == 10
    assert all(re.fullmatch(r"[a-z0-9-]{1,63}", each) for each in ids)


def test_the_clusters_of_a_dagster_run_carry_its_id(lake: Lake) -> None:
    seen: list[str] = []

    @dg.op
    def look(spark: FakeCloudSpark) -> None:
        seen.append(spark.labels()[RUN])

    @dg.job(resource_defs={"spark": FakeCloudSpark()})
    def job() -> None:
        look()

    run_id = job.execute_in_process().run_id
    assert seen == [run_id]


def test_the_model_goes_along_through_the_lake_and_is_gone_afterwards(
    spark: FakeCloudSpark, lake: Lake, tmp_path: Path
) -> None:
    model, arrived = write_model(tmp_path / "model"), list[dict[str, bytes]]()

    def job(command: Sequence[str]) -> Status:
        assert command[0] == "mlops_assets.spark.predictions"
        with local_folder(command[command.index("--model") + 1]) as folder:
            arrived.append({path.name: path.read_bytes() for path in folder.iterdir()})
        raise KeyboardInterrupt

    spark.use(Cloud(job))
    for day in DAYS:
        commit(lake, day)
    with pytest.raises(KeyboardInterrupt):
        spark.predictions(lake.root, DAYS, str(model), lambda _: None)
    assert arrived == [{path.name: path.read_bytes() for path in model.iterdir()}]
    assert not list(Path(lake.root).rglob("_jobs/**/*"))


@settings(deadline=None)
@given(
    refused=st.integers(0, 7),
    interrupted=st.booleans(),
    end=st.sampled_from([Phase.SUCCEEDED, Phase.FAILED]),
    looks=st.integers(0, 3),
)
def test_whatever_happens_a_cluster_is_left_only_if_its_cloud_refuses_to_delete_it(
    tmp_path_factory: pytest.TempPathFactory, refused: int, interrupted: bool, end: Phase, looks: int
) -> None:
    lake, spark = Lake(str(tmp_path_factory.mktemp("lake"))), FakeCloudSpark()
    write_raw(lake, DAYS[0], clicks=10)
    cloud = Cloud(
        lambda command: Status(end), interrupted_creation=interrupted, refused_deletions=refused, looks_to_start=looks
    )
    spark.use(cloud)
    with pytest.raises((FailedDaysError, KeyboardInterrupt)):
        spark.training_set(lake.root, DAYS[:1], lambda _: None)
    assert bool(spark.cloud_used.existing) is (refused >= ephemeral.DELETE_ATTEMPTS)


@pytest.mark.parametrize(
    "name", ["MLOPS_SPARK_DEADLINE_MINUTES", "MLOPS_SPARK_PRICE_PER_HOUR", "MLOPS_SPARK_HOLD_MINUTES"]
)
def test_the_settings_of_all_forms_come_from_the_environment(name: str) -> None:
    field = name.removeprefix("MLOPS_SPARK_").lower()
    assert common_settings({name: "12.5", "MLOPS_CODE_LOCATION": "clicks"}) == {field: 12.5, "code_location": "clicks"}
    with pytest.raises(ValueError, match=f"{name} is 'much'; it must be a number"):
        common_settings({name: "much"})
