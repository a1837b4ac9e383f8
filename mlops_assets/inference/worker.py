"""A member of a consumer group that answers what it reads exactly once.

What its answers are is another module's: the service scores clicks, the re-keying step passes them on.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from itertools import groupby
from typing import Any, Final, Generic, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from mlops_assets.inference import probes
from mlops_assets.inference.beginning import begin
from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import (
    ASSIGN_SECONDS,
    CALL_SECONDS,
    STALL_SECONDS,
    Connection,
    ServiceError,
    passing,
    patiently,
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
DRAIN_SECONDS: Final = 15  # until answers under way must be committed, when partitions or the whole worker go
IDLE_SECONDS: Final = 10  # so long without partitions means that there are more workers than partitions
LOOK_SECONDS: Final = 5
ANY: Final = -1
"""Instead of a partition of the output: what is answered goes where its key says."""


class Held(Protocol):
    """A partition, as its owner knows it."""

    position: int
    """The offset to read next."""

    def __len__(self) -> int:
        """How many keys, or messages, it keeps in memory."""

    @property
    def caught_up(self) -> bool:
        """Whether everything that was answered before has been counted again."""


Part = TypeVar("Part", bound=Held)


class Worker(ABC, Generic[Part]):
    """One worker. `run` returns after `stop`, and raises ServiceError or DeliveryError when a restart is due."""

    name = ""
    """What it is, for people."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self.metrics = settings, metrics
        self._partitions: dict[int, Part] = {}
        self._stopping = threading.Event()
        self._connection = Connection(settings)
        self._snapshots = Snapshots(settings, self.metrics)
        self._beat = time.monotonic()
        self._joined: float | None = None
        self._looked = 0.0
        self._recount = False
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
            producer, consumer = self._connection.producer(self._stopping), self._connection.consumer()
            self._delivery = Delivery(producer, settings, self.metrics, self._snapshots.write)
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
            messages = consumer.consume(self._settings.batch_clicks, POLL_SECONDS)
            self._beat = time.monotonic()
            self._delivery.check()
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
        self._delivery.drain(DRAIN_SECONDS)
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

    def _must_go_on(self, number: int, offset: int) -> None:
        """Raises ServiceError if a partition is read again from before where it was: clicks would be answered twice."""
        position = self._partitions[number].position
        if offset < position:
            went = f"from offset {position} to {offset}"
            raise ServiceError(f"partition {number} went back {went} while it was read: its log was cut or made anew")

    def _holds(self) -> bool:
        """Whether something is held that may go on without more messages."""
        return False

    def _steer(self, consumer: Consumer) -> None:
        """Called with every turn, between reading and answering."""

    def _output(self, number: int) -> int:
        """The partition that takes a partition's answers: an ip's stay together, and record batches are large."""
        return number % self._connection.output_partitions

    def _offset(self, number: int, position: int, replay_from: int) -> TopicPartition:
        return TopicPartition(self._settings.input_topic, number, position, metadata=str(replay_from))

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("assigned").inc()
        if assigned:
            # Waits for what the former owner has not yet committed.
            committed: list[TopicPartition] = []
            patiently(lambda: committed.extend(consumer.committed(assigned, timeout=CALL_SECONDS)), ASSIGN_SECONDS)
            with self._snapshots.reading() as newest:
                for where in committed:
                    output, saved = self._output(where.partition), newest(where)
                    begun = begin(consumer, where, self._settings, max(0, output), self.metrics, saved)
                    self._partitions[where.partition] = partition = self._own(begun)
                    where.offset = partition.position
            consumer.incremental_assign(committed)
        self._joined, self._connection.at_work, self._recount = time.monotonic(), True, True
        log.info("assigned %s, now %s", sorted(p.partition for p in assigned), sorted(self._partitions))

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("revoked").inc()
        if self._joined is not None:  # else the worker is leaving, and has committed what it could
            self._delivery.group = consumer.consumer_group_metadata()
            self._delivery.drain(DRAIN_SECONDS)
        self._drop(revoked)

    def _lost(self, _: Consumer, lost: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("lost").inc()
        self._joined = None  # until it is a member again
        self._delivery.discard()
        self._drop(lost)

    def _drop(self, partitions: list[TopicPartition]) -> None:
        for where in partitions:
            self._partitions.pop(where.partition, None)
        log.info("gave up %s, now %s", sorted(p.partition for p in partitions), sorted(self._partitions))

    def _look(self, consumer: Consumer) -> None:
        self._looked = self._beat
        backlog = 0
        for number, partition in self._partitions.items():
            where = TopicPartition(self._settings.input_topic, number)
            _, high = consumer.get_watermark_offsets(where, cached=True)
            backlog += max(0, high - partition.position)
        self.metrics.backlog.set(backlog)
        if self._recount:
            self._count_partitions(consumer)

    def _count_partitions(self, consumer: Consumer) -> None:
        """Sees whether partitions were added to the input; a rebalance follows when some are."""
        topic, before = self._settings.input_topic, self._connection.input_partitions
        try:
            now = len(consumer.list_topics(topic, timeout=CALL_SECONDS).topics[topic].partitions)
        except KafkaException:
            return  # the next look asks again
        self._recount, self._connection.input_partitions = False, max(before, now)
        if now > before:
            self.metrics.added.inc(now - before)
            self._added(before, now)

    def _added(self, before: int, now: int) -> None:
        log.info("%s has %s partitions instead of %s", self._settings.input_topic, now, before)

    def _metrics_text(self) -> bytes:
        partitions = list(self._partitions.values())
        self.metrics.partitions.set(len(partitions))
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
