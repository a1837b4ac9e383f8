"""The lake: Iceberg tables of daily partitions, each day replaced whole or not at all, and append-only logs.

    <root>/training_set/data/day=2017-11-06/<attempt>/part-00000-<random>.parquet   rows, written by executors
    <root>/training_set/metadata/...                                                 snapshots, see catalog.py
    <root>/accepted_days/<key>.json                                                  an append-only log

A job writes its files where they stay; the driver's one transaction then lets the day consist of them. Killed anywhere,
the day is the old or the new one, and files that nobody committed belong to nothing. What a day was made of lies in the
footers of its files: so it holds for every snapshot that has them, whatever becomes of the table's history.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_assets.lake.manifest import ConflictError, File, Manifest, MissingPartitionError, encode
from mlops_assets.lake.part import Part, story
from mlops_assets.lake.storage import Storage, open_storage
from mlops_assets.lake.tables import DAY, PROMOTION_LEDGER, TABLES, ledger_records, ledger_rows

if TYPE_CHECKING:
    from pyiceberg.table import Table

CATALOG_URI: Final = "PYICEBERG_CATALOG__LAKE__URI"
"""The variable that names the catalog of a lake on S3, see catalog.py."""

BATCH_ROWS: Final = 65_536
FOOTERS_AT_ONCE: Final = 16

LEDGER: Final = "promotion_ledger"
LEDGER_FILES: Final = 30
"""As many decisions lie in a file each; the next one then takes them all into its own."""


@dataclass(frozen=True)
class Ledger:
    """The decisions at some moment as plain values, in order, and the addresses of the files in which they lie."""

    records: list[dict[str, Any]]
    files: tuple[str, ...]


class OldLayoutError(RuntimeError):
    """The lake is in the layout before Iceberg. The message says what to do."""


class Lake:
    """Tables of days, and append-only logs. Can be pickled, so that executors write to it too.

    Executors need no catalog: only what reads or commits days does, and it alone imports pyiceberg.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.storage: Storage = open_storage(root)
        self._still: dict[str, Table | None] | None = None

    def __reduce__(self) -> tuple[type[Lake], tuple[str]]:
        return Lake, (self.root,)

    def still(self) -> Lake:
        """This lake as it is now: each of its tables stays at the snapshot in which it is first read."""
        lake = Lake(self.root)
        lake._still = {}
        return lake

    def manifest(self, dataset: str, day: str) -> Manifest | None:
        """The day (YYYY-MM-DD) of a table, None where there is none."""
        table = self._table(dataset)
        return self.manifest_in(table, dataset, day) if table else None

    def require(self, dataset: str, day: str) -> Manifest:
        """The day of a table. Raises MissingPartitionError."""
        manifest = self.manifest(dataset, day)
        if manifest is None:
            raise MissingPartitionError(f"{self.root}: no {dataset} of {day}; materialize {dataset} for that day first")
        return manifest

    def finished(self, dataset: str, day: str, inputs: Mapping[str, str], code_version: str) -> Manifest | None:
        """The day, if it was made of just these inputs by this code: then there is nothing to do."""
        manifest = self.manifest(dataset, day)
        made = manifest and dict(manifest.inputs) == dict(inputs) and manifest.code_version == code_version
        return manifest if made else None

    def days(self, dataset: str) -> list[str]:
        """The days of a table, in order."""
        from mlops_assets.lake import catalog

        table = self._table(dataset)
        return catalog.days(table) if table else []

    def uris(self, manifest: Manifest) -> list[str]:
        """The addresses of a day's data files, in order."""
        return [self.storage.uri(file.key) for file in manifest.files]

    def read(self, dataset: str, day: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The day's rows in the order of its files, at most BATCH_ROWS at a time. Raises MissingPartitionError.

        They are those of one snapshot, whatever becomes of the day meanwhile.
        """
        manifest = self.require(dataset, day)
        for number in range(len(manifest.files)):
            yield from self.read_part(manifest, number, columns)

    def read_part(
        self, manifest: Manifest, number: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one of the day's files."""
        with self.storage.open_input(manifest.files[number].key) as source:
            yield from pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=columns, use_threads=False)

    def stage(self, dataset: str, day: str, *, inputs: Mapping[str, str], code_version: str) -> Staging:
        """Begins to replace a day by one made of these inputs by this code. A context manager: see Staging."""
        from mlops_assets.lake import catalog

        table = Lake(self.root)._table(dataset)
        base = tuple(catalog.files(table, day)) if table else ()
        return Staging(self, dataset, day, dict(inputs), code_version, base, uuid.uuid4().hex)

    def ledger(self) -> Ledger:
        """Every decision so far, and the files in which they lie."""
        from mlops_assets.lake import catalog

        if (table := self._table(LEDGER)) is None:
            return Ledger([], ())
        files = catalog.files(table)
        records = [record for uri in files for record in ledger_records(_ledger_file(self.root, uri))]
        return Ledger(sorted(records, key=lambda record: record["time"]), tuple(files))

    def append_decision(self, record: Mapping[str, Any], after: Ledger) -> None:
        """Adds a decision to the ledger for ever. Raises ConflictError if another one came after `after` was read."""
        from mlops_assets.lake import catalog

        Lake(self.root)._table(LEDGER)  # refuses the old layout
        table = catalog.load_or_make(self.root, LEDGER, PROMOTION_LEDGER)
        merge = len(after.files) >= LEDGER_FILES
        key = f"{LEDGER}/data/{uuid.uuid4().hex}.parquet"
        with self.storage.open_output(key) as sink:
            pq.write_table(ledger_rows([*after.records, record] if merge else [record]), sink)
        try:
            catalog.append(table, after.files, self.storage.uri(key), instead=merge)
        except ConflictError:
            self.storage.delete([key])
            raise

    def append_record(self, log: str, key: str, record: Mapping[str, Any]) -> None:
        """Adds a record for ever. The same record again changes nothing.

        Raises ConflictError if the key holds a different one: append-only is not overwritten.
        """
        path, data = f"{log}/{key}.json", encode(record)
        if self.storage.put_if(path, data, None) is None:
            current = self.storage.get(path)
            if current is None or current[0] != data:
                raise ConflictError(f"the log {log} already holds another record {key}")

    def records(self, log: str) -> list[dict[str, Any]]:
        """The records of a log, sorted by key."""
        found = (self.storage.get(key) for key in self.storage.list(log) if key.endswith(".json"))
        return [json.loads(entry[0]) for entry in found if entry]

    def _table(self, dataset: str) -> Table | None:
        from mlops_assets.lake import catalog

        if self._still is not None and dataset in self._still:
            return self._still[dataset]
        table = catalog.load(self.root, dataset)
        if (table is None or table.current_snapshot() is None) and old_manifests(self.storage, dataset):
            raise OldLayoutError(
                f"{self.root} holds {dataset} as it was before Iceberg: run `mlops-assets migrate-lake`"
            )
        if self._still is not None:
            self._still[dataset] = table
        return table

    def manifest_in(self, table: Table, dataset: str, day: str) -> Manifest | None:
        """The day in this snapshot of the table, None where there is none."""
        from mlops_assets.lake import catalog

        if not (uris := catalog.files(table, day)):
            return None
        with ThreadPoolExecutor(min(len(uris), FOOTERS_AT_ONCE)) as pool:
            found = list(pool.map(lambda uri: _footer(self.root, uri), uris))
        first = found[0][1]
        whole = all(
            (each.get("inputs"), each.get("code_version")) == (first.get("inputs"), first.get("code_version"))
            for _, each in found
        )
        # Files that another tool wrote or compacted don't say what they were made of, so the day counts as unfinished.
        inputs, code = (first.get("inputs", {}), first.get("code_version", "")) if whole else ({}, "")
        return Manifest.of(dataset, day, [file for file, _ in found], inputs, code)


def old_manifests(storage: Storage, dataset: str) -> list[str]:
    """The keys of a table's days, or of the ledger's records, as they lay before Iceberg, see migration.py."""
    if dataset == LEDGER:
        return [key for key in storage.list(LEDGER) if key.endswith(".json") and key.count("/") == 1]
    return [
        key for key in storage.list(dataset) if key.startswith(f"{dataset}/date=") and key.endswith("_manifest.json")
    ]


@lru_cache(maxsize=64)
def _ledger_file(root: str, uri: str) -> pa.Table:
    storage = open_storage(root)
    with storage.open_input(storage.key(uri)) as source:
        return pq.read_table(source)


@lru_cache(maxsize=4096)
def _footer(root: str, uri: str) -> tuple[File, dict[str, Any]]:
    """What the footer of a file says; it never changes, for names are used once."""
    storage = open_storage(root)
    key = storage.key(uri)
    with storage.open_input(key) as source:
        size = source.seek(0, 2)
        source.seek(0)
        footer = pq.read_metadata(source)
    said = story(footer)
    return File(key, footer.num_rows, size, said.get("sha256", ""), said.get("notes", {})), said


@dataclass(frozen=True)
class Staging:
    """The replacement of one day, begun by `Lake.stage`. A context manager: at its end what was not committed is gone.

    `base` are the files to be replaced. Executors get a pickled copy to write parts with; the driver commits the parts
    that were reported to it, so a part of a lost, repeated or speculative task is never taken twice.
    """

    lake: Lake
    dataset: str
    day: str
    inputs: Mapping[str, str]
    code_version: str
    base: tuple[str, ...]
    attempt: str
    kept: set[str] = field(default_factory=set, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()

    def discard(self) -> None:
        """Deletes the files that were written and not committed."""
        storage = self.lake.storage
        storage.delete(sorted(set(storage.list(self._folder)) - self.kept))

    @contextmanager
    def part(self, number: int) -> Iterator[Part]:
        """A file to write rows to. `number` orders the day's files."""
        key = f"{self._folder}/part-{number:05}-{uuid.uuid4().hex}.parquet"
        with self.lake.storage.open_output(key) as sink:
            part = Part(key, sink, TABLES[self.dataset])
            yield part
            part.finish(self.inputs, self.code_version)

    def commit(self, parts: Iterable[File]) -> Manifest:
        """Replaces the day by these files, whole or not at all, and returns its manifest; by no file, it is gone.

        Committing what the day already holds changes nothing. Raises ConflictError if another job replaced the day
        since it was staged.
        """
        from mlops_assets.lake import catalog

        files = sorted(parts, key=lambda file: file.key)
        new = Manifest.of(self.dataset, self.day, files, self.inputs, self.code_version)
        table = catalog.load_or_make(self.lake.root, self.dataset, TABLES[self.dataset])
        current = self.lake.manifest_in(table, self.dataset, self.day)
        if current == new or (current is None and not files):
            return current or new
        # From here on they may be the day's. Should the outcome stay unknown, nobody may delete them.
        self.kept.update(file.key for file in files)
        try:
            catalog.replace(table, self.day, self.base, self.lake.uris(new))
        except ConflictError:
            self.kept.clear()
            raise
        return new

    @property
    def _folder(self) -> str:
        return f"{self.dataset}/data/{DAY}={self.day}/{self.attempt}"
