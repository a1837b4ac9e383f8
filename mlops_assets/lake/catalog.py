"""The lake's tables in an Iceberg catalog, which says for each of them which snapshot counts.

    <root>/catalog.db                  the catalog of a lake in a folder (sqlite)
    <root>/raw_clicks/metadata/...     a table's snapshots, by pyiceberg
    <root>/raw_clicks/data/...         its Parquet files, by whoever computes the rows

A lake on S3 has the catalog that pyiceberg's own configuration calls `lake`, in the environment or .pyiceberg.yaml:

    PYICEBERG_CATALOG__LAKE__URI=postgresql+psycopg2://user:password@host/database

or any other that pyiceberg knows (PYICEBERG_CATALOG__LAKE__TYPE=rest, glue, ...). This module is for whoever commits
and plans. Executors don't need it, nor pyiceberg.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    ValidationException,
)
from pyiceberg.expressions import AlwaysTrue, EqualTo
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.table import Table
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import IdentityTransform
from pyiceberg.utils.config import Config
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from mlops_assets.lake.manifest import ConflictError
from mlops_assets.lake.storage import Storage, open_storage
from mlops_assets.lake.tables import DAY, SORTED_BY, TABLES

NAME: Final = "lake"
NAMESPACE: Final = "mlops_assets"

CONNECT_SECONDS: Final = 10
STATEMENT_SECONDS: Final = 60
ATTEMPTS: Final = 4
"""Of a request to the catalog's database, half a second to two seconds apart."""

PROPERTIES: Final = {
    "format-version": "2",
    # Days commit independently: a commit that another day's overtook is made again on top of that one.
    "commit.retry.num-retries": "20",
    "commit.retry.min-wait-ms": "50",
    "commit.retry.max-wait-ms": "2000",
    "commit.retry.total-timeout-ms": "120000",
    # A commit costs what the list of manifests and their entries cost, so both stay short for years.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    "commit.manifest.target-size-bytes": str(128 << 10),
    "write.metadata.metrics.default": "none",
    f"write.metadata.metrics.column.{DAY}": "full",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
}

MOST_SNAPSHOTS: Final = 40
KEPT_SNAPSHOTS: Final = 25
"""Of the newest: a day that is new makes one, a day that is replaced two."""
KEPT_SECONDS: Final = 86_400
"""No younger snapshot expires: a run that reads it may take half a day."""

APPENDED: Final = {"commit.retry.num-retries": "0"}
"""Of an append-only table: what is appended rests on what was read, so it must not follow anything else."""

T = TypeVar("T")


class CatalogError(ConnectionError):
    """The catalog's database did not answer, or refused. The message says what to do."""


def load(root: str, name: str) -> Table | None:
    """A table of the lake as it is now, None where it was never made."""
    catalog = _catalog(root)
    try:
        return _asked(lambda: catalog.load_table((NAMESPACE, name)))
    except NoSuchTableError:
        return None


def load_or_make(root: str, name: str, schema: pa.Schema) -> Table:
    """A table of the lake as it is now; made if it was not there. Tables of days are partitioned by them."""
    catalog, location = _catalog(root), open_storage(root).uri(name)
    of_days = name in TABLES
    partition = [i for i, field in enumerate(schema, 1) if of_days and field.name == DAY]
    sort = [i for i, field in enumerate(schema, 1) if field.name in SORTED_BY]

    def make() -> Table:
        from pyiceberg.io.pyarrow import pyarrow_to_schema  # it imports pandas, and readers do without it

        with suppress(NamespaceAlreadyExistsError):  # by another job, just now
            catalog.create_namespace_if_not_exists(NAMESPACE)
        return catalog.create_table_if_not_exists(
            (NAMESPACE, name),
            pyarrow_to_schema(schema),
            location,
            PartitionSpec(*(PartitionField(i, 1000, IdentityTransform(), DAY) for i in partition)),
            SortOrder(*(SortField(source_id=i, transform=IdentityTransform()) for i in sort)),
            PROPERTIES if of_days else {**PROPERTIES, **APPENDED},
        )

    return load(root, name) or _asked(make)


def files(table: Table, day: str | None = None) -> list[str]:
    """The addresses of a day's data files in this snapshot of the table, or of all, in order."""
    scan = table.scan() if day is None else table.scan(row_filter=_is(day))
    return sorted(task.file.file_path for task in scan.plan_files())


def days(table: Table) -> list[str]:
    """The days (YYYY-MM-DD) that have rows in this snapshot of the table, in order."""
    found = {task.file.partition[0] for task in table.scan().plan_files()}
    return sorted(str(date.fromordinal(date(1970, 1, 1).toordinal() + number)) for number in found)


def needed(table: Table) -> set[str]:
    """The addresses of all files that any snapshot of the table has, its metadata included."""
    found = {table.metadata_location, *(each.metadata_file for each in table.metadata.metadata_log)}
    for snapshot in table.metadata.snapshots:
        found.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in found:  # most are shared by many snapshots
                found.add(manifest.manifest_path)
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                found.update(entry.data_file.file_path for entry in entries)
    return found


def replace(table: Table, day: str, old: Sequence[str], new: Sequence[str]) -> None:
    """Lets the day consist of the `new` files instead of the `old` ones, both sorted: whole or not at all.

    Raises ConflictError if the day did not consist of the old ones, or another job replaced it meanwhile.
    """
    if files(table, day) != list(old):
        raise _conflict(table, day)
    for attempt in range(ATTEMPTS):
        try:
            _replace(table, day, new)
            _forget(table)
            return
        except (ValidationException, CommitFailedException, DBAPIError) as error:
            # It may be our own commit that a repeated one met, the answer to the first being lost. The files say so.
            table = _asked(table.refresh)
            if (current := files(table, day)) == list(new):
                return
            if current != list(old) or not isinstance(error, DBAPIError):
                raise _conflict(table, day) from error
            if attempt == ATTEMPTS - 1:
                raise CatalogError(f"the lake's catalog: {error.orig}") from error


def add(table: Table, new: Sequence[str]) -> None:
    """Adds files of any days, all or none."""
    with table.transaction() as transaction:
        transaction.add_files(list(new), check_duplicate_files=False)


def append(table: Table, old: Sequence[str], new: str, *, instead: bool) -> None:
    """Adds a file to an append-only table that consists of the `old` ones, or lets it consist of the new one alone.

    Raises ConflictError if it consists of others, or somebody else appended meanwhile.
    """
    conflict = ConflictError(f"another job wrote to {table.name()[-1]} meanwhile: run this one again")
    if files(table) != list(old):
        raise conflict
    try:
        with table.transaction() as transaction:
            if instead:
                transaction.delete(AlwaysTrue())
            transaction.add_files([new], check_duplicate_files=False)
        _forget(table)
    except (ValidationException, CommitFailedException, DBAPIError) as error:
        if new in files(_asked(table.refresh)):  # only the answer was lost
            return
        if isinstance(error, DBAPIError):
            raise CatalogError(f"the lake's catalog: {error.orig}") from error
        raise conflict from error


def _replace(table: Table, day: str, new: Sequence[str]) -> None:
    with table.transaction() as transaction, warnings.catch_warnings():
        # Also where there is nothing to delete: pyiceberg then sees to it that nobody else adds the day.
        warnings.filterwarnings("ignore", message="Delete operation did not match")
        transaction.delete(_is(day))
        if new:
            transaction.add_files(list(new), check_duplicate_files=False)  # their names are used once


def _forget(table: Table) -> None:
    """Expires the oldest snapshots of a table that has many: pyiceberg copies all of them several times in a commit.

    Snapshots with a tag stay. No file is deleted.
    """
    if len(table.metadata.snapshots) > MOST_SNAPSHOTS:
        by_age = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.timestamp_ms)
        named = {ref.snapshot_id for ref in table.metadata.refs.values()}
        before = 1_000 * (time.time() - KEPT_SECONDS)
        old = [
            each.snapshot_id
            for each in by_age[:-KEPT_SNAPSHOTS]
            if each.snapshot_id not in named and each.timestamp_ms < before
        ]
        with suppress(CommitFailedException, DBAPIError):  # another job does it, or the next commit
            table.maintenance.expire_snapshots().by_ids(old).commit()


def _conflict(table: Table, day: str) -> ConflictError:
    return ConflictError(f"{table.name()[-1]} of {day} was replaced by another job meanwhile: run this one again")


def _is(day: str) -> EqualTo:
    return EqualTo(DAY, day)  # type: ignore[call-arg, arg-type] # pydantic hides its signature


def _asked(request: Callable[[], T]) -> T:
    """The answer of the catalog's database, which is asked again if it fails. Raises CatalogError."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except DBAPIError as error:  # also of two jobs that make the same table at once
            if attempt == ATTEMPTS - 1:
                raise CatalogError(f"the lake's catalog: {error.orig}") from error
            time.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1))  # noqa: S311 - no secret
    raise AssertionError


def _catalog(root: str) -> Catalog:
    if "://" not in root:
        Path(root).mkdir(parents=True, exist_ok=True)
        return _opened(root, (("uri", f"sqlite:///{Path(root, 'catalog.db').resolve()}"),))
    configured = Config().get_catalog_config(NAME) or {}
    if not configured:
        raise ValueError(
            f"the lake {root} has no catalog: set PYICEBERG_CATALOG__LAKE__URI, like "
            "postgresql+psycopg2://user:password@host/database, or configure another one (docs/lake.md)"
        )
    return _opened(root, tuple(sorted((key, str(value)) for key, value in configured.items())))


@cache
def _opened(root: str, properties: tuple[tuple[str, str], ...]) -> Catalog:
    settings = {**dict(properties), "py-io-impl": f"{__name__}.{LakeIO.__name__}", ROOT: root}
    if "uri" in settings:
        settings["uri"] = _with_timeouts(settings["uri"])
        if "type" not in settings and not settings["uri"].startswith(("http", "thrift")):
            settings |= {"type": "sql", "pool_pre_ping": "true"}
    return _asked(lambda: load_catalog(NAME, **settings))


os.register_at_fork(after_in_child=_opened.cache_clear)  # a connection is not for two processes


def _with_timeouts(uri: str) -> str:
    if uri.startswith("sqlite"):
        return f"{uri}{'&' if '?' in uri else '?'}timeout={STATEMENT_SECONDS}"
    if uri.startswith("postgresql") and "connect_timeout" not in uri:
        query = {
            "connect_timeout": str(CONNECT_SECONDS),
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s",
        }
        return make_url(uri).update_query_dict(query).render_as_string(hide_password=False)
    return uri


ROOT: Final = "mlops-assets.root"


class LakeIO(FileIO):
    """pyiceberg's way to the files of a lake: the lake's own storage, with its time limits, retries and messages."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        super().__init__(dict(properties))
        self._storage = open_storage(properties[ROOT])

    def new_input(self, location: str) -> InputFile:
        """See FileIO."""
        return _Input(self._storage, self._key(location), location)

    def new_output(self, location: str) -> OutputFile:
        """See FileIO."""
        return _Output(self._storage, self._key(location), location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """See FileIO. A file that is gone is no error."""
        self._storage.delete([self._key(location if isinstance(location, str) else location.location)])

    def _key(self, location: str) -> str:
        try:
            return self._storage.key(location)
        except ValueError as error:
            remedy = "each lake has a catalog of its own, and can't be moved"
            raise ValueError(f"{error}, where its catalog says that it is: {remedy}") from error


class _Input(InputFile):
    def __init__(self, storage: Storage, key: str, location: str) -> None:
        super().__init__(location)
        self._storage, self._key = storage, key

    def __len__(self) -> int:
        with self.open() as file:
            return file.seek(0, os.SEEK_END)

    def exists(self) -> bool:
        try:
            self.open().close()
        except FileNotFoundError:
            return False
        return True

    def open(self, seekable: bool = True) -> InputStream:
        return self._storage.open_input(self._key)


class _Output(OutputFile):
    def __init__(self, storage: Storage, key: str, location: str) -> None:
        super().__init__(location)
        self._storage, self._key = storage, key

    def __len__(self) -> int:
        return len(self.to_input_file())

    def exists(self) -> bool:
        return self.to_input_file().exists()

    def to_input_file(self) -> InputFile:
        return _Input(self._storage, self._key, self.location)

    def create(self, overwrite: bool = False) -> OutputStream:
        # Every name is used once, so nothing is looked for that could be overwritten.
        return self._storage.open_output(self._key)
