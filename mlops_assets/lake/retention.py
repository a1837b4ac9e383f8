"""What the lake's tables no longer need: files that no snapshot has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from mlops_assets.lake import catalog
from mlops_assets.lake.storage import Stored
from mlops_assets.lake.store import LEDGER, Lake
from mlops_assets.lake.tables import TABLES

NAMES: Final = (*TABLES, LEDGER)
LEAST_AGE: Final = timedelta(days=2)
"""A run may take half a day, and commits its files at its end."""


class CatalogBehindError(RuntimeError):
    """The catalog knows less than lies in the lake. The message says what may have happened, and what to do."""


def orphans(lake: Lake, table: str, age: timedelta, now: datetime | None = None) -> list[Stored]:
    """The files of a table that no snapshot has and that were written longer than `age` ago, by key.

    They are what killed jobs left, and what was replaced, once its snapshots have expired.

    Raises:
        ValueError: `age` is less than LEAST_AGE: the files of a job under way have no snapshot either.
        CatalogBehindError: the catalog knows no snapshot of a table that has files, or an older one than they tell of.
            It was lost, say, or restored, and these files may be all there is of some days.
    """
    if age < LEAST_AGE:
        raise ValueError(f"files must be {LEAST_AGE.days} days old at least: a job that is under way needs its own")
    before = (now or datetime.now(UTC)) - age
    # Listed first: what is committed meanwhile is then among what the snapshots have.
    stored = [each for folder in ("data", "metadata") for each in lake.storage.stored(f"{table}/{folder}")]
    found = catalog.load(lake.root, table)
    if found is None or found.current_snapshot() is None:
        if stored:
            raise CatalogBehindError(
                f"{table} has {len(stored)} files, and the catalog knows no snapshot of it. If no job has ever ended "
                "well, that is right. Else restore the catalog, or register the table again (docs/lake.md)"
            )
        return []
    needed = {lake.storage.key(uri) for uri in catalog.needed(found)}
    latest, current = max(map(_version, (each.key for each in stored)), default=0), _version(found.metadata_location)
    if latest > current + 1:  # one more may be of a commit that lost a race, or its process
        raise CatalogBehindError(
            f"the catalog has version {current} of {table}, and version {latest} lies in the lake. Was the catalog "
            "restored? Then register the table again with its newest file of metadata (docs/lake.md)"
        )
    return [each for each in stored if each.changed < before and each.key not in needed]


def _version(key: str) -> int:
    """The version of a table that a file of its metadata holds, 0 for another file."""
    name = key.rpartition("/")[2]
    number = name.partition("-")[0]
    return int(number) if name.endswith(".metadata.json") and number.isdecimal() else 0
