"""What is handed from scoring to delivery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from confluent_kafka import TopicPartition

from mlops_assets.inference.snapshots import Snapshot

LARGE_BYTES: Final = 1_000


class Messages(Protocol):
    """What is to be produced to the output."""

    def __len__(self) -> int:
        """How many they are."""

    @property
    def large(self) -> bool:
        """Whether some are above LARGE_BYTES; then they are few, for librdkafka's queue holds 64 MiB."""

    def messages(self) -> Iterator[tuple[bytes | None, bytes | None, int]]:
        """Key, value and partition of each; the partition -1 is the one that the key says."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that is no click, where it came from, and why."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch of messages came to."""

    offsets: list[TopicPartition]
    """Where its partitions go on, and in the metadata from where their counts can be rebuilt."""
    written: list[tuple[float, int]]
    """When the oldest of some clicks was written, in epoch seconds, and how many they are."""
    answers: Sequence[Messages]
    dead: list[DeadLetter]
    snapshot: Snapshot | None = None
    """Of a partition's counts behind this batch, to be written once that is committed."""

    @property
    def answered(self) -> int:
        """How many clicks it answers."""
        return sum(map(len, self.answers))
