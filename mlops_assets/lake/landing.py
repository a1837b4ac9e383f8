"""The landing area: a day's clicks as they arrived, one gzip-compressed CSV file a day.

    <root>/landing/2017-11-06.csv.gz              header and columns as in TRAIN_COLUMNS
    <root>/landing/rejects/<source>.csv           the lines of an imported file that belong to no day
    <root>/_staging/landing/...                   files being written

Anybody may deliver such a file; `mlops-assets import` and `generate` do it too.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from datetime import date
from types import TracebackType
from typing import IO, Final, Self

from mlops_assets.clicks.csv import BLOCK, TRAIN_COLUMNS
from mlops_assets.lake.storage import Storage, open_storage

FOLDER: Final = "landing"
STAGING: Final = f"_staging/{FOLDER}"
HEADER: Final = ",".join(TRAIN_COLUMNS).encode() + b"\n"

_KEY: Final = re.compile(rf"{FOLDER}/(\d{{4}}-\d\d-\d\d)\.csv\.gz")
_TRAILER: Final = 8  # a gzip file ends with the CRC-32 and the length of its content (RFC 1952, section 2.3.1)


class LandedError(ValueError):
    """Days have landed already, with other content."""


class Landing:
    """The landing files below a lake's root."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.storage: Storage = open_storage(root)

    def days(self) -> dict[str, str]:
        """The days (YYYY-MM-DD) that have landed, in order, each with the version of its content.

        The version is the file's size and the checksum that gzip keeps, so a file that is copied or written again
        unchanged keeps it, and no file is read for it.
        """
        keys = [(match[1], key) for key in self.storage.list(FOLDER) if (match := _KEY.fullmatch(key))]
        return {day: _version(self.storage, key) for day, key in keys}

    def version(self, day: str) -> str | None:
        """The version of one day's content, None if it has not landed."""
        try:
            return _version(self.storage, _key(day))
        except FileNotFoundError:
            return None

    def uri(self, day: str) -> str:
        """The address of a day's file, for messages."""
        return self.storage.uri(_key(day))

    def open(self, day: str) -> LandingReader:
        """A day's CSV, decompressed while it is read. Raises FileNotFoundError."""
        return LandingReader(self.storage.open_input(_key(day)))

    def lines(self, day: str) -> int:
        """How many lines follow the header, counted without the parser; the last one may lack its end.

        Raises FileNotFoundError, and EOFError or gzip.BadGzipFile for a damaged file.
        """
        ends, last = 0, b"\n"
        with self.open(day) as file:
            while block := file.read(BLOCK):
                ends, last = ends + block.count(b"\n"), block[-1:]
        return max(0, ends + (last != b"\n") - 1)

    def stage(self, day: str, draft: str = "") -> Staged:
        """Begins a day's file. A context manager, at whose end what was not published is deleted.

        Two files of a day may be written at a time if one is named as a draft.
        """
        date.fromisoformat(day)
        return Staged(self.storage, day, f"{STAGING}/{day}{draft}.csv.gz")

    def publish(self, files: Sequence[Staged], replace: bool) -> list[str]:
        """Lands the files of some days, and returns the days that are new or changed; the same content changes nothing.

        Raises LandedError, before any file has landed, if a day is there with other content and `replace` is false.
        """
        landed = self.days()
        versions = {file.day: file.close() for file in files}
        other = [day for day, version in versions.items() if landed.get(day, version) != version]
        if other and not replace:
            raise LandedError(
                f"{', '.join(sorted(other))}: already landed in {self.storage.uri(FOLDER)} with other clicks; "
                "nothing was changed. Give --replace to replace those days"
            )
        changed = sorted(day for day, version in versions.items() if landed.get(day) != version)
        for file in files:
            if file.day in changed:
                self.storage.move(file.key, _key(file.day))
        return changed


class LandingReader(gzip.GzipFile):
    """A landing file's decompressed content; closes the file with itself."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__(fileobj=source, mode="rb")
        self._source = source

    def close(self) -> None:
        """Closes both."""
        super().close()
        self._source.close()


class Staged:
    """A day's file while it is written: deterministic, so the same lines give the same bytes."""

    def __init__(self, storage: Storage, day: str, key: str) -> None:
        self.day = day
        self.key = key
        self._storage = storage
        self._sink = storage.open_output(key)
        # Level 1: a sixth larger than level 6, and written six times as fast.
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self._sink, mtime=0)
        self.write(HEADER)

    def write(self, lines: bytes) -> None:
        """Adds whole lines, columns as in TRAIN_COLUMNS."""
        self._gzip.write(lines)

    def close(self) -> str:
        """Ends the file and returns the version of its content."""
        self._gzip.close()
        self._sink.close()
        return _version(self._storage, self.key)

    def open(self) -> LandingReader:
        """What was written, once it is closed."""
        return LandingReader(self._storage.open_input(self.key))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gzip.close()
        self._sink.close()
        self._storage.delete([self.key])


def _key(day: str) -> str:
    return f"{FOLDER}/{day}.csv.gz"


def _version(storage: Storage, key: str) -> str:
    with storage.open_input(key) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TRAILER))
        return f"{size}-{file.read(_TRAILER).hex()}"
