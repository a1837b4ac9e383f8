"""Past clicks in one CSV file or many, in any order, to landing files: streaming, in bounded memory.

A line with the right number of fields and a valid click_time goes to its day as it is, whatever else is wrong with it:
ingesting the day will quarantine it. A line without a day is kept in the source's file of rejects. Nothing else
happens to a line, and none is dropped: lines read = lines landed + lines rejected. A day's lines are put in the order
of click_time; lines of one second stay in the order of the source.
"""

from __future__ import annotations

import csv as python_csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks import csv
from mlops_assets.clicks.csv import TRAIN_COLUMNS, Rejected
from mlops_assets.clicks.digits import times
from mlops_assets.clicks.schema import SECONDS_PER_DAY
from mlops_assets.lake.landing import FOLDER, STAGING, Landing, Staged

MAX_DAYS: Final = 366
SORTED_LINES: Final = 1_000_000  # at a time

_COPIED_LINES: Final = 65_536  # at a time
_TIME: Final = TRAIN_COLUMNS.index("click_time")


@dataclass
class Imported:
    """What became of the lines: how many landed on each day, how many of each source were rejected, what changed."""

    landed: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """How many lines were read, without headers."""
        return sum(self.landed.values()) + sum(self.rejected.values())


def sources_of(path: Path) -> list[Path]:
    """The file itself, or the CSV files of a folder by name. Raises FileNotFoundError where there is none."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith((".csv", ".csv.gz")))
        if not files:
            raise FileNotFoundError(f"{path}: no file in this folder ends in .csv or .csv.gz")
        return files
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return [path]


def import_files(
    sources: Sequence[Path], landing: Landing, *, replace: bool, advance: Callable[[int], None]
) -> Imported:
    """Lands the clicks of all sources; calls `advance` with the bytes read since the last call.

    Raises ValueError naming file and line for a source that can't be read, and LandedError for days that have landed
    with other clicks, unless `replace`; then nothing has changed.
    """
    result = Imported()
    with ExitStack() as stack:
        days: dict[str, _Day] = {}
        rejects: list[_Rejects] = []
        for source in sources:
            rejects.append(stack.enter_context(_Rejects(landing, source.name)))
            for lines, rejected in _lines(source, advance):
                rejects[-1].write(rejected)
                for day, part in lines.items():
                    if day not in days:
                        if len(days) == MAX_DAYS:
                            raise ValueError(f"{source}: clicks of more than {MAX_DAYS} days; is click_time right?")
                        days[day] = _Day(stack.enter_context(landing.stage(day, ".draft")))
                    days[day].write(*part)
        files = [
            day.file if day.ordered else stack.enter_context(_in_order(landing, day)) for _, day in sorted(days.items())
        ]
        result.changed = landing.publish(files, replace)
        result.landed = {name: int(day.per_second.sum()) for name, day in sorted(days.items())}
        for rejected_lines in rejects:
            rejected_lines.publish()
            result.rejected[rejected_lines.name] = rejected_lines.count
    return result


class _Day:
    """A day's lines as they come, how many there are of each second, and whether they came in order of time."""

    def __init__(self, file: Staged) -> None:
        self.file = file
        self.per_second = np.zeros(SECONDS_PER_DAY, dtype=np.uint32)
        self.ordered = True
        self._last = 0

    def write(self, lines: bytes, seconds: NDArray[np.int64]) -> None:
        self.file.write(lines)
        self.per_second += np.bincount(seconds, minlength=SECONDS_PER_DAY).astype(np.uint32)
        self.ordered = self.ordered and bool(seconds[0] >= self._last and (np.diff(seconds) >= 0).all())
        self._last = int(seconds[-1])


class _Rejects:
    """The lines of a source that belong to no day: line number, reason, text."""

    def __init__(self, landing: Landing, source: str) -> None:
        self.name = source
        self.count = 0
        self._storage = landing.storage
        self._key = f"{STAGING}/rejects/{source}.csv"
        self._target = f"{FOLDER}/rejects/{source}.csv"
        self._file: io.TextIOWrapper | None = None

    def write(self, rejected: Sequence[Rejected]) -> None:
        if rejected and self._file is None:
            self._file = io.TextIOWrapper(self._storage.open_output(self._key), encoding="utf-8", newline="")
            self._file.write("line,reason,raw\n")
        if self._file is not None:
            writer = python_csv.writer(self._file, lineterminator="\n")
            writer.writerows((line, reason, raw.decode("utf-8", "backslashreplace")) for line, raw, reason in rejected)
        self.count += len(rejected)

    def publish(self) -> None:
        if self._file is None:
            self._storage.delete([self._target])
        else:
            self._file.close()
            self._storage.move(self._key, self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._storage.delete([self._key])


def _lines(
    source: Path, advance: Callable[[int], None]
) -> Iterator[tuple[dict[str, tuple[bytes, NDArray[np.int64]]], list[Rejected]]]:
    """A source's lines, block by block: of each day their text and their seconds, and the lines of no day."""
    with source.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if source.suffix == ".gz" else file
        columns, blocks = csv.read(stream, str(source))
        order = [columns.index(name) for name in TRAIN_COLUMNS]
        done = 0
        for first_line, block in blocks:
            yield _by_day(_canonical(block, order), first_line)
            advance(file.tell() - done)
            done = file.tell()


def _canonical(block: bytes, order: list[int]) -> bytes:
    """The block with plain line ends and the columns in order; a line with another number of fields stays as it is."""
    block = block if block.endswith(b"\n") else block + b"\n"
    while b"\r\n" in block:
        block = block.replace(b"\r\n", b"\n")
    if order == sorted(order):
        return block
    rows = (line.split(b",") for line in block.split(b"\n"))
    return b"\n".join(b",".join([row[i] for i in order] if len(row) == len(order) else row) for row in rows)


def _by_day(block: bytes, first_line: int) -> tuple[dict[str, tuple[bytes, NDArray[np.int64]]], list[Rejected]]:
    fields = csv.split(block, len(TRAIN_COLUMNS))
    time, valid = times(fields.text, fields.begin[_TIME], fields.end[_TIME])
    rejected = fields.rejected + [
        Rejected(int(fields.line[i]), fields.raw(i), "click_time is not a time like 2017-11-06 14:32:21")
        for i in np.flatnonzero(~valid)
    ]
    rejected = sorted(bad._replace(line=bad.line + first_line - 1) for bad in rejected)
    kept = np.flatnonzero(valid)
    if not len(kept):
        return {}, rejected
    day, second = np.divmod(time[kept], SECONDS_PER_DAY)
    # Neighbouring lines of a day are copied together.
    first = np.concatenate(([0], np.flatnonzero((np.diff(day) != 0) | (np.diff(fields.line[kept]) != 1)) + 1))
    last = np.append(first[1:], len(kept)) - 1
    begin, end = fields.begin[0, kept[first]], fields.end[-1, kept[last]] + 1
    text = fields.text.tobytes()
    result = {}
    for number in np.unique(day):
        runs = np.flatnonzero(day[first] == number)
        part = b"".join(text[a:b] for a, b in zip(begin[runs].tolist(), end[runs].tolist(), strict=True))
        result[str(np.datetime64(int(number), "D"))] = part, second[day == number]
    return result, rejected


def _in_order(landing: Landing, day: _Day) -> Staged:
    """The day's file with its lines in the order of time: a pass over it for every SORTED_LINES lines."""
    day.file.close()
    pass_of = (np.cumsum(day.per_second, dtype=np.int64) - 1) // SORTED_LINES
    result = landing.stage(day.file.day)
    for number in np.unique(pass_of[day.per_second > 0]):
        lines: list[bytes] = []
        seconds: list[NDArray[np.int64]] = []
        with day.file.open() as stream:
            for _, block in csv.read(stream, day.file.key)[1]:
                fields = csv.split(block, len(TRAIN_COLUMNS))
                second = times(fields.text, fields.begin[_TIME], fields.end[_TIME])[0] % SECONDS_PER_DAY
                chosen = np.flatnonzero(pass_of[second] == number)
                block_lines = block.split(b"\n")
                lines += [block_lines[i] for i in chosen.tolist()]
                seconds.append(second[chosen])
        order = np.argsort(np.concatenate(seconds), kind="stable")
        for start in range(0, len(order), _COPIED_LINES):
            result.write(b"".join([lines[i] + b"\n" for i in order[start : start + _COPIED_LINES].tolist()]))
    return result
