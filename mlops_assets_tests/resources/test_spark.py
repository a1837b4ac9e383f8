"""The Spark resource: a cluster only where there is work, deleted whatever happens."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyspark
import pytest
from pydantic import PrivateAttr
from pyspark import SparkContext

from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.resources.spark import LocalSpark, Spark, Usage
from mlops_assets.spark.days import FailedDaysError, OnDay
from mlops_assets.spark.training_set import DATASET, FEATURES_VERSION
from mlops_assets_tests.spark.raw_days import DAYS, data, write_raw


class FakeSpark(Spark):
    """Notes what is asked of it."""

    _events: list[Any] = PrivateAttr(default_factory=list)

    @contextmanager
    def cluster(self) -> Iterator[str]:
        self._events.append("created")
        try:
            yield "cluster"
        finally:
            self._events.append("deleted")

    def submit(
        self, cluster: Any, application: str, lake: str, days: Sequence[str], on_day: OnDay, options: Mapping[str, str]
    ) -> None:
        self._events.append((cluster, application, list(days)))
        if len(days) == 3:
            raise KeyboardInterrupt


def make(lake: Lake, day: str) -> Manifest:
    write_raw(lake, day, clicks=100)
    return commit(lake, day)


def commit(lake: Lake, day: str) -> Manifest:
    """A training set of the raw clicks, as far as the manifest tells: it counts the rows of its one file."""
    rows = lake.require("raw_clicks", day).rows
    with lake.stage(DATASET, day) as staging:
        inputs = {"raw_clicks": lake.require("raw_clicks", day).version}
        with staging.other("part-00000", ".parquet") as part:
            part.write(b"features")
            part.rows = rows
        return staging.commit([part.staged], inputs=inputs, code_version=FEATURES_VERSION)


def test_days_that_are_there_need_no_cluster(tmp_path: Path) -> None:
    lake, spark, seen = Lake(str(tmp_path)), FakeSpark(), list[Manifest]()
    manifests = [make(lake, day) for day in DAYS[:2]]
    spark.training_set(lake.root, DAYS[:2], seen.append)
    assert seen == manifests
    assert spark._events == []


def test_one_cluster_does_all_the_days_that_are_missing(tmp_path: Path) -> None:
    lake, spark, seen = Lake(str(tmp_path)), FakeSpark(), list[Manifest]()
    done = make(lake, DAYS[1])
    spark.training_set(lake.root, DAYS, seen.append)
    assert seen == [done]
    assert spark._events == ["created", ("cluster", "training_set", [DAYS[0], DAYS[2]]), "deleted"]


def test_the_cluster_is_deleted_when_the_run_is_terminated(tmp_path: Path) -> None:
    spark = FakeSpark()
    with pytest.raises(KeyboardInterrupt):
        spark.training_set(str(tmp_path), DAYS, lambda _: None)
    assert spark._events[-1] == "deleted"


def test_the_local_session_works_stops_and_leaves_nothing_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, cwd, seen = Lake(str(tmp_path / "lake")), tmp_path / "cwd", list[Manifest]()
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    write_raw(lake, DAYS[0], clicks=300)
    with pytest.raises(FailedDaysError, match=DAYS[1]):
        LocalSpark(memory="1g").training_set(lake.root, DAYS[:2], seen.append)
    assert [manifest.rows for manifest in seen] == [300]
    assert SparkContext._active_spark_context is None
    assert list(cwd.iterdir()) == []


def test_a_local_job_says_what_it_took(tmp_path: Path) -> None:
    lake, used = Lake(str(tmp_path)), list[Usage]()
    make(lake, DAYS[0])
    write_raw(lake, DAYS[1], clicks=300)
    spark = LocalSpark(memory="1g")
    with pytest.raises(FailedDaysError):
        spark.training_set(lake.root, DAYS, lambda _: None, used.append)
    (usage,) = used
    assert (usage.where, usage.days, usage.rows, usage.cost) == (
        "Spark local[*,2] within the run",
        (DAYS[1],),
        300,
        None,
    )
    assert 0 < usage.seconds <= usage.cluster_seconds
    spark.training_set(lake.root, DAYS[:2], lambda _: None, used.append)
    assert len(used) == 1  # nothing was computed


LOCAL_CLUSTER = """
import sys
from mlops_assets.resources.spark import LocalSpark
spark = LocalSpark(master="local-cluster[2,1,1024]", memory="1g")
spark.training_set(sys.argv[1], sys.argv[2:], lambda manifest: print(manifest.date, flush=True))
"""


def executors(driver: psutil.Process) -> list[psutil.Process]:
    """The executors' JVMs among the processes below a local cluster's driver."""
    found = []
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):
            if "org.apache.spark.executor.CoarseGrainedExecutorBackend" in process.cmdline():
                found.append(process)
    return found


@pytest.mark.integration  # Spark takes its time to believe in a lost executor
def test_an_executor_killed_in_mid_job_changes_nothing(tmp_path: Path) -> None:
    lake, undisturbed = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "undisturbed"))
    for each in (lake, undisturbed):
        for day in DAYS:
            write_raw(each, day, clicks=8_000)
    command = [sys.executable, "-c", LOCAL_CLUSTER, lake.root, *DAYS]
    installed = Path(pyspark.__file__).parent
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{DAYS[0]}\n"  # the others are still to be made
        before = executors(psutil.Process(process.pid))
        before[0].kill()
        assert process.stdout.read().split() == list(DAYS[1:])
    assert process.returncode == 0
    assert len(before) == 2
    assert not (installed / "work").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "undisturbed"]
    LocalSpark(memory="1g").training_set(undisturbed.root, DAYS, lambda _: None)
    assert data(lake) == data(undisturbed)
