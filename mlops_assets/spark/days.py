"""A Spark application's days: each is computed by itself, and one that fails costs no other.

Within Dagster's own process a day is committed as soon as it is made. On a cluster, which has no catalog, the two sides
meet in the lake, below a key that the submitter chooses:

    <folder>/plan               by the submitter: what is to be made of what, see Work
    <folder>/made/<table>-<day> by the application: the files of a day that is made, for the submitter to commit
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame

from mlops_assets.lake.manifest import File, Manifest
from mlops_assets.lake.storage import Storage
from mlops_assets.lake.store import Lake, Staging

OnDay = Callable[[Manifest], None]

REPORT: Final = "key string, rows long, bytes long, sha256 string, notes string"
"""What a task returns: the part it wrote. The rows themselves go straight to the lake's storage, once."""

PLAN: Final = "plan"
MADE: Final = "made"


class FailedDaysError(RuntimeError):
    """Some days failed, the others are made. `errors` has the errors by day."""

    def __init__(self, dataset: str, errors: Mapping[str, Exception]) -> None:
        self.errors = dict(errors)
        reasons = (f"  {day}: {type(error).__name__}: {error}" for day, error in errors.items())
        super().__init__(f"{dataset} failed for {', '.join(errors)}; other days are committed:\n" + "\n".join(reasons))


@dataclass(frozen=True)
class Work:
    """A day that is to be made: of which day of another table, and where its parts go."""

    source: Manifest
    staging: Staging

    def as_dict(self) -> dict[str, Any]:
        """For JSON. What only the submitter needs is left out."""
        staging = {
            name: getattr(self.staging, name) for name in ("dataset", "day", "inputs", "code_version", "attempt")
        }
        return {"source": asdict(self.source), "staging": staging}

    @classmethod
    def from_dict(cls, lake: Lake, values: Mapping[str, Any]) -> Work:
        """The inverse, where the lake is."""
        return cls(Manifest.from_dict(values["source"]), Staging(lake, base=(), **values["staging"]))


def run_days(
    lake: Lake,
    dataset: str,
    days: Iterable[str],
    *,
    finished: Callable[[str], Manifest | None],
    begin: Callable[[str], Work],
    compute: Callable[[Work], DataFrame],
    on_day: OnDay | None = None,
) -> list[Manifest]:
    """Commits the days one after the other, in order, and calls `on_day` after each.

    `compute` gives the Spark job whose tasks return REPORT rows. A day that is `finished` is only reported. Raises
    FailedDaysError after the last day.
    """
    done = []

    def make(day: str) -> None:
        manifest = finished(day)
        if manifest is None:
            work = begin(day)
            with work.staging as staging:
                manifest = staging.commit(_collect(compute(work)))
        done.append(manifest)
        if on_day:
            on_day(manifest)

    _each(dataset, days, make)
    return done


def make_days(
    lake: Lake, folder: str, plan: Sequence[Mapping[str, Any]], compute: Callable[[Work], DataFrame], on_day: OnDay
) -> None:
    """Makes the days of a plan for whoever wrote it, and notes the files of each below `folder`.

    Raises FailedDaysError after the last day.
    """
    works = {work.staging.day: work for work in (Work.from_dict(lake, each) for each in plan)}

    def make(day: str) -> None:
        work = works[day]
        with work.staging as staging:
            files = sorted(_collect(compute(work)), key=lambda file: file.key)
            note_made(staging, folder, files)
        on_day(Manifest.of(staging.dataset, day, files, staging.inputs, staging.code_version))

    _each(next((work.staging.dataset for work in works.values()), ""), works, make)


def note_made(staging: Staging, folder: str, files: Sequence[File]) -> None:
    """Says below `folder` of which files a day is to consist. They are the submitter's from now on."""
    staging.kept.update(file.key for file in files)
    data = json.dumps([asdict(file) for file in files]).encode()
    staging.lake.storage.put_if(f"{folder}/{MADE}/{staging.dataset}-{staging.day}", data, None)


def made(storage: Storage, folder: str, staging: Staging) -> list[File] | None:
    """The files of which a day is to consist, None while it is not made."""
    found = storage.get(f"{folder}/{MADE}/{staging.dataset}-{staging.day}")
    return [File(**file) for file in json.loads(found[0])] if found else None


def read_plan(lake: Lake, folder: str) -> list[dict[str, Any]]:
    """What the submitter wants to be made. Raises FileNotFoundError."""
    found = lake.storage.get(f"{folder}/{PLAN}")
    if found is None:
        raise FileNotFoundError(f"{lake.storage.uri(folder)} holds no plan: it is written by whoever starts this")
    plan: list[dict[str, Any]] = json.loads(found[0])
    return plan


def report(file: File) -> pa.RecordBatch:
    """The REPORT row of a part."""
    return pa.RecordBatch.from_pylist([{**asdict(file), "notes": json.dumps(file.notes)}])


def _each(dataset: str, days: Iterable[str], make: Callable[[str], None]) -> None:
    errors = {}
    for day in sorted(set(days)):
        try:
            make(day)
        except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the other days
            errors[day] = error
    if errors:
        raise FailedDaysError(dataset, errors)


def _collect(reports: DataFrame) -> Iterator[File]:
    """Runs the job. Only the reports of attempts that succeeded come back, one for each part."""
    for row in reports.collect():
        yield File(**{**row.asDict(), "notes": json.loads(row["notes"])})


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
    parser.add_argument("--days", required=True, help="YYYY-MM-DD, several separated by commas; for people")
    parser.add_argument("--folder", required=True, help="key in the lake below which the two sides meet")
    return parser
