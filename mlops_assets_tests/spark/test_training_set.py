"""The training set: features equal to pandas', one shuffle, and days that survive what happens to the job."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pytest
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake.manifest import Manifest, MissingPartitionError
from mlops_assets.lake.store import Lake, Staging
from mlops_assets.lake.tables import RAW_CLICKS, TRAINING_SET, raw_rows
from mlops_assets.spark import training_set
from mlops_assets.spark.days import REPORT, FailedDaysError, report, run_days
from mlops_assets_tests.spark.raw_days import DAYS, data, write_raw


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def expected_features(raw: pd.DataFrame) -> pd.DataFrame:
    """The features by pandas: cumulative counts within groups, in arrival order."""
    rows = raw.sort_values("arrival", ignore_index=True)
    rows["hour"], rows["day_of_week"] = rows["click_time"].dt.hour, rows["click_time"].dt.dayofweek
    rows["ip_count"] = rows.groupby("ip").cumcount() + 1
    rows["ip_day_hour"] = rows.groupby(["ip", "hour"]).cumcount() + 1
    for other in ("channel", "os", "app", "device"):
        rows[f"ip_hour_{other}"] = rows.groupby(["ip", "hour", other]).cumcount() + 1
    return pd.DataFrame(rows[TRAINING_SET.names])


def test_features_equal_pandas_grouped_cumulative_counts(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "ROWS_PER_PART", 1_500)
    write_raw(lake, DAYS[0], clicks=10_000)
    (manifest,) = training_set.run(spark, lake.root, [DAYS[0]])
    # Any tool reads the partition, without our manifest.
    rows = pl.read_parquet(f"{lake.root}/training_set/**/*.parquet", hive_partitioning=False)
    raw = pl.read_parquet(f"{lake.root}/raw_clicks/**/*.parquet", hive_partitioning=False)
    expected = expected_features(raw.to_pandas())
    pd.testing.assert_frame_equal(rows.sort("arrival").to_pandas(), expected, check_dtype=False)
    assert expected["ip_hour_app"].max() > 3  # else the test shows nothing
    assert manifest.rows == 10_000
    assert manifest.metadata["installs"] == expected["is_attributed"].sum()
    assert len(manifest.files) > 1


def test_the_largest_and_smallest_values_travel_unharmed(spark: SparkSession, lake: Lake) -> None:
    ids = np.array([2**16 - 1, 0, 2**15], dtype=np.uint16)
    ip = np.array([2**32 - 1, 0, 2**31], dtype=np.uint32)
    midnight = int(datetime(2017, 11, 6, tzinfo=UTC).timestamp())
    time = np.array([midnight, midnight + 86_399, midnight + 1])
    none = np.full(3, -1)
    clicks = Clicks(ip, ids, ids[::-1], ids, ids[::-1], time, np.array([1, 0, 1], np.uint8), None, none)
    with lake.stage("raw_clicks", DAYS[0]) as staging:
        with staging.part(RAW_CLICKS, 0) as part:
            part.write_rows(raw_rows(clicks, 2**32 - 3))
        staging.commit([part.staged], inputs={}, code_version="1")
    training_set.run(spark, lake.root, [DAYS[0]])
    rows = pl.read_parquet(f"{lake.root}/training_set/**/*.parquet", hive_partitioning=False).sort("arrival")
    raw = pl.read_parquet(f"{lake.root}/raw_clicks/**/*.parquet", hive_partitioning=False)
    same = [name for name in raw.columns if name != "attributed_time"]
    assert rows.select(same).equals(raw.select(same))


def test_rows_of_a_part_are_whole_ips_in_arrival_order(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "ROWS_PER_PART", 1_000)
    write_raw(lake, DAYS[0])
    (manifest,) = training_set.run(spark, lake.root, [DAYS[0]])
    parts = [pl.read_parquet(uri) for uri in lake.uris(manifest)]
    assert all(part["arrival"].is_sorted() for part in parts)
    assert sum(part["ip"].n_unique() for part in parts) == pl.concat(parts)["ip"].n_unique()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_an_ip_of_five_million_clicks_fits_into_a_worker_of_a_gigabyte(spark: SparkSession, lake: Lake) -> None:
    first = 0
    with lake.stage("raw_clicks", DAYS[0]) as staging:
        with staging.part(RAW_CLICKS, 0) as part:
            for each in generate_day(date.fromisoformat(DAYS[0]), 5_000_000, seed=1):
                part.write_rows(raw_rows(replace(each, ip=np.full(len(each), 7, np.uint32)), first))
                first += len(each)
        staging.commit([part.staged], inputs={}, code_version="1")
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "pyspark.daemon" in process.cmdline():
                        peak = max(peak, process.memory_info().rss)

    ended = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        (manifest,) = training_set.run(spark, lake.root, [DAYS[0]])
    finally:
        ended.set()
        watcher.join()
    last = pl.read_parquet(lake.uris(manifest)).sort("arrival")["ip_count"]
    assert last.equals(pl.Series("ip_count", range(1, len(last) + 1), pl.UInt32))
    assert 0 < peak < 600 * 2**20, f"{peak / 2**20:.0f} MiB: the rest of a gigabyte is the JVM's"


def test_there_is_exactly_one_shuffle(spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_set, "ROWS_PER_PART", 1_000)
    write_raw(lake, DAYS[0])
    with lake.stage("training_set", DAYS[0]) as staging:
        job = training_set.features(spark, lake.require("raw_clicks", DAYS[0]), staging)
        plan = job._jdf.queryExecution().executedPlan().toString()
    exchanges = [line for line in plan.splitlines() if "Exchange" in line]
    assert len(exchanges) == 1, plan
    assert "hashpartitioning(ip" in exchanges[0]


def test_the_clusters_settings_do_not_change_the_files(
    spark: SparkSession, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "ROWS_PER_PART", 1_000)
    other = Lake(str(tmp_path / "other"))
    settings = {"spark.sql.files.maxPartitionBytes": "20000", "spark.sql.execution.arrow.maxRecordsPerBatch": "77"}
    for each in (lake, other):
        write_raw(each, DAYS[0])
    training_set.run(spark, lake.root, [DAYS[0]])
    before = {name: spark.conf.get(name) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        training_set.run(spark, other.root, [DAYS[0]])
    finally:
        for name, old in before.items():
            spark.conf.set(name, str(old))
    assert data(lake) == data(other)


def test_days_are_reported_in_order_as_they_are_committed(spark: SparkSession, lake: Lake) -> None:
    for day in DAYS:
        write_raw(lake, day, clicks=500)
    seen: list[str] = []

    def on_day(manifest: Manifest) -> None:
        assert lake.days("training_set") == [*seen, manifest.date]
        seen.append(manifest.date)

    manifests = training_set.run(spark, lake.root, [DAYS[2], DAYS[0], DAYS[1]], on_day)
    assert seen == list(DAYS) == [manifest.date for manifest in manifests]


def test_a_failing_day_costs_no_other_and_a_rerun_does_the_rest(spark: SparkSession, lake: Lake) -> None:
    write_raw(lake, DAYS[0], clicks=500)
    write_raw(lake, DAYS[2], clicks=500)
    with pytest.raises(FailedDaysError, match=r"failed for 2017-11-07.*\n.*materialize raw_clicks") as caught:
        training_set.run(spark, lake.root, DAYS)
    assert isinstance(caught.value.errors[DAYS[1]], MissingPartitionError)
    assert lake.days("training_set") == [DAYS[0], DAYS[2]]

    written = {path: path.stat().st_mtime_ns for path in Path(lake.root, "training_set").rglob("*.*")}
    write_raw(lake, DAYS[1], clicks=500)
    assert len(training_set.run(spark, lake.root, DAYS)) == 3
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_only_a_day_whose_clicks_changed_is_computed_again(spark: SparkSession, lake: Lake) -> None:
    for day in DAYS[:2]:
        write_raw(lake, day, clicks=500)
    before = training_set.run(spark, lake.root, DAYS[:2])
    write_raw(lake, DAYS[0], clicks=500, seed=2)
    assert training_set.finished(lake, DAYS[0]) is None
    assert training_set.finished(lake, DAYS[1]) == before[1]
    after = training_set.run(spark, lake.root, DAYS[:2])
    assert after[0].version != before[0].version
    assert after[1] == before[1]


def test_an_attempt_that_failed_after_writing_is_not_committed(spark: SparkSession, lake: Lake) -> None:
    def flaky(staging: Staging, day: str) -> DataFrame:
        def stage(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            list(batches)
            row = pa.RecordBatch.from_pylist([dict.fromkeys(schema.names, 1)], schema=schema)
            with staging.part(schema, 0) as part:
                part.write_rows(row)
            context = TaskContext.get()
            if context and context.attemptNumber() == 0:
                raise OSError("the executor lost its connection")
            yield report(part.staged, installs=1)

        schema = pa.schema({"arrival": pa.uint32()})
        return spark.range(0, 1, 1, 1).mapInArrow(stage, REPORT)

    (manifest,) = run_days(lake, "d", [DAYS[0]], code_version="1", inputs=lambda _: {}, compute=flaky)
    assert (manifest.rows, manifest.metadata["installs"]) == (1, 1)
    assert len(list(Path(lake.root).rglob("*.parquet"))) == 1


KILLED = """
import os, signal, sys
from mlops_assets.lake import store
from mlops_assets.resources.spark import LocalSpark
settle = store.Staging.settle
def killed(self, new, staged=()):
    if new.date == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    settle(self, new, staged)
store.Staging.settle = killed
LocalSpark(memory="1g").training_set(sys.argv[1], sys.argv[3:], print)
"""


@pytest.mark.integration  # the everyday tests kill a whole backfill of the graph: assets/test_graph.py
def test_a_backfill_killed_halfway_and_run_again_equals_an_undisturbed_one(
    spark: SparkSession, lake: Lake, tmp_path: Path
) -> None:
    undisturbed = Lake(str(tmp_path / "undisturbed"))
    for each in (lake, undisturbed):
        for day in DAYS:
            write_raw(each, day, clicks=500)
    write_raw(lake, DAYS[1], clicks=400, seed=2)
    (old,) = training_set.run(spark, lake.root, [DAYS[1]])
    write_raw(lake, DAYS[1], clicks=500)

    command = [sys.executable, "-c", KILLED, lake.root, DAYS[1], *DAYS]
    killed = subprocess.run(command, check=False, timeout=240, cwd=tmp_path, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert lake.days("training_set") == list(DAYS[:2])
    assert lake.manifest("training_set", DAYS[1]) == old
    assert sum(batch.num_rows for batch in lake.read("training_set", DAYS[1])) == 400

    training_set.run(spark, lake.root, DAYS)
    training_set.run(spark, undisturbed.root, DAYS)
    assert data(lake) == data(undisturbed)
