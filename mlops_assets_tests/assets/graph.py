"""Runs parts of the real graph in this process, on folders unless MLOPS_ENVIRONMENT says otherwise."""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from mlops_assets.clicks.csv import write
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.definitions import defs
from mlops_assets.lake.landing import Landing
from mlops_assets.resources.environment import ENVIRONMENT, systems

CLICKS_ASSETS = ("raw_clicks", "training_set")
VERDICT_ASSETS = ("promoted_model", "deployed_image")


def land(home: Path, day: str, clicks: int, *, seed: int = 7, drift: float = 0) -> None:
    """Lands a generated day, replacing what is there."""
    landing = Landing(str(home / "lake"))
    with landing.stage(day) as file:
        for batch in generate_day(datetime.date.fromisoformat(day), clicks, seed, drift):
            file.write(write(batch))
        landing.publish([file], replace=True)


def run(
    home: Path, instance: dg.DagsterInstance, assets: Sequence[str], days: Sequence[str] = ()
) -> dg.ExecuteInProcessResult:
    """One run of assets and their checks, for the range of days from the first to the last."""
    tags = {}
    if len(days) == 1:
        tags = {"dagster/partition": days[0]}
    elif days:
        tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
    job = dg.Definitions(
        assets=defs.assets,
        asset_checks=defs.asset_checks,
        resources=systems(ENVIRONMENT, home),
        executor=dg.in_process_executor,
        jobs=[dg.define_asset_job("part", selection=list(assets))],
    ).resolve_job_def("part")
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def backfill(home: Path, instance: dg.DagsterInstance, days: Sequence[str]) -> None:
    """The waves of a backfill, as Dagster's daemon launches them."""
    results = [run(home, instance, CLICKS_ASSETS, days)]
    results += [run(home, instance, ["candidate_model"], [day]) for day in days]
    results += [run(home, instance, VERDICT_ASSETS, days)]
    assert all(result.success for result in results)


if __name__ == "__main__":  # a process of its own, to be killed
    backfill(Path(sys.argv[1]), dg.DagsterInstance.ephemeral(), sys.argv[2:])
