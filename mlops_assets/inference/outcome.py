"""What is handed from scoring to delivery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from mlops_assets.inference.scoring import Answers
from mlops_assets.inference.snapshots import Snapshot


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
    answers: Sequence[Answers]
    dead: list[DeadLetter]
    snapshot: Snapshot | None = None
    """Of a partition's counts behind this batch, to be written once that is committed."""

    @property
    def answered(self) -> int:
        """How many clicks it answers."""
        return sum(map(len, self.answers))
