"""The Spark application for features, against six grouped joins on Spark and against Polars in one process.

All three read the same day of raw clicks from Parquet and write its features as Parquet. The joins count all clicks of
a group, future ones too, as the original system does; the other two count causally, and their outputs are compared.
Each contender runs in a process of its own. Its time starts after its Spark session is up and a day of 20,000 clicks
has warmed it up; the peak memory is the resident set of its whole process tree, session and warm-up included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import polars as pl
import psutil
from pyspark.sql import SparkSession
from pyspark.sql import functions as sql
from rich.console import Console
from rich.table import Table

from mlops_assets.clicks.features import COUNTS
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake.store import Lake
from mlops_assets.lake.tables import RAW_CLICKS, raw_rows
from mlops_assets.resources.spark import LocalSpark
from mlops_assets.spark import training_set

DAY: Final = "2017-11-06"
WARM_UP: Final = 20_000
GROUPS: Final = {"ip_count": ("ip",), "ip_day_hour": ("ip", "day_of_week", "hour")} | {
    f"ip_hour_{other}": ("ip", "hour", other) for other in ("channel", "os", "app", "device")
}
NAMES: Final = {"ours": "our Spark application", "original": "six groupBy + six joins", "polars": "Polars, one process"}


def ours(spark: SparkSession, lake: Lake, output: Path) -> None:
    training_set.run(spark, lake.root, [DAY])
    Path(lake.root, "training_set", f"date={DAY}").rename(output)


def original(spark: SparkSession, lake: Lake, output: Path) -> None:
    clicks = spark.read.parquet(*lake.uris(lake.require("raw_clicks", DAY))).drop("attributed_time")
    clicks = clicks.withColumns({"day_of_week": sql.dayofweek("click_time"), "hour": sql.hour("click_time")})
    features = clicks
    for name, keys in GROUPS.items():
        counted = clicks.groupBy(*keys).agg(sql.count("*").alias(name))
        features = features.join(counted, on=list(keys), how="left")
    features.write.parquet(str(output))


def polars(_: None, lake: Lake, output: Path) -> None:
    clicks = pl.read_parquet(lake.uris(lake.require("raw_clicks", DAY))).drop("attributed_time").sort("arrival")
    time_ = pl.col("click_time").dt
    clicks = clicks.with_columns(day_of_week=time_.weekday() - 1, hour=time_.hour())
    counts = {name: pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over(keys) for name, keys in GROUPS.items()}
    output.mkdir()
    clicks.with_columns(**counts).write_parquet(output / "features.parquet")


def contend(name: str, memory: str, lake: str, outputs: Sequence[Path], times: Connection) -> None:
    """In a process of its own: warms up, then runs once for each output."""
    runs: dict[str, Callable[..., None]] = {"ours": ours, "original": original, "polars": polars}
    run = runs[name]
    with nullcontext() if name == "polars" else LocalSpark(memory=memory).cluster() as session:
        run(session, Lake(f"{lake}/small"), outputs[0].with_suffix(".warm-up"))
        for output in outputs:
            started, busy = time.perf_counter(), cpu_seconds()
            run(session, Lake(f"{lake}/large"), output)
            times.send((time.perf_counter() - started, cpu_seconds() - busy))


def cpu_seconds() -> float:
    """CPU time so far of this process, its children and theirs: what other load on the machine does not change."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [this, *this.children(recursive=True)])


def measure(name: str, memory: str, lake: str, outputs: Sequence[Path]) -> tuple[float, float, float]:
    """Median seconds, median CPU seconds, and peak MiB of the process tree."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=contend, args=(name, memory, lake, outputs, sender))
    process.start()
    peak = Peak(process.pid or 0)
    process.join()
    if process.exitcode:
        raise SystemExit(f"{NAMES[name]} failed with exit code {process.exitcode}")
    seconds, busy = zip(*(receiver.recv() for _ in outputs), strict=True)
    return statistics.median(seconds), statistics.median(busy), peak.mib()


class Peak:
    """Watches the resident set of a process tree."""

    def __init__(self, pid: int) -> None:
        self._bytes = 0
        self._thread = threading.Thread(target=self._watch, args=(psutil.Process(pid),), daemon=True)
        self._thread.start()

    def mib(self) -> float:
        """The peak, once the process has ended."""
        self._thread.join()
        return self._bytes / 2**20

    def _watch(self, root: psutil.Process) -> None:
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._bytes = max(self._bytes, total)
            time.sleep(0.05)


def generate(lake: Lake, clicks: int, seed: int) -> None:
    first = 0
    with lake.stage("raw_clicks", DAY) as staging:
        with staging.part(RAW_CLICKS, 0) as part:
            for batch in generate_day(date.fromisoformat(DAY), clicks, seed):
                part.write_rows(raw_rows(batch, first))
                first += len(batch)
        staging.commit([part.staged], inputs={}, code_version="1")


def check(output: dict[str, Path]) -> None:
    """Ours must equal Polars' row by row; the joins' totals must equal our last count of each ip."""
    columns = ["arrival", "hour", "day_of_week", *COUNTS]
    rows = {name: pl.read_parquet(f"{path}/*.parquet").sort("arrival") for name, path in output.items()}
    causal = [rows[name].select(pl.col(columns).cast(pl.Int64)) for name in ("ours", "polars")]
    if not causal[0].equals(causal[1]):
        raise SystemExit("our features differ from Polars': nothing was measured")
    last = rows["ours"].select(pl.col("ip_count").max().over("ip").cast(pl.Int64))
    if not last.equals(rows["original"].select(pl.col("ip_count").cast(pl.Int64))):
        raise SystemExit("the joins' totals differ from our last counts: nothing was measured")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--clicks", type=int, default=3_000_000, help="clicks of the day (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of ours and Polars; the joins run once (default 3)")
    parser.add_argument("--memory", default="3g", help="heap of the JVM, ours and the joins' (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".bench/features.json"))
    options = parser.parse_args(arguments)

    console = Console()
    seconds, busy, peak = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-features-") as scratch:
        with console.status(f"generating {options.clicks:,} clicks"):
            generate(Lake(f"{scratch}/small"), WARM_UP, options.seed)
            generate(Lake(f"{scratch}/large"), options.clicks, options.seed)
        outputs = {}
        for name, title in NAMES.items():
            repeats = 1 if name == "original" else options.repeats
            paths = [Path(scratch, f"{name}-{repeat}") for repeat in range(repeats)]
            with console.status(f"{title}, {repeats} time(s)"):
                seconds[name], busy[name], peak[name] = measure(name, options.memory, scratch, paths)
            outputs[name] = paths[-1]
        check(outputs)

    title = f"Features of {options.clicks:,} clicks"
    table = Table("", "seconds", "CPU seconds", "clicks/s", "time over ours", "peak MiB", title=title)
    for name, label in NAMES.items():
        ratio = seconds[name] / seconds["ours"]
        rate = options.clicks / seconds[name]
        numbers = f"{seconds[name]:.1f}", f"{busy[name]:.1f}", f"{rate:,.0f}", f"{ratio:.2f}", f"{peak[name]:,.0f}"
        table.add_row(label, *numbers)
    console.print(table)
    console.print("Spark's session start and a warm-up day are excluded from the times; the outputs agree.")
    result: dict[str, Any] = {
        "speedup_over_original": round(seconds["original"] / seconds["ours"], 2),
        "time_over_polars": round(seconds["ours"] / seconds["polars"], 2),
        "peak_rss_mib": round(peak["ours"]),
        "rows_per_second": round(options.clicks / seconds["ours"]),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in busy.items()},
        "peak_rss_mib_of": {name: round(value) for name, value in peak.items()},
        "settings": {"clicks": options.clicks, "repeats": options.repeats, "driver_memory": options.memory},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
