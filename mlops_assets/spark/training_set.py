"""Clicks to features: one shuffle by ip, then the kernel over whole ips.

    python -m mlops_assets.spark.training_set --lake ROOT --days 2017-11-06,2017-11-07

Every count's key holds the ip, so once the clicks of an ip are in one place nothing else moves. A task sorts its ips'
clicks by arrival, counts them with the kernel the pods use, and writes them as one Parquet part itself, through
pyarrow: going back through the JVM would cost more than the counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
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
"""A task holds its part in memory, some 300 bytes a row. Parts depend on the day's rows only, never on the cluster: any
cluster makes the same files."""

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
    parts = max(1, -(-raw_clicks.rows // ROWS_PER_PART))
    hours_over = raw_clicks.metadata.get(HOURS_OVER, [])

    def stage(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        arrived = list(batches)
        if not arrived:
            return
        clicks, arrival = _unpack(pa.Table.from_batches(arrived), midnight)
        rows = training_rows(clicks, arrival, RunningCounts().count(clicks, _late(clicks, arrival, hours_over)))
        with staging.part(TRAINING_SET, task_number()) as part:
            part.write_rows(rows)
        yield report(part.staged, installs=int(np.sum(clicks.label == 1)))

    return clicks.repartition(parts, "ip").mapInArrow(stage, REPORT)


def _late(clicks: Clicks, arrival: NDArray[np.int64], hours_over: list[list[int]]) -> NDArray[np.bool_]:
    """Which clicks came when their hour was over, by the rule of clicks/clock.py."""
    from_arrival, over = np.array([(0, 0), *hours_over]).T
    return np.asarray(clicks.time < over[np.searchsorted(from_arrival, arrival, side="right") - 1])


def _unpack(rows: pa.Table, midnight: int) -> tuple[Clicks, NDArray[np.int64]]:
    """The clicks of _PACKED rows in arrival order, and their arrival numbers."""
    moment = column(rows, "moment")
    order = np.argsort(moment)  # its high bits are the arrival
    ip, ids, moment = column(rows, "ip")[order], column(rows, "ids")[order], moment[order]
    app, device, os, channel = (((ids >> shift) & 0xFFFF).astype(np.uint16) for shift in (48, 32, 16, 0))
    time, label = midnight + ((moment >> 1) & 0x1FFFF), (moment & 1).astype(np.uint8)
    return Clicks(ip.astype(np.uint32), app, device, os, channel, time, label), moment >> 18


if __name__ == "__main__":
    options = arguments(DATASET).parse_args()
    with session(DATASET, options.lake) as spark:
        run(spark, options.lake, options.days.split(","), say)
