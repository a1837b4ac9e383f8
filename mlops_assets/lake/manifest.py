"""What a partition of the lake is: its files, its version, and what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

MANIFEST: Final = "_manifest.json"


class ConflictError(RuntimeError):
    """Another job replaced the partition, or wrote the record, in the meantime."""


class MissingPartitionError(LookupError):
    """The lake does not hold the partition that was asked for."""


@dataclass(frozen=True)
class File:
    """A file of a committed partition."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Staged:
    """A finished file in the staging area. Plain data: an executor reports it to the driver."""

    key: str
    file: File


@dataclass(frozen=True)
class Manifest:
    """What a committed partition holds and what it was made of.

    `version` is the SHA-256 of its data files' contents: equal rows, equal version. `inputs` are the versions of what
    it was computed from. `others` are files beside the data, such as the quarantine.
    """

    dataset: str
    date: str
    version: str
    rows: int
    files: tuple[File, ...]
    inputs: Mapping[str, str]
    code_version: str
    others: tuple[File, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of dataclasses.asdict."""
        files = {name: tuple(File(**file) for file in values[name]) for name in ("files", "others")}
        return cls(**{**values, **files})


def folder(dataset: str, day: str) -> str:
    """Where a partition lies."""
    return f"{dataset}/date={day}"


def encode(values: Mapping[str, Any]) -> bytes:
    """Canonical JSON: equal values, equal bytes."""
    return json.dumps(values, sort_keys=True, indent=1).encode()


def decode(manifest: bytes) -> Manifest | None:
    """The committed partition that a manifest's object names: none if it holds only a claim."""
    values = json.loads(manifest)["partition"]
    return Manifest.from_dict(values) if values else None
