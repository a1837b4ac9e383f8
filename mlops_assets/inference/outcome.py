"""What is handed from scoring to delivery."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Protocol

from confluent_kafka import TopicPartition

from mlops_assets.inference.snapshots import Snapshot


class Messages(Protocol):
    """What is to be produced to the output."""

    def __len__(self) -> int:
        """How many they are."""

    @property
    def unacknowledged(self) -> int:
        """How many of them librdkafka's queue of 64 MiB may hold."""

    def without(self, outputs: Container[int]) -> Messages:
        """Those that go to other partitions."""

    def messages(self) -> Iterator[tuple[bytes | None, bytes | None, int]]:
        """Key, value and partition of each."""


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
    """Of each of these: when the oldest of its clicks was written, in epoch seconds, and how many they are."""
    answers: Sequence[Messages]
    dead: list[DeadLetter]
    snapshot: Snapshot | None = None
    """Of a partition's counts behind this batch, to be written once that is committed."""

    def without(self, outputs: Container[int], output: Callable[[int], int]) -> Outcome:
        """The same without those partitions of the input whose answers go to some `outputs`, as `output` says."""
        if not any(output(where.partition) in outputs for where in self.offsets):
            return self
        kept = [output(where.partition) not in outputs for where in self.offsets]
        return replace(
            self,
            offsets=list(compress(self.offsets, kept)),
            written=list(compress(self.written, kept)),
            answers=[each.without(outputs) for each in self.answers],
            dead=[dead for dead in self.dead if output(dead.partition) not in outputs],
            snapshot=None,
        )

    @property
    def answered(self) -> int:
        """How many clicks it answers."""
        return sum(map(len, self.answers))
