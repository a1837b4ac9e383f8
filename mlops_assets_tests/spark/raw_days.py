"""Days of raw clicks for the Spark tests, put into a lake without a landing file."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake import catalog
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake, Staging
from mlops_assets.lake.tables import TABLES, raw_rows
from mlops_assets.spark.days import PLAN, made

DAYS = ("2017-11-06", "2017-11-07", "2017-11-08")


def write_raw(lake: Lake, day: str, clicks: int = 4_000, seed: int = 1) -> None:
    """Synthetic clicks, some of which arrive late: by a second, or by hours."""
    every = Clicks.concat(list(generate_day(date.fromisoformat(day), clicks, seed)))
    rng = np.random.default_rng(seed)
    delay = np.where(rng.random(clicks) < 0.05, rng.integers(0, 3 * 3_600, clicks), 0)
    every = every.take(np.argsort(every.time + delay, kind="stable"))
    with lake.stage("raw_clicks", day, inputs={"landing": str(seed)}, code_version="1") as staging:
        with staging.part(0) as part:
            part.write_rows(raw_rows(every, 0))
            part.notes |= {"rows_in": clicks, "quarantined": {}, "installs": int(np.sum(every.label == 1))}
        staging.commit([part.file])


def data(lake: Lake) -> dict[str, Manifest | None]:
    """Every day of the lake by its table and date. Its version names its rows."""
    return {f"{table}/{day}": lake.manifest(table, day) for table in TABLES for day in lake.days(table)}


def files(lake: Lake) -> set[str]:
    """The Parquet files that lie in the lake, in whatever snapshot or none."""
    return {key for key in lake.storage.list("") if key.endswith(".parquet")}


def committed(lake: Lake) -> set[str]:
    """The Parquet files that are some day's."""
    return {file.key for manifest in data(lake).values() if manifest for file in manifest.files}


def rows(lake: Lake, table: str) -> pl.DataFrame:
    """All rows of a table, as another tool reads them."""
    found = catalog.load(lake.root, table)
    assert found
    return pl.scan_iceberg(found).collect()


class Submitter:
    """What Dagster's side does for an application that runs elsewhere: writes its plan, and commits what it made."""

    def __init__(self, lake: Lake, application: Any, days: Sequence[str], folder: str, **options: str) -> None:
        self.lake, self.folder = lake, folder
        works = [application.begin(lake, day, **options) for day in days]
        self.stagings: list[Staging] = [work.staging for work in works]
        self.plan = [work.as_dict() for work in works]

    def write_plan(self) -> None:
        self.lake.storage.put_if(f"{self.folder}/{PLAN}", json.dumps(self.plan).encode(), None)

    def commit(self) -> list[str]:
        """The days that were made."""
        days = []
        for staging in self.stagings:
            files = made(self.lake.storage, self.folder, staging)
            if files is not None:
                staging.commit(files)
                days.append(staging.day)
        return days
