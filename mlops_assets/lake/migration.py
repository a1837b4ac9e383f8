"""The layout before Iceberg, and the way out of it.

    <root>/training_set/date=2017-11-06/part-00000-1f0c9a72d3b4.parquet
    <root>/training_set/date=2017-11-06/_manifest.json                    its files, inputs, version and counts

A table gets all of its days in one commit, so it is there whole or not at all. A day keeps its version: what was made
of it, its candidates and the ledger's verdicts all name it. Nothing old is deleted before somebody says so.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_assets.lake import catalog
from mlops_assets.lake.manifest import File
from mlops_assets.lake.store import BATCH_ROWS, LEDGER, Lake, Staging, old_manifests
from mlops_assets.lake.tables import DAY, PROMOTION_LEDGER, TABLES, ledger_rows, quarantine_rows

OLD_TABLES: Final = ("raw_clicks", "training_set", "batch_predictions")
QUARANTINED: Final = "_quarantine"

Say = Callable[[str], None]


class MigrationError(RuntimeError):
    """The old lake is not what its manifests say. The message names the file."""


def migrate(lake: Lake, say: Say) -> None:
    """Makes the Iceberg tables of a lake in the old layout, those that are not there yet, and checks each day.

    Raises MigrationError, before the table is made, for an old file that is damaged or missing.
    """
    for dataset in OLD_TABLES:
        keys = old_manifests(lake.storage, dataset)
        table = catalog.load(lake.root, dataset)
        if not keys or (table and table.current_snapshot()):
            say(f"{dataset}: nothing to do")
            continue
        old = [each for each in (_partition(lake, key) for key in keys) if each]
        if dataset == "raw_clicks":
            _fill(lake, "quarantine", old, _quarantine)
        _fill(lake, dataset, old, _rows)
        for each in old:
            found = lake.require(dataset, each["date"])
            if (found.rows, found.version, dict(found.metadata)) != (each["rows"], each["version"], each["metadata"]):
                raise MigrationError(f"{dataset} of {each['date']} has other rows than before: {found.rows:,}")
            say(f"{dataset} of {each['date']}: {found.rows:,} rows, version {found.version[:12]}, as before")
    migrate_ledger(lake, say)


def migrate_ledger(lake: Lake, say: Say) -> None:
    """Makes the ledger's table of its records, all in one commit."""
    keys = old_manifests(lake.storage, LEDGER)
    table = catalog.load(lake.root, LEDGER)
    if not keys or (table and table.current_snapshot()):
        say(f"{LEDGER}: nothing to do")
        return
    records = [json.loads(found[0]) for key in keys if (found := lake.storage.get(key))]
    key = f"{LEDGER}/data/{uuid.uuid4().hex}.parquet"
    with lake.storage.open_output(key) as sink:
        pq.write_table(ledger_rows(records), sink)
    catalog.add(catalog.load_or_make(lake.root, LEDGER, PROMOTION_LEDGER), [lake.storage.uri(key)])
    if lake.ledger().records != sorted(records, key=lambda record: record["time"]):
        raise MigrationError(f"{LEDGER} does not say what it said before")
    say(f"{LEDGER}: {len(records)} decisions, as before")


def delete_old(lake: Lake, say: Say) -> None:
    """Deletes the files of the old layout, table by table. Raises MigrationError for a table that was not migrated."""
    for dataset in (*OLD_TABLES, LEDGER):
        keys = [key for key in lake.storage.list(dataset) if key.startswith(f"{dataset}/date=")]
        keys += old_manifests(lake.storage, LEDGER) if dataset == LEDGER else []
        table = catalog.load(lake.root, dataset)
        if keys and not (table and table.current_snapshot()):
            raise MigrationError(f"{dataset} has not been migrated: nothing was deleted")
        lake.storage.delete(keys)
        say(f"{dataset}: {len(keys)} old files deleted")


def _partition(lake: Lake, key: str) -> dict[str, Any] | None:
    found = lake.storage.get(key)
    partition: dict[str, Any] | None = json.loads(found[0])["partition"] if found else None
    return partition


def _fill(lake: Lake, dataset: str, old: list[dict[str, Any]], copy: Callable[..., Iterator[File]]) -> None:
    with ExitStack() as stagings:
        uris, kept = [], []
        for each in old:
            staging = Staging(
                lake, dataset, each["date"], each["inputs"], each["code_version"], (), attempt=uuid.uuid4().hex
            )
            stagings.enter_context(staging)
            files = list(copy(lake, each, staging))
            uris += [lake.storage.uri(file.key) for file in files]
            kept.append((staging, files))
        table = catalog.load_or_make(lake.root, dataset, TABLES[dataset])
        if uris and table.current_snapshot() is None:
            for staging, files in kept:  # from here on they may count
                staging.kept.update(file.key for file in files)
            catalog.add(table, uris)


def _rows(lake: Lake, old: dict[str, Any], staging: Staging) -> Iterator[File]:
    schema, day = TABLES[staging.dataset], date.fromisoformat(old["date"])
    for number, file in enumerate(old["files"]):
        data = _read(lake, old, file)
        with staging.part(number) as part:
            for rows in pq.ParquetFile(data).iter_batches(BATCH_ROWS, use_threads=False):
                columns = [
                    pa.repeat(pa.scalar(day, field.type), len(rows))
                    if field.name == DAY
                    else rows[field.name].cast(field.type)
                    for field in schema
                ]
                part.write_rows(pa.record_batch(columns, schema=schema))
            if part.rows != file["rows"]:
                raise MigrationError(f"{file['name']} of {old['date']} has {part.rows:,} rows, not {file['rows']:,}")
            part.sha256 = file["sha256"]
            part.notes |= {} if number else old["metadata"]
        yield part.file


def _quarantine(lake: Lake, old: dict[str, Any], staging: Staging) -> Iterator[File]:
    for file in old["others"]:
        if file["name"].startswith(QUARANTINED):
            with gzip.open(_read(lake, old, file)) as lines:
                bad = [json.loads(line) for line in lines]
            with staging.part(0) as part:
                part.write_rows(quarantine_rows(old["date"], bad))
            yield part.file


def _read(lake: Lake, old: dict[str, Any], file: dict[str, Any]) -> io.BytesIO:
    key = f"{old['dataset']}/date={old['date']}/{file['name']}"
    found = lake.storage.get(key)
    if found is None or hashlib.sha256(found[0]).hexdigest() != file["sha256"]:
        raise MigrationError(
            f"{lake.storage.uri(key)} is {'damaged' if found else 'missing'}: its table stays as it is"
        )
    return io.BytesIO(found[0])
