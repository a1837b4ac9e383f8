"""Clicks as TalkingData's CSV lines: a strict, vectorised parser, its reverse, and reading a file block by block."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.digits import PADDING, number, text_of_numbers, text_of_times, times
from mlops_assets.clicks.schema import ID_MAX, IDS, Clicks

TRAIN_COLUMNS: Final = (*IDS, "click_time", "attributed_time", "is_attributed")
"""The header of a file of past clicks."""
TEST_COLUMNS: Final = ("click_id", *IDS, "click_time")
"""The columns of a click that waits for its prediction."""

BOM: Final = b"\xef\xbb\xbf"
BLOCK: Final = 1 << 22
_LONGEST_LINE: Final = 1 << 20


class Rejected(NamedTuple):
    """A line that is no click: its 1-based number, its bytes without the line end, and what is wrong with it."""

    line: int
    raw: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """The n clicks of a text, the 1-based line each came from, shape (n,), and the lines that are none."""

    clicks: Clicks
    line: NDArray[np.int64]
    rejected: list[Rejected]


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the fields of n well-formed lines begin and end in `text`; both of shape (columns, n)."""

    text: NDArray[np.uint8]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    line: NDArray[np.int64]
    rejected: list[Rejected]

    def raw(self, index: np.intp) -> bytes:
        """The bytes of a line, without its end."""
        return self.text[self.begin[0, index] : self.end[-1, index]].tobytes()


def parse(data: bytes, columns: Sequence[str]) -> Parsed:
    """Parses lines (LF or CRLF; the last may lack its end; a byte order mark may lead; no quotes, no header).

    Every line becomes a click or a Rejected. Ids are decimal numbers up to ID_MAX, times `YYYY-MM-DD hh:mm:ss` in UTC;
    only `attributed_time` may be empty. `columns` names the fields in their order.
    """
    fields = split(data, len(columns))
    fault = np.zeros(len(fields.line), dtype=np.uint8)
    reasons = [""]
    values: dict[str, Any] = {}

    def check(valid: NDArray[np.bool_], reason: str) -> None:
        if not valid.all():
            fault[~valid & (fault == 0)] = len(reasons)
        reasons.append(reason)

    for name, begin, end in zip(columns, fields.begin, fields.end, strict=True):
        if name == "click_id":
            value, valid = number(fields.text, begin, end, digits=18)
            values[name] = value.view(np.int64)
            check(valid, "click_id is not a whole number of at most 18 digits")
        elif name in IDS:
            value, valid = number(fields.text, begin, end, digits=10)
            values[name] = value.astype(np.uint32 if name == "ip" else np.uint16)
            check(valid & (value <= ID_MAX[name]), f"{name} is not a whole number from 0 to {ID_MAX[name]}")
        elif name == "click_time":
            values["time"], valid = times(fields.text, begin, end)
            check(valid, "click_time is not a time like 2017-11-06 14:32:21")
        elif name == "attributed_time":
            seconds, valid = times(fields.text, begin, end)
            empty = begin == end
            values[name] = np.where(empty, -1, seconds)
            check(valid | empty, "attributed_time is neither empty nor a time like 2017-11-06 14:32:21")
        else:
            digit = fields.text[begin] - 48  # of an empty field this is the separator, which is no digit either
            values["label"] = digit
            check((end - begin == 1) & (digit <= 1), "is_attributed is neither 0 nor 1")

    clicks = Clicks(**values)
    if not fault.any():
        return Parsed(clicks, fields.line, fields.rejected)
    rejected = [Rejected(int(fields.line[i]), fields.raw(i), reasons[fault[i]]) for i in np.flatnonzero(fault)]
    good = fault == 0
    return Parsed(clicks.take(good), fields.line[good], sorted(fields.rejected + rejected))


def split(data: bytes, columns: int) -> Fields:
    """Finds the fields of every line that has exactly `columns` of them; the other lines are rejected."""
    data = data.removeprefix(BOM)
    ended = not data or data.endswith(b"\n")
    text = np.frombuffer(b"".join((bytes(PADDING), data, b"" if ended else b"\n", bytes(PADDING))), dtype=np.uint8)
    separator = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
    last = np.flatnonzero(text[separator] == ord("\n"))
    newline, found = separator[last], np.diff(last, prepend=-1)
    first = np.concatenate(([PADDING], newline[:-1] + 1))[: len(newline)]
    line = np.arange(1, len(newline) + 1)
    rejected = []
    if (found != columns).any():
        good = found == columns
        for i in np.flatnonzero(~good):
            raw = text[first[i] : newline[i]].tobytes().removesuffix(b"\r")
            rejected.append(
                Rejected(int(line[i]), raw, f"{found[i]} fields instead of {columns}" if raw else "empty line")
            )
        separator, first, line = separator[np.repeat(good, found)], first[good], line[good]
    end = separator.reshape(len(line), columns).T.copy()
    begin = np.vstack((first, end[:-1] + 1))
    end[-1] -= text[end[-1] - 1] == ord("\r")
    return Fields(text, begin, end, line, rejected)


def read_header(line: bytes, expected: Sequence[str] = TRAIN_COLUMNS) -> tuple[str, ...]:
    """The columns that a header names, in its order. Raises ValueError unless they are exactly the expected ones."""
    names = tuple(line.removeprefix(BOM).rstrip(b"\r\n").decode("utf-8", "replace").split(","))
    remedy = f"the first line must name the columns {','.join(expected)}, in any order"
    if not set(names) & set(expected):
        raise ValueError(f"no header but {line[:80]!r}: {remedy}")
    for problem, columns in (
        ("lacks the column", [name for name in expected if name not in names]),
        ("has the unknown column", [name for name in names if name not in expected]),
        ("repeats the column", sorted({name for name in names if names.count(name) > 1})),
    ):
        if columns:
            raise ValueError(f"the header {problem} {', '.join(map(repr, columns))}: {remedy}")
    return names


def read(
    stream: BufferedIOBase, name: str, expected: Sequence[str] = TRAIN_COLUMNS
) -> tuple[tuple[str, ...], Iterator[tuple[int, bytes]]]:
    """Reads a CSV file with header: its columns, and its blocks of whole lines with the number of their first line.

    Raises ValueError naming the file and the line for a missing or wrong header, a broken or truncated gzip stream, and
    a line of more than 1 MiB; the last two also while iterating.
    """
    blocks = _blocks(stream, name)
    _, first = next(blocks, (1, b""))
    header, _, rest = first.partition(b"\n")
    if not header.removeprefix(BOM).strip():
        raise ValueError(f"{name}, line 1: no header, the file is empty or begins with an empty line")
    try:
        columns = read_header(header, expected)
    except ValueError as error:
        raise ValueError(f"{name}, line 1: {error}") from error

    def body() -> Iterator[tuple[int, bytes]]:
        if rest:
            yield 2, rest
        yield from blocks

    return columns, body()


def _blocks(stream: BufferedIOBase, name: str) -> Iterator[tuple[int, bytes]]:
    """Blocks of about BLOCK bytes cut at line ends, each with the 1-based number of its first line."""
    line, parts, size = 1, [b""], 0
    while True:
        try:
            chunk = stream.read1(BLOCK)  # of a broken gzip stream, read() would lose the last good lines
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            complete = line - 1 + sum(part.count(b"\n") for part in parts)
            raise ValueError(
                f"{name}: the gzip stream is truncated or damaged after line {complete} ({error}): "
                "fetch or write the file again"
            ) from error
        parts.append(chunk)
        size += len(chunk)
        if chunk and size < BLOCK:
            continue
        data = b"".join(parts)
        cut = data.rfind(b"\n") + 1 if chunk else len(data)
        if cut:
            yield line, data[:cut]
            line += data.count(b"\n", 0, cut)
        if not chunk:
            return
        parts, size = [data[cut:]], len(data) - cut
        if size > _LONGEST_LINE:
            raise ValueError(f"{name}, line {line}: longer than {_LONGEST_LINE} bytes, so this is no CSV of clicks")


def write(clicks: Clicks) -> bytes:
    """The lines of past clicks, columns as in TRAIN_COLUMNS, without a header.

    Raises ValueError for clicks without `label` or `attributed_time`.
    """
    if clicks.label is None or clicks.attributed_time is None:
        raise ValueError("only clicks with label and attributed_time can be written as past clicks")
    cells: list[NDArray[np.bytes_] | bytes] = []
    for name in IDS:
        cells += [*text_of_numbers(getattr(clicks, name)), b","]
    for seconds in (clicks.time, clicks.attributed_time):
        cells += [*text_of_times(seconds), b","]
    cells += [*text_of_numbers(clicks.label), b"\n"]
    rows = np.empty(len(clicks), dtype=[(f"{i}", np.asarray(cell).dtype) for i, cell in enumerate(cells)])
    for i, cell in enumerate(cells):
        rows[f"{i}"] = cell
    text = rows.view(np.uint8)
    return bytes(text[text != 0])  # cells are padded with NUL
