"""A Spark application's days: each is computed and committed by itself, and one that is done is left alone."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame

from mlops_assets.lake.manifest import File, Manifest, Staged
from mlops_assets.lake.store import Lake, Staging

OnDay = Callable[[Manifest], None]

REPORT: Final = "key string, name string, rows long, bytes long, sha256 string, installs long"
"""What a task returns: the part it staged. The rows themselves go straight to the lake's storage, once."""


class FailedDaysError(RuntimeError):
    """Some days failed, the others are committed. `errors` has the errors by day."""

    def __init__(self, dataset: str, errors: Mapping[str, Exception]) -> None:
        self.errors = dict(errors)
        reasons = (f"  {day}: {type(error).__name__}: {error}" for day, error in errors.items())
        super().__init__(f"{dataset} failed for {', '.join(errors)}; other days are committed:\n" + "\n".join(reasons))


def run_days(
    lake: Lake,
    dataset: str,
    days: Iterable[str],
    *,
    code_version: str,
    inputs: Callable[[str], Mapping[str, str]],
    compute: Callable[[Staging, str], DataFrame],
    on_day: OnDay | None = None,
) -> list[Manifest]:
    """Commits the days one after the other, in order, and calls `on_day` after each.

    `inputs` gives the versions a day is made of; `compute` the Spark job whose tasks return REPORT rows. A day that was
    made of the same inputs by the same code is only reported. Raises FailedDaysError after the last day.
    """
    done, errors = [], {}
    for day in sorted(set(days)):
        try:
            versions = inputs(day)
            manifest = lake.finished(dataset, day, versions, code_version)
            if manifest is None:
                with lake.stage(dataset, day) as staging:
                    parts, metadata = _collect(compute(staging, day))
                    manifest = staging.commit(parts, inputs=versions, code_version=code_version, metadata=metadata)
        except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the other days
            errors[day] = error
            continue
        done.append(manifest)
        if on_day:
            on_day(manifest)
    if errors:
        raise FailedDaysError(dataset, errors)
    return done


def report(staged: Staged, installs: int) -> pa.RecordBatch:
    """The REPORT row of a staged part."""
    return pa.RecordBatch.from_pylist([{"key": staged.key, **asdict(staged.file), "installs": installs}])


def _collect(reports: DataFrame) -> tuple[list[Staged], dict[str, Any]]:
    """Runs the job. Only the reports of attempts that succeeded come back, one for each part."""
    rows = [row.asDict() for row in reports.collect()]
    installs = sum(row.pop("installs") for row in rows)
    return [Staged(row.pop("key"), File(**row)) for row in rows], {"installs": installs}


def task_number() -> int:
    """The number of the partition that the calling task computes."""
    context = TaskContext.get()
    if context is None:
        raise RuntimeError("only a Spark task has a number")
    return context.partitionId()


def arguments(dataset: str) -> ArgumentParser:
    """The command line of an application that a cluster runs by itself."""
    parser = ArgumentParser(description=f"Makes {dataset} of the given days.")
    parser.add_argument("--lake", required=True, help="root of the lake")
    parser.add_argument("--days", required=True, help="YYYY-MM-DD, several separated by commas")
    return parser
