"""The lake: hive-style Parquet, a partition a day, replaced whole or not at all.

    <root>/training_set/date=2017-11-06/part-00000-1f0c9a72d3b4.parquet   any tool reads these
    <root>/training_set/date=2017-11-06/_manifest.json                    names the files that count: the commit point
    <root>/_staging/training_set/date=2017-11-06/<attempt>/...            files of a job under way
    <root>/promotions/<key>.json                                          an append-only log

A job writes its files into the staging area. A commit claims the partition, moves the files beside the old ones, swaps
the manifest by compare-and-set, deletes the files it superseded, and gives up the claim. Killed anywhere, the manifest
names a whole partition, the old or the new one; a claim that is still there tells the next job to sweep what was left.
Files are named by their content, and nothing volatile (no time, no host) is stored: the same rows give the same lake.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_assets.lake.manifest import (
    MANIFEST,
    ConflictError,
    File,
    Manifest,
    MissingPartitionError,
    Staged,
    decode,
    encode,
    folder,
)
from mlops_assets.lake.part import Part
from mlops_assets.lake.storage import Storage, open_storage

BATCH_ROWS: Final = 65_536


class Lake:
    """Datasets of daily partitions, and append-only logs. Can be pickled, so that executors write to it too."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.storage: Storage = open_storage(root)

    def manifest(self, dataset: str, day: str) -> Manifest | None:
        """The partition of `day` (YYYY-MM-DD), None where there is none."""
        found = self.storage.get(f"{folder(dataset, day)}/{MANIFEST}")
        return decode(found[0]) if found else None

    def require(self, dataset: str, day: str) -> Manifest:
        """The partition of `day`. Raises MissingPartitionError."""
        manifest = self.manifest(dataset, day)
        if manifest is None:
            raise MissingPartitionError(f"{self.root}: no {dataset} of {day}; materialize {dataset} for that day first")
        return manifest

    def finished(self, dataset: str, day: str, inputs: Mapping[str, str], code_version: str) -> Manifest | None:
        """The partition, if it was made of just these inputs by this code: then there is nothing to do.

        Finishes the clean-up of a commit that was killed after its swap. Raises ConflictError if the partition is
        replaced meanwhile.
        """
        manifest = self.manifest(dataset, day)
        if manifest is None or dict(manifest.inputs) != dict(inputs) or manifest.code_version != code_version:
            return None
        self._staging(dataset, day, manifest).settle(manifest)
        return manifest

    def days(self, dataset: str) -> list[str]:
        """The days of the dataset's partitions, sorted."""
        keys = [key for key in self.storage.list(dataset) if key.endswith(f"/{MANIFEST}")]
        days = [key.split("/")[-2].removeprefix("date=") for key in keys]
        return [day for day in days if self.manifest(dataset, day)]

    def uris(self, manifest: Manifest) -> list[str]:
        """The addresses of a partition's data files, in order."""
        return [self.storage.uri(f"{folder(manifest.dataset, manifest.date)}/{file.name}") for file in manifest.files]

    def read(self, dataset: str, day: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The partition's rows in the order of its files, at most BATCH_ROWS at a time.

        Raises MissingPartitionError; ConflictError if the partition is replaced while it is read.
        """
        manifest = self.require(dataset, day)
        for number in range(len(manifest.files)):
            yield from self.read_part(manifest, number, columns)

    def read_part(
        self, manifest: Manifest, number: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one of the partition's files. Raises ConflictError if the partition is replaced meanwhile."""
        where, file = folder(manifest.dataset, manifest.date), manifest.files[number]
        try:
            with self.storage.open_input(f"{where}/{file.name}") as source:
                yield from pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=columns, use_threads=False)
        except FileNotFoundError as error:
            raise ConflictError(f"{where} was replaced while it was read: read it again") from error

    def open_other(self, manifest: Manifest, name: str) -> IO[bytes]:
        """Opens one of the partition's `others`, by its full name or its beginning. Raises FileNotFoundError."""
        for file in manifest.others:
            if file.name.startswith(name):
                return self.storage.open_input(f"{folder(manifest.dataset, manifest.date)}/{file.name}")
        raise FileNotFoundError(f"{manifest.dataset} of {manifest.date} has no file {name}")

    def stage(self, dataset: str, day: str) -> Staging:
        """Begins to replace a partition: a context manager, at whose end what was not committed is deleted."""
        return self._staging(dataset, day, self.manifest(dataset, day))

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

    def _staging(self, dataset: str, day: str, base: Manifest | None) -> Staging:
        return Staging(self, dataset, day, base.version if base else None, uuid.uuid4().hex)


@dataclass(frozen=True)
class Staging:
    """The replacement of one partition, begun by `Lake.stage`.

    `base` is the version to be replaced. Executors get a pickled copy to write parts with; the driver commits the parts
    that were reported to it, so a part of a lost, repeated or speculative task is never taken twice.
    """

    lake: Lake
    dataset: str
    day: str
    base: str | None
    attempt: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sweep(f"/{self.attempt}")

    @contextmanager
    def part(self, schema: pa.Schema, number: int) -> Iterator[Part]:
        """A data file to write batches to. `number` orders the partition's files."""
        with self.other(f"part-{number:05}", ".parquet") as part:
            # Options are fixed: the file's bytes are the partition's identity.
            options = {"compression": "zstd", "compression_level": 1, "version": "2.6"}
            with pq.ParquetWriter(part, schema, **options) as writer:
                part.parquet = writer
                yield part
                part.flush_rows(1)

    @contextmanager
    def other(self, name: str, suffix: str) -> Iterator[Part]:
        """A file of bytes to lie beside the data, such as a quarantine. Its name should begin with an underscore."""
        key = f"_staging/{folder(self.dataset, self.day)}/{self.attempt}/{name}-{uuid.uuid4().hex}{suffix}"
        with self.lake.storage.open_output(key) as sink:
            part = Part(sink)
            yield part
        digest = part.sha256.hexdigest()
        part.staged = Staged(key, File(f"{name}-{digest[:12]}{suffix}", part.rows, part.size, digest))

    def commit(
        self,
        parts: Iterable[Staged],
        *,
        inputs: Mapping[str, str],
        code_version: str,
        others: Iterable[Staged] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Replaces the partition by these files, whole or not at all, and returns its manifest.

        Committing what the partition already holds changes nothing. Raises ConflictError if another job replaced the
        partition since it was staged.
        """
        parts, others = (
            sorted(parts, key=lambda part: part.file.name),
            sorted(others, key=lambda other: other.file.name),
        )
        new = Manifest(
            dataset=self.dataset,
            date=self.day,
            version=hashlib.sha256("".join(part.file.sha256 for part in parts).encode()).hexdigest(),
            rows=sum(part.file.rows for part in parts),
            files=tuple(part.file for part in parts),
            inputs=dict(inputs),
            code_version=code_version,
            others=tuple(other.file for other in others),
            metadata=dict(metadata or {}),
        )
        self.settle(new, [*parts, *others])
        return new

    def settle(self, new: Manifest, staged: Sequence[Staged] = ()) -> None:
        """Makes the partition be `new`, whose files are staged or in place already, and nothing lie beside it."""
        storage, path = self.lake.storage, folder(self.dataset, self.day)
        manifest, final = f"{path}/{MANIFEST}", encode({"partition": asdict(new)})
        found = storage.get(manifest)
        if found is None or found[0] != final:
            current = decode(found[0]) if found else None
            if (current.version if current else None) not in (self.base, new.version):
                raise self._conflict()
            # The claim makes the commit of any job that was overtaken fail, whether it is dead or slow. So whatever
            # lies in the folder and is named by neither manifest was left by such a job, and may go.
            tag = self._swap(current, found[1] if found else None)
            kept = {manifest, *(f"{path}/{file.name}" for file in (*new.files, *new.others))}
            superseded = [key for key in storage.list(path) if key not in kept]
            for item in staged:
                try:
                    storage.move(item.key, f"{path}/{item.file.name}")
                except FileNotFoundError as error:  # swept by whoever committed meanwhile
                    raise self._conflict() from error
            tag = self._swap(new, tag)
            storage.delete(superseded)
            storage.put_if(manifest, final, tag)  # if somebody claimed it meanwhile, so much the better
        self._sweep()

    def _swap(self, partition: Manifest | None, tag: str | None) -> str:
        """Lets the manifest name this partition, under our claim. Raises ConflictError if it changed since `tag`."""
        data = encode({"partition": asdict(partition) if partition else None, "claim": self.attempt})
        new_tag = self.lake.storage.put_if(f"{folder(self.dataset, self.day)}/{MANIFEST}", data, tag)
        if new_tag is None:
            raise self._conflict()
        return new_tag

    def _conflict(self) -> ConflictError:
        return ConflictError(f"{self.dataset} of {self.day} was replaced by another job meanwhile: run this one again")

    def _sweep(self, attempt: str = "") -> None:
        prefix = f"_staging/{folder(self.dataset, self.day)}{attempt}"
        self.lake.storage.delete(self.lake.storage.list(prefix))
