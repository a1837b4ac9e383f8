"""A member of a consumer group that answers what it reads exactly once, and waits for Kafka as long as it takes.

What its answers are is another module's: the service scores clicks, the re-keying step passes them on.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from typing import Any, Final, Generic, Protocol, TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaException, Message, TopicPartition

from mlops_assets.inference import probes
from mlops_assets.inference.beginning import BeginningError, begin, resume
from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import (
    STALL_SECONDS,
    Connection,
    ServiceError,
    passing,
)
from mlops_assets.inference.delivery import Delivery, DeliveryError
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.outcome import Outcome
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.snapshots import Snapshots

log = logging.getLogger(__name__)

STOPPED: Final = 0
FAILED: Final = 1  # a restart may help
MISCONFIGURED: Final = 2  # a restart cannot help
POLL_SECONDS: Final = 0.05
"""What clicks wait for others, so that a batch and its transaction share their fixed cost.

It bounds the transactions a second where few clicks come. With 0.02 they took a pod of 500 clicks a second above the
autoscaler's target, 25 % of 250m, and more pods would have made as many transactions each.
"""
EVERY: Final = -1
"""Instead of a partition of the output: what is answered goes to any of them."""
DRAIN_SECONDS: Final = 15  # until answers under way must be committed, when partitions or the whole worker go
IDLE_SECONDS: Final = 10  # so long without partitions means that there are more workers than partitions
ROOM_SECONDS: Final = 5  # answers that can't be committed for so long stop the reading
LOOK_SECONDS: Final = 5
REFUSAL_SECONDS: Final = (15, 300)  # until an output partition is tried again: at first, and at most


class Held(Protocol):
    """A partition, as its owner knows it."""

    position: int
    """The offset to read next."""

    def __len__(self) -> int:
        """How many keys, or messages, it keeps in memory."""

    @property
    def caught_up(self) -> bool:
        """Whether everything that was answered before has been counted again."""

    @property
    def replay_from(self) -> int:
        """The offset from which it can be rebuilt."""


Part = TypeVar("Part", bound=Held)


class Worker(ABC, Generic[Part]):
    """One worker. `run` returns after `stop`, and raises ServiceError or DeliveryError when a restart is due."""

    name = ""
    """What it is, for people."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self.metrics = settings, metrics
        self._partitions: dict[int, Part] = {}
        # Assigned, and not read: Kafka doesn't tell where they begin, or takes no answers to them. Until when at least.
        self._waiting: dict[int, float] = {}
        self._refusals: dict[int, tuple[float, float]] = {}  # of each output partition: the last one, and its pause
        self._unsettled: dict[int, str] = {}  # of these: whose offsets are lost, and how
        self._topic_id = ""
        self._reading = True
        self._stopping = threading.Event()
        self._connection = Connection(settings)
        self._snapshots = Snapshots(settings, self.metrics)
        self._beat = time.monotonic()
        self._joined: float | None = None
        self._looked = 0.0
        self._forgot = 0.0
        self._delivery: Delivery

    def stop(self) -> None:
        """Lets `run` finish what it has read, commit, leave the group, and return."""
        self._stopping.set()

    def live(self) -> probes.Answer:
        """Whether the loop still turns."""
        silent = time.monotonic() - self._beat
        return silent < STALL_SECONDS, f"the loop turned {silent:.1f} s ago"

    def ready(self) -> probes.Answer:
        """Whether clicks are answered: partitions assigned, their counts rebuilt, and answers being committed."""
        partitions = dict(self._partitions)
        replaying = sorted(number for number, partition in partitions.items() if not partition.caught_up)
        if self._joined is None or self._stopping.is_set():
            return False, f"not a member of the group {self._connection.says}"
        if self._delivery.trouble:
            return False, f"answers cannot be committed: {self._delivery.trouble}"
        if not partitions and self._waiting:
            why = next(iter(self._unsettled.values()), self._connection.says)
            return False, f"partitions {sorted(self._waiting)} wait: {why}"
        if not partitions and time.monotonic() - self._joined < IDLE_SECONDS:
            return False, "no partitions assigned yet"
        if replaying:
            return False, f"rebuilding the counts of partitions {replaying}"
        return True, f"{self.name}, partitions {sorted(partitions)}"

    def run(self) -> None:
        """Works until `stop`."""
        settings = self._settings
        try:
            server = probes.serve(
                settings.metrics_host, settings.metrics_port, self.live, self.ready, self._metrics_text
            )
        except OSError as error:
            raise ServiceError(f"METRICS_PORT={settings.metrics_port} cannot be used: {error.strerror}") from error
        log.info("probes and metrics on port %s", server.server_address[1])
        try:
            producer = self._connection.producer(self._stopping, self._turned)
            consumer = self._connection.consumer()
            renew = partial(self._connection.producer, self._stopping, lambda: None)
            self._delivery = Delivery(producer, renew, self._output, settings, self.metrics, self._snapshots.write)
            try:
                self._work(consumer)
            except KafkaException as exception:
                raise ServiceError(f"Kafka: {exception.args[0].str()}") from exception
            finally:
                self._joined = None
                self._partitions.clear()
                consumer.close()
        finally:
            server.shutdown()

    def _work(self, consumer: Consumer) -> None:
        consumer.subscribe(
            [self._settings.input_topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000)  # messages come by the thousand and never form cycles
        while not self._stopping.is_set():
            self._read(consumer, self._delivery.room(ROOM_SECONDS if self._reading else 0))
            messages = consumer.consume(self._settings.batch_clicks, POLL_SECONDS)
            self._turned()
            self._set_aside_refused(consumer)
            self._delivery.group = consumer.consumer_group_metadata()
            if self._connection.refused:
                raise ServiceError(f"Kafka refuses this worker: {self._connection.says}")
            self._steer(consumer)
            if messages or self._holds():
                with self._delivery.turn, self.metrics.batch.time():
                    outcome = self._answer(messages)
                if outcome.offsets:
                    self._delivery.put(outcome, more=len(messages) == self._settings.batch_clicks)
            if self._beat - self._looked > LOOK_SECONDS:
                self._look(consumer)
        if not self._delivery.drain(DRAIN_SECONDS):
            trouble = self._delivery.trouble
            raise DeliveryError(f"the answers under way were not committed within {DRAIN_SECONDS} s: {trouble}")
        log.info("stopped: all that was read is answered")

    def _answer(self, messages: list[Message]) -> Outcome:
        errors = [error for error in map(Message.error, messages) if error is not None]
        if errors:
            for error in errors:
                if not passing(error):
                    raise KafkaException(error)
            messages = [message for message in messages if message.error() is None]
        runs: dict[int, list[Any]] = {}
        for number, run in groupby(messages, Message.partition):
            # Of a partition that was revoked while these waited, the next owner reads them again.
            if number in self._partitions:
                runs.setdefault(number, []).extend(run)
        return self._score(runs)

    @abstractmethod
    def _score(self, runs: dict[int, list[Any]]) -> Outcome:
        """What the messages of some partitions come to, and what was held before."""

    @abstractmethod
    def _own(self, begun: Partition) -> Part:
        """A partition that begins."""

    def _holds(self) -> bool:
        """Whether something is held that may go on without more messages."""
        return False

    def _steer(self, consumer: Consumer) -> None:
        """Called with every turn."""

    def _output(self, number: int) -> int:
        """The partition that takes a partition's answers: an ip's stay together, and record batches are large."""
        return number % self._connection.output_partitions

    def _offset(self, number: int, partition: Part) -> TopicPartition:
        metadata = resume(partition.replay_from, self._topic_id)
        return TopicPartition(self._settings.input_topic, number, partition.position, metadata=metadata)

    def _turned(self) -> None:
        self._beat = time.monotonic()

    def _read(self, consumer: Consumer, reading: bool) -> None:
        """Goes on reading, or stops and yet stays a member of the group."""
        if reading != self._reading:
            (consumer.resume if reading else consumer.pause)(self._where(self._partitions))
            self._reading = reading

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Begins nothing yet: confluent-kafka's process aborts if its consumer is asked something in here, and an error
        is then to be told within the same call of `consume`."""
        self.metrics.rebalances.labels("assigned").inc()
        if assigned:
            numbers = [where.partition for where in assigned]
            consumer.incremental_assign(self._where(numbers))
            consumer.pause(self._where(numbers))
            self._waiting |= dict.fromkeys(numbers, 0.0)
        self._joined, self._connection.at_work = time.monotonic(), True
        self._looked = self._forgot = 0.0  # look at once; offsets of an earlier membership are refused from now on
        log.info("assigned %s", sorted(p.partition for p in assigned))

    def _begin(self, consumer: Consumer, numbers: Iterable[int]) -> list[TopicPartition]:
        """Begins partitions as far as Kafka lets it; the others wait. Where the begun ones are to be read from."""
        begun: list[TopicPartition] = []
        number = -1
        try:
            self._topic_id = self._connection.topic_id()
            led, led_outputs = self._connection.led(consumer)
            with self._snapshots.reading() as newest:
                for number in numbers:
                    output = self._output(number)
                    if number not in led or output not in (*led_outputs, EVERY):
                        log.warning(
                            "partition %s waits: it, or the output's partition %s, has no leader", number, output
                        )
                        continue
                    try:
                        partition = begin(
                            consumer, number, self._topic_id, self._settings, max(0, output), self.metrics, newest
                        )
                    except BeginningError as lost:
                        self._unsettled[number], self._waiting[number] = str(lost), float("inf")
                        log.error("%s", lost)
                        continue
                    self._partitions[number] = own = self._own(partition)
                    begun.append(TopicPartition(self._settings.input_topic, number, own.position))
                    del self._waiting[number]
        except KafkaException as exception:
            error = exception.args[0]
            if not passing(error):
                raise
            log.warning("partition %s waits: Kafka does not tell where it begins: %s", number, error.str())
            if number in self._waiting:
                self._waiting[number] = self._waiting.pop(number)  # the next time others are asked for first
        return begun

    def _begin_waiting(self, consumer: Consumer) -> None:
        if self._forgot and not self._delivery.settled:
            return
        due = [number for number, until in self._waiting.items() if until < self._beat]
        begun = self._begin(consumer, due) if due else []
        if begun:
            consumer.incremental_unassign(begun)
            consumer.incremental_assign(begun)
            (consumer.resume if self._reading else consumer.pause)(begun)
            log.info("reads %s, now %s", sorted(p.partition for p in begun), sorted(self._partitions))

    def _set_aside_refused(self, consumer: Consumer) -> None:
        """Partitions whose answers Kafka does not take are begun again, at their committed offsets, after a while."""
        refused = self._delivery.refused
        if not refused:
            return
        for output in refused:
            last, pause = self._refusals.get(output, (0.0, 0.0))
            first, most = REFUSAL_SECONDS
            pause = min(2 * pause, most) if pause and self._beat - last < 2 * most else first
            self._refusals[output] = self._beat, pause
            self._set_aside(consumer, [n for n in self._partitions if self._output(n) == output], self._beat + pause)
        self._delivery.forget(refused)

    def _set_aside(self, consumer: Consumer, numbers: list[int], until: float = 0) -> None:
        self._forgot = self._beat
        for number in numbers:
            del self._partitions[number]
            self._waiting[number] = until
        consumer.pause(self._where(numbers))

    def _where(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._settings.input_topic, number, OFFSET_END) for number in numbers]

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("revoked").inc()
        if self._joined is not None:  # else the worker is leaving, and has committed what it could
            self._delivery.group = consumer.consumer_group_metadata()
            if not self._delivery.drain(DRAIN_SECONDS):
                self._delivery.forget(map(self._output, self._partitions))
                self._set_aside(consumer, list(self._partitions))
        self._drop(revoked)

    def _lost(self, _: Consumer, lost: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("lost").inc()
        self._joined = None  # until it is a member again
        self._delivery.forget(map(self._output, self._partitions))
        self._drop(lost)

    def _drop(self, partitions: list[TopicPartition]) -> None:
        for where in partitions:
            self._partitions.pop(where.partition, None)
            self._waiting.pop(where.partition, None)
            self._unsettled.pop(where.partition, None)
        log.info("gave up %s, now %s", sorted(p.partition for p in partitions), sorted(self._partitions))

    def _look(self, consumer: Consumer) -> None:
        self._looked = self._beat
        self._begin_waiting(consumer)
        backlog = 0
        for number, partition in self._partitions.items():
            where = TopicPartition(self._settings.input_topic, number)
            _, high = consumer.get_watermark_offsets(where, cached=True)
            backlog += max(0, high - partition.position)
        self.metrics.backlog.set(backlog)

    def _metrics_text(self) -> bytes:
        partitions = list(self._partitions.values())
        self.metrics.partitions.set(len(partitions))
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.unsettled.set(len(self._unsettled))
        self.metrics.replaying.set(sum(not partition.caught_up for partition in partitions))
        self.metrics.keys.set(sum(map(len, partitions)))
        self.metrics.ready.set(self.ready()[0])
        return self.metrics.text()


def run(worker: Worker[Any]) -> int:
    """Runs a worker until SIGTERM or SIGINT; the exit status says how it ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.run()
    except (ServiceError, DeliveryError) as error:
        log.error("%s", error)
        return FAILED
    return STOPPED
