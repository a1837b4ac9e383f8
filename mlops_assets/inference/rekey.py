"""The re-keying step: `python -m mlops_assets.inference.rekey` passes clicks on from INPUT_TOPIC to REKEY_TOPIC.

The counts rest on it that one partition sees all clicks of an ip, in order. Producers that send no key, or another one,
spread an ip over partitions. This step gives each message its click's ip as the key and puts the messages of
all partitions into the order in which they were written, by their timestamps and, within a millisecond, by click_id.
It is exactly once, as the service behind it is. What is no click passes through, and becomes the service's dead letter.

An order over all partitions takes one process that reads them all, so run one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, TopicPartition

from mlops_assets.inference import probes
from mlops_assets.inference.config import ConfigError, Settings
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.outcome import LARGE_BYTES, Outcome
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.scoring import line
from mlops_assets.inference.worker import ANY, MISCONFIGURED, Worker, run

MOST: Final = 10
"""So many times as long it waits for partitions that are known to be behind: then it goes first."""
HELD: Final = 5_000
"""With so many messages in memory a partition is not read on until others have come as far."""


class Line(NamedTuple):
    """A message that waits for its turn."""

    time: int
    """When it was written, in ms since the epoch, or when an earlier one of its partition was, if that is later."""
    click_id: int
    key: bytes | None
    value: bytes | None
    offset: int


@dataclass(frozen=True, slots=True)
class Lines:
    """Messages to pass on; their key says to which partition."""

    lines: Sequence[Line]
    large: bool

    def __len__(self) -> int:
        return len(self.lines)

    def messages(self) -> Iterator[tuple[bytes | None, bytes | None, int]]:
        """Key, value and partition of each."""
        return ((line.key, line.value, ANY) for line in self.lines)


class Source:
    """One partition of the input: what was read and not yet passed on."""

    def __init__(self, first: int) -> None:
        self.position = self.replay_from = first
        self.caught_up = True
        self.behind = True
        """Whether more of it is there to be read."""
        self.paused = False
        self.time = 0
        self._lines: deque[Line] = deque()
        self._read: deque[tuple[float, int]] = deque()  # when something was read, and up to which time of writing

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, messages: Sequence[Any], now: float) -> None:
        """Takes what was read of it at `now`, in seconds of a monotonic clock."""
        for message in messages:
            self.time = max(self.time, message.timestamp()[1])
            key, click_id = _key(message.key(), message.value())
            self._lines.append(Line(self.time, click_id, key, message.value(), message.offset()))
        self._read.append((now, self.time))
        self.position = messages[-1].offset() + 1

    def written_by(self, read: float) -> int:
        """Up to which time of writing it had been read at some time; 0 if nothing of that is left."""
        return max((time for when, time in self._read if when <= read), default=0)

    def take(self, until: int) -> list[Line]:
        """Removes and returns what was written up to `until`."""
        taken = []
        while self._lines and self._lines[0].time <= until:
            taken.append(self._lines.popleft())
        while self._read and self._read[0][1] <= until:
            self._read.popleft()
        if taken:
            self.replay_from = taken[-1].offset + 1
        return taken


class Rekeyer(Worker[Source]):
    """A worker that passes clicks on under their ips."""

    name = "re-keying"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics("", "", "rekey"))

    def ready(self) -> probes.Answer:
        """Whether clicks are passed on, and in order: all partitions are read here."""
        good, text = super().ready()
        own, every = len(self._partitions), self._connection.input_partitions
        if good and own < every:
            return False, f"{own} of {every} partitions are read here: run one re-keying step, or their order is lost"
        return good, text

    def _own(self, begun: Partition) -> Source:
        return Source(begun.first)

    def _output(self, number: int) -> int:
        return ANY

    def _holds(self) -> bool:
        return any(map(len, self._partitions.values()))

    def _steer(self, consumer: Consumer) -> None:
        for number, source in self._partitions.items():
            where = TopicPartition(self._settings.input_topic, number)
            _, high = consumer.get_watermark_offsets(where, cached=True)
            source.behind = high < 0 or source.position < high
            full = len(source) >= (HELD // 2 if source.paused else HELD)
            if full != source.paused:
                (consumer.pause if full else consumer.resume)([where])
                source.paused = full

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        super()._assigned(consumer, assigned)
        consumer.resume(assigned)  # librdkafka remembers that one was paused when it was given up

    def _score(self, runs: dict[int, list[Any]]) -> Outcome:
        now = time.monotonic()
        for number, messages in runs.items():
            self._must_go_on(number, messages[0].offset())
            self._partitions[number].put(messages, now)
        until = until_when(list(self._partitions.values()), now, self._settings.rekey_linger)
        lines = list[Line]()
        offsets, written = list[TopicPartition](), list[tuple[float, int]]()
        for number, source in self._partitions.items():
            taken = source.take(until)
            if taken:
                lines += taken
                offsets.append(self._offset(number, source.replay_from, source.replay_from))
                written.append((taken[0].time / 1_000, len(taken)))
        lines.sort(key=lambda each: each[:2])
        large = any(len(each.value or b"") > LARGE_BYTES for each in lines)
        size = 10 if large else 10_000
        parts = [Lines(lines[begin : begin + size], large) for begin in range(0, len(lines), size)]
        return Outcome(offsets, written, parts, [])


def until_when(sources: Sequence[Source], now: float, linger: float) -> int:
    """Up to which time of writing messages are in order: nothing that was written earlier is still to come."""
    aged = max((source.written_by(now - linger) for source in sources), default=0)
    forced = max((source.written_by(now - MOST * linger) for source in sources), default=0)
    behind = min((source.time for source in sources if source.behind), default=aged)
    return max(min(aged, behind), forced)


def _key(key: bytes | None, value: bytes | None) -> tuple[bytes | None, int]:
    """The ip of a click in decimal, and its click_id; the message's own key, and 0, if it is no click."""
    try:
        click_id, ip, _ = line(value).split(b",", 2)
    except ValueError:
        return key, 0
    return (b"%d" % int(ip), int(click_id)) if ip.isdigit() and click_id.isdigit() else (key, 0)


def main() -> int:
    """Passes clicks on until SIGTERM or SIGINT; the exit status says how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = Settings.from_environment(rekeying=True)
    except ConfigError as error:
        logging.error("configuration: %s", error)
        return MISCONFIGURED
    return run(Rekeyer(settings))


if __name__ == "__main__":
    sys.exit(main())
