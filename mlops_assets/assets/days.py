"""A run over several days: each is committed by itself, and none is lost when another fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.resources.spark import OnUsage, Usage
from mlops_assets.spark.days import OnDay

Report = Callable[[str, Mapping[str, Any]], None]


@contextmanager
def day_by_day(context: dg.AssetExecutionContext) -> Iterator[Report]:
    """Yields `report(day, metadata)`, to be called as soon as a day is committed, and again for what is known later.

    At the end every reported day gets its own metadata. When the step fails or is terminated, Dagster would forget
    the whole range: the days that were committed are then recorded as materialized before the error goes on.
    """
    committed: dict[str, dict[str, Any]] = {}

    def report(day: str, metadata: Mapping[str, Any]) -> None:
        committed.setdefault(day, {}).update(metadata)

    try:
        yield report
    except BaseException:
        for day, found in committed.items():
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=day, metadata=found))
        raise
    for day, found in committed.items():
        context.add_asset_metadata(found, partition_key=day)


def spark_reports(report: Report) -> tuple[OnDay, OnUsage]:
    """What a Spark job is given to report by: a day's partition, and what the job took to each day that it made."""

    def on_usage(usage: Usage) -> None:
        for day in usage.days:
            report(day, metadata.of_usage(usage))

    return lambda manifest: report(manifest.date, metadata.of_partition(manifest)), on_usage
