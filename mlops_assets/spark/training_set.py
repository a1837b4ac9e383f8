"""Clicks to features: one shuffle by ip, then the kernel over whole ips.

    python -m mlops_assets.spark.training_set --lake ROOT --days 2017-11-06,2017-11-07

Every count's key holds the ip, so once the clicks of an ip are in one place nothing else moves. Spark sorts a task's
clicks by arrival, on disk where memory is short. The task counts them batch by batch with the kernel the pods use, so
that its memory grows with the keys and not with the rows: one ip may have any number of clicks. It writes them as one
Parquet part itself, through pyarrow: going back through the JVM would cost more than the counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from mlops_assets.clicks.features import RunningCounts
from mlops_assets.clicks.schema import SECONDS_PER_DAY, Clicks
from mlops_assets.lake.ingest import HOURS_OVER
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake, Staging
from mlops_assets.lake.tables import TRAINING_SET, column, training_rows
from mlops_assets.spark.days import REPORT, OnDay, arguments, report, run_days, task_number
from mlops_assets.spark.session import say, session

DATASET: Final = "training_set"
FEATURES_VERSION: Final = "1"
"""Raise it when the features change: every day is then computed again."""

ROWS_PER_PART: Final = 500_000
"""How large parts are on average. They depend on the day's rows only, never on the cluster: any cluster makes the same
files."""
BATCH_ROWS: Final = 65_536
"""Rows that a task counts at a time."""

_PACKED: Final = (
    "ip",
    "shiftleft(bigint(app), 48) | shiftleft(bigint(device), 32) | shiftleft(bigint(os), 16) | channel AS ids",
    f"shiftleft(arrival, 18) | shiftleft(unix_seconds(click_time) % {SECONDS_PER_DAY}, 1) | is_attributed AS moment",
)
"""A click as three 64-bit numbers: a shuffled row costs by the column, and eight took a third more CPU time in all."""


def run(spark: SparkSession, lake_root: str, days: Iterable[str], on_day: OnDay | None = None) -> list[Manifest]:
    """Makes the training set of each day that has changed. See run_days."""
    lake = Lake(lake_root)
    return run_days(
        lake,
        DATASET,
        days,
        code_version=FEATURES_VERSION,
        inputs=lambda day: _inputs(lake, day),
        compute=lambda staging, day: features(spark, lake.require("raw_clicks", day), staging),
        on_day=on_day,
    )


def finished(lake: Lake, day: str) -> Manifest | None:
    """The day's training set, if nothing changed since. Raises MissingPartitionError without raw clicks."""
    return lake.finished(DATASET, day, _inputs(lake, day), FEATURES_VERSION)


def _inputs(lake: Lake, day: str) -> dict[str, str]:
    return {"raw_clicks": lake.require("raw_clicks", day).version}


def features(spark: SparkSession, raw_clicks: Manifest, staging: Staging) -> DataFrame:
    """The job that stages a day's features and returns REPORT rows."""
    clicks = spark.read.parquet(*staging.lake.uris(raw_clicks)).selectExpr(*_PACKED)
    midnight = int(datetime.fromisoformat(raw_clicks.date).replace(tzinfo=UTC).timestamp())
    last_second = midnight + SECONDS_PER_DAY - 1
    parts = max(1, -(-raw_clicks.rows // ROWS_PER_PART))
    hours_over = raw_clicks.metadata.get(HOURS_OVER, [])

    def stage(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        first = next(batches, None)
        if first is None:
            return
        running, installs = RunningCounts(), 0
        with staging.part(TRAINING_SET, task_number()) as part:
            for rows in _regrouped(chain([first], batches), BATCH_ROWS):
                clicks, arrival = _unpack(rows, midnight)
                over = _over(arrival, hours_over)
                part.write_rows(training_rows(clicks, arrival, running.count(clicks, clicks.time < over)))
                running.forget(min(int(over[-1]), last_second))  # hours that are over, but not the day
                installs += int(np.sum(clicks.label == 1))
        yield report(part.staged, installs=installs)

    return clicks.repartition(parts, "ip").sortWithinPartitions("moment").mapInArrow(stage, REPORT)


def _regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of at least so many, but for the last. Spark's batches are small by default."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(each.num_rows for each in pending) >= rows:
            yield pa.Table.from_batches(pending)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending)


def _over(arrival: NDArray[np.int64], hours_over: list[list[int]]) -> NDArray[np.int64]:
    """Which hours were over when each click arrived: those that end by then, in epoch seconds. See clicks/clock.py."""
    from_arrival, over = np.array([(0, 0), *hours_over]).T
    return np.asarray(over[np.searchsorted(from_arrival, arrival, side="right") - 1])


def _unpack(rows: pa.Table, midnight: int) -> tuple[Clicks, NDArray[np.int64]]:
    """The clicks of _PACKED rows, and their arrival numbers: the high bits of `moment`."""
    ip, ids, moment = column(rows, "ip"), column(rows, "ids"), column(rows, "moment")
    app, device, os, channel = (((ids >> shift) & 0xFFFF).astype(np.uint16) for shift in (48, 32, 16, 0))
    time, label = midnight + ((moment >> 1) & 0x1FFFF), (moment & 1).astype(np.uint8)
    return Clicks(ip.astype(np.uint32), app, device, os, channel, time, label), moment >> 18


if __name__ == "__main__":
    options = arguments(DATASET).parse_args()
    with session(DATASET, options.lake) as spark:
        run(spark, options.lake, options.days.split(","), say)
