"""Where the lake's bytes lie: the few operations it needs of a folder or an object store."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol


class Storage(Protocol):
    """Objects under keys such as `training_set/date=2017-11-06/part-00000.parquet`.

    A tag names one state of an object, as S3's ETag does. An implementation can be pickled: Spark's executors use it.
    """

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The object and its tag, None where there is none."""

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Replaces the object only if it still has this tag (None: only if there is none).

        Atomic, also against a kill. Returns the new tag, or None if somebody else was faster.
        """

    def list(self, prefix: str) -> list[str]:
        """The keys of the objects below the folder `prefix`, sorted."""

    def move(self, source: str, target: str) -> None:
        """Gives an object another key, replacing what is there."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; one that is already gone is no error."""

    def open_input(self, key: str) -> IO[bytes]:
        """Opens an object for reading at any position. Raises FileNotFoundError."""

    def open_output(self, key: str) -> IO[bytes]:
        """Opens a new object for writing; it need not be visible before it is closed."""

    def uri(self, key: str) -> str:
        """The object's address for other tools, Spark's among them."""


@dataclass(frozen=True)
class Folder(Storage):
    """A folder of this machine."""

    root: Path

    def get(self, key: str) -> tuple[bytes, str] | None:
        """See Storage."""
        try:
            data = (self.root / key).read_bytes()
        except FileNotFoundError:
            return None
        return data, _tag(data)

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """See Storage."""
        with self._locked():
            current = self.get(key)
            if (current[1] if current else None) != tag:
                return None
            path = self.root / key
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return _tag(data)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        # Unlike Path.rglob, os.walk passes over a folder that vanishes meanwhile.
        files = (Path(folder, name) for folder, _, names in os.walk(self.root / prefix) for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def move(self, source: str, target: str) -> None:
        """See Storage."""
        path = self.root / target
        with (self.root / source).open("rb") as file:
            os.fsync(file.fileno())  # on disk before a manifest names it
        with self._locked():
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.root / source).replace(path)
            self._remove_empty((self.root / source).parent)

    def delete(self, keys: Sequence[str]) -> None:
        """See Storage."""
        with self._locked():
            for key in keys:
                (self.root / key).unlink(missing_ok=True)
                self._remove_empty((self.root / key).parent)

    def open_input(self, key: str) -> IO[bytes]:
        """See Storage."""
        return (self.root / key).open("rb")

    def open_output(self, key: str) -> IO[bytes]:
        """See Storage."""
        path = self.root / key
        with self._locked():
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")

    def uri(self, key: str) -> str:
        """See Storage."""
        return str((self.root / key).resolve())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # For compare-and-set, and lest one removes a folder that looks empty while another makes a file in it. The
        # kernel drops the lock with the process, so a killed one leaves nothing behind.
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _remove_empty(self, folder: Path) -> None:
        # An object store has no empty folders; neither has this one.
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_storage(root: str) -> Storage:
    """The storage that `root` names: a folder's path, or `s3://bucket/prefix`. Raises ValueError."""
    if "://" in root:
        from mlops_assets.lake.s3 import S3  # boto3 takes a while, and a folder does without it

        return S3.of(root)
    return Folder(Path(root))
