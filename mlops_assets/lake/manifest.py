"""What a day of a table is: its files, its version, and what it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


class ConflictError(RuntimeError):
    """Another job replaced the day, or wrote the record, in the meantime."""


class MissingPartitionError(LookupError):
    """The lake does not hold the day that was asked for."""


@dataclass(frozen=True)
class File:
    """A Parquet file with rows of one day. Plain data: an executor reports it to whoever commits.

    `sha256` is of its data without the footer, so of the rows alone. `notes` are its writer's, such as counts. Where it
    lies is no part of what it is.
    """

    key: str = field(compare=False)
    rows: int
    bytes: int
    sha256: str
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a day of a table holds and what it was made of, as its files say it.

    `version` names the rows: equal rows, equal version, wherever the lake lies. `inputs` are the versions of what the
    day was computed from. `metadata` are the notes of its files: numbers are summed over them.
    """

    dataset: str
    date: str
    version: str
    rows: int
    files: tuple[File, ...]
    inputs: Mapping[str, str]
    code_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: str, day: str, files: Sequence[File], inputs: Mapping[str, str], code_version: str) -> Self:
        """A day of these files, in the order of its parts."""
        return cls(
            dataset=dataset,
            date=day,
            version=hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest(),
            rows=sum(file.rows for file in files),
            files=tuple(files),
            inputs=dict(inputs),
            code_version=code_version,
            metadata=_together(file.notes for file in files),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict."""
        return cls(**{**values, "files": tuple(File(**file) for file in values["files"])})


def encode(values: Mapping[str, Any]) -> bytes:
    """Canonical JSON: equal values, equal bytes."""
    return json.dumps(values, sort_keys=True, indent=1).encode()


def _together(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The notes of all files: the sum of numbers, else what the only file that has the note says."""
    found: dict[str, Any] = {}
    for each in notes:
        for name, value in each.items():
            if isinstance(value, int | float) and isinstance(found.get(name, 0), int | float):
                found[name] = found.get(name, 0) + value
            elif name in found:
                raise ValueError(f"several files of a day note {name}, and it is no number: {value!r}")
            else:
                found[name] = value
    return found
