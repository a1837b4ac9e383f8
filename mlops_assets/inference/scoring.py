"""A click's way: bytes in, features, probability, bytes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.csv import BOM, TEST_COLUMNS, Parsed, parse
from mlops_assets.clicks.features import features
from mlops_assets.clicks.schema import Clicks
from mlops_assets.inference.model import Model
from mlops_assets.inference.partition import Counted, Partition

DECIMALS: Final = 9


@dataclass(frozen=True, slots=True)
class Answers:
    """Messages to produce, as columns of shape (n,): a quarter of the memory of n Python objects."""

    keys: NDArray[np.bytes_]
    values: NDArray[np.bytes_]
    partitions: NDArray[np.uint16]
    large: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.keys)

    def messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Key, value and partition of each."""
        return zip(self.keys.tolist(), self.values.tolist(), self.partitions.tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive messages of one partition, whose counts they continue, and the position of the first to answer.

    The messages before that one were answered before, and are only counted again. `output` is the partition that the
    answers go to, `offset` gives the offset of the message at a position.
    """

    values: Sequence[bytes | None]
    partition: Partition
    first: int = 0
    output: int = 0
    offset: Callable[[int], int] = int

    def count(self, clicks: Clicks, position: NDArray[np.int64]) -> Counted:
        """Counts its clicks, given the positions of their messages."""
        return self.partition.count(clicks, lambda at: self.offset(int(position[at])))


@dataclass(frozen=True, slots=True)
class Scored:
    """What the runs of a batch came to: their clicks, an answer to each new one, and what is no click."""

    clicks: Clicks
    """The new clicks of the batch, run after run."""
    new: list[int]
    """How many of them each run has."""
    late: int
    """How many of them came too late for their hour."""
    ahead: int
    """How many of them are hours ahead of their partition."""
    probability: NDArray[np.float32]
    """P(install) of each."""
    answers: list[Answers]
    """One message per click."""
    rejected: dict[tuple[int, int], str]
    """Run, position in it, and reason of the new messages that are no click."""


def score(runs: Sequence[Run], model: Model) -> Scored:
    """Counts every click, and answers the new ones. Only the counting goes run by run: small arrays are slow."""
    ends = np.cumsum([len(run.values) for run in runs])
    begins = ends - [len(run.values) for run in runs]
    parsed, reasons = read([value for run in runs for value in run.values])
    clicks, position = parsed.clicks, parsed.line - 1
    edges = [begins, begins + [run.first for run in runs], ends]
    spans = list(zip(*(np.searchsorted(position, edge).tolist() for edge in edges), strict=True))
    counted = [
        run.count(clicks.take(slice(begin, end)), position[begin:end] - first)
        for run, first, (begin, _, end) in zip(runs, begins.tolist(), spans, strict=True)
    ]
    new = np.concatenate([np.arange(first, end) for _, first, end in spans])
    answered = clicks.take(new)
    counts, late, ahead = (
        np.concatenate([getattr(part, name) for part in counted])[new] for name in ("counts", "late", "ahead")
    )
    sizes = [end - first for _, first, end in spans]
    output = np.repeat(np.array([run.output for run in runs], np.uint16), sizes)
    probability = model.probability(features(answered, counts)) if len(new) else np.empty(0, np.float32)
    where = {at: int(np.searchsorted(ends, at, side="right")) for at in reasons}
    rejected = {(run, at - int(begins[run])): reasons[at] for at, run in where.items()}
    rejected = {(run, at): reason for (run, at), reason in rejected.items() if at >= runs[run].first}
    answers = write(answered, probability, output, model)
    return Scored(answered, sizes, int(late.sum()), int(ahead.sum()), probability, answers, rejected)


def read(values: Sequence[bytes | None]) -> tuple[Parsed, dict[int, str]]:
    """Parses one click per message; the rest by position, with the reason."""
    own: dict[int, str] = {}
    try:
        data = b"\n".join((*values, b""))  # type: ignore[arg-type]
        plain = data.count(b"\n") == len(values) and b"{" not in data and BOM not in data
    except TypeError:  # a message without a value
        plain = False
    if not plain:
        lines = []
        for position, value in enumerate(values):
            try:
                lines.append(line(value))
            except ValueError as error:
                own[position] = str(error)
                lines.append(b"")  # the parser rejects it, and keeps the positions of the others
        data = b"\n".join((*lines, b""))
    parsed = parse(data, TEST_COLUMNS)
    return parsed, {r.line - 1: own.get(r.line - 1, r.reason) for r in parsed.rejected}


def line(value: bytes | None) -> bytes:
    """The CSV line of a message that may be JSON. Raises ValueError with the reason why it is not one click."""
    if value is None:
        raise ValueError("no value")
    value = value.removeprefix(BOM).strip(b"\r\n")
    if b"\n" in value:
        raise ValueError("more than one line")
    if not value.startswith(b"{"):
        return value
    try:
        click: dict[str, Any] = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    for name in TEST_COLUMNS:
        if type(click.get(name)) is not (str if name == "click_time" else int):
            raise ValueError(f"JSON without a usable {name}")
    text = ",".join(str(click[name]) for name in TEST_COLUMNS)
    if "\n" in text:
        raise ValueError("JSON without a usable click_time")
    return text.encode("ascii", "replace")  # what is not ASCII is no time either, so the parser rejects it


def misplaced(key: bytes | None, value: bytes | None) -> bool:
    """Whether a message is a click whose key is not its ip."""
    try:
        fields = line(value).split(b",", 2)
    except ValueError:
        return False
    return len(fields) == 3 and fields[1].isdigit() and (key or b"").lstrip(b"0") != fields[1].lstrip(b"0")


def write(clicks: Clicks, probability: NDArray[np.float32], output: NDArray[np.uint16], model: Model) -> list[Answers]:
    """One compact JSON object per click, keyed by click_id, to partition `output`; the probability has nine decimals.

    The texts of equally long click ids differ only in digits, so they are written as the rows of one array.
    """
    ids = clicks.click_id
    assert ids is not None  # noqa: S101 - TEST_COLUMNS has it
    billionths = np.clip(np.rint(probability.astype(np.float64) * 10**DECIMALS), 0, 10**DECIMALS - 1).astype(np.uint32)
    label = (probability >= model.threshold).astype(np.uint8)
    version = json.dumps(model.version).encode()
    length = np.searchsorted(10 ** np.arange(1, 19), ids, side="right") + 1
    answers = []
    for width in np.unique(length).tolist():
        rows = slice(None) if (length == width).all() else np.flatnonzero(length == width)
        key, number, yes = digits(ids[rows], width), digits(billionths[rows], DECIMALS), digits(label[rows], 1)
        text = (
            b'{"click_id":',
            key,
            b',"probability":0.',
            number,
            b',"label":',
            yes,
            b',"model_version":',
            version,
            b"}",
        )
        answers.append(Answers(strings(key), strings(*text), output[rows]))
    return answers


def digits(numbers: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """The decimal digits of n numbers below 10**width, shape (n, width), as ASCII."""
    text = np.empty((len(numbers), width), np.uint8)
    rest: NDArray[Any] = numbers.astype(np.uint32 if width < 10 else np.uint64)  # half the width, twice the speed
    for column in range(width - 1, -1, -1):
        quotient = rest // 10
        text[:, column] = rest - quotient * np.uint8(10) + ord("0")
        rest = quotient
    return text


def strings(*parts: bytes | NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Joins arrays of ASCII, shape (n, width), and constant bytes between them, to n byte strings."""
    n = max(len(part) for part in parts if not isinstance(part, bytes))
    columns = [np.broadcast_to(np.frombuffer(p, np.uint8), (n, len(p))) if isinstance(p, bytes) else p for p in parts]
    text = np.concatenate(columns, axis=1)
    return text.view(f"S{text.shape[1]}").ravel()
