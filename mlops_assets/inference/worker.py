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
from functools import partial
from itertools import groupby
from typing import Any, Final, Generic, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from mlops_assets.inference import probes
from mlops_assets.inference.beginning import BeginningError, begin
from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import CALL_SECONDS, STALL_SECONDS, Connection, ServiceError, passing
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
BEGIN_SECONDS: Final = 1  # for one partition's offsets: others are to be answered meanwhile
AGAIN_SECONDS: Final = 1  # until partitions that could not begin are tried again
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
        # Assigned, and not yet begun: Kafka doesn't tell where, or they can't be answered. Why, once that is known.
        self._waiting: dict[int, str] = {}
        self._unsettled: set[int] = set()  # of these: whose offsets are lost, so that a person has to say
        self._again = 0.0
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
        """Whether clicks are answered: all assigned partitions begun, their counts rebuilt, answers being committed."""
        waiting, partitions = dict(self._waiting), dict(self._partitions)
        replaying = sorted(number for number, partition in partitions.items() if not partition.caught_up)
        if self._joined is None or self._stopping.is_set():
            return False, f"not a member of the group {self._connection.says}"
        if self._delivery.trouble:
            return False, f"answers cannot be committed: {self._delivery.trouble}"
        if waiting:
            return False, f"partitions {sorted(waiting)} wait: {next(filter(None, waiting.values()), 'they begin')}"
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
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000)  # messages come by the thousand and never form cycles
        try:
            while not self._stopping.is_set():
                try:
                    self._session()
                except DeliveryError as error:
                    if not error.passes or self._stopping.is_set():
                        raise
                    log.warning("begins again, from the committed offsets: %s", error)
                except KafkaException as exception:
                    if not passing(exception.args[0]) or self._stopping.is_set():
                        raise ServiceError(f"Kafka: {exception.args[0].str()}") from exception
                    log.warning("begins again, from the committed offsets: %s", exception.args[0].str())
        finally:
            server.shutdown()

    def _session(self) -> None:
        """Waits for Kafka, and works until `stop`, or until Kafka is away for too long.

        What is left open then the next session ends: with a restarted process the rest would be the same, but that
        comes later and later."""
        producer = self._connection.producer(self._stopping, self._turned)
        if producer is None:
            return
        consumer = self._connection.consumer()
        membership = partial(_membership, consumer)
        self._delivery = Delivery(producer, membership, self._settings, self.metrics, self._snapshots.write)
        try:
            self._work(consumer)
        finally:
            self._joined = None
            self._delivery.close()
            consumer.close()
            for known in (self._partitions, self._waiting, self._unsettled):
                known.clear()

    def _work(self, consumer: Consumer) -> None:
        consumer.subscribe(
            [self._settings.input_topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        while not self._stopping.is_set():
            messages = consumer.consume(self._settings.batch_clicks, POLL_SECONDS)
            self._turned()
            self._delivery.check()
            if self._connection.refused:
                raise ServiceError(f"Kafka refuses this worker: {self._connection.says}")
            self._steer(consumer)
            if messages or self._holds():
                with self._delivery.turn, self.metrics.batch.time():
                    outcome = self._answer(messages)
                if outcome.offsets:
                    self._delivery.put(outcome, more=len(messages) == self._settings.batch_clicks)
            if self._waiting.keys() - self._unsettled and self._beat > self._again:
                self._begin(consumer)
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

    def _turned(self) -> None:
        self._beat = time.monotonic()

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Only takes note: confluent-kafka's process aborts if its consumer is asked something in a callback, and an
        error is to be told in the same call of `consume`."""
        self.metrics.rebalances.labels("assigned").inc()
        consumer.incremental_assign([])  # a partition is read once it has begun, from where it begins
        self._waiting |= {where.partition: "" for where in assigned}
        self._again = 0.0
        self._joined, self._connection.at_work, self._recount = time.monotonic(), True, True
        log.info("assigned %s", sorted(where.partition for where in assigned))

    def _begin(self, consumer: Consumer) -> None:
        """Begins partitions as far as Kafka lets it, and reads them."""
        begun: list[TopicPartition] = []
        number = -1
        try:
            committed = self._committed(consumer)
            if committed:
                with self._snapshots.reading() as newest:
                    for where in committed:
                        number, output = where.partition, max(0, self._output(where.partition))
                        try:
                            partition = begin(consumer, where, self._settings, output, self.metrics, newest(where))
                        except BeginningError as lost:
                            log.error("%s", lost)
                            self._unsettled.add(number)
                            self._waiting[number] = str(lost)
                            continue
                        self._partitions[number] = own = self._own(partition)
                        begun.append(TopicPartition(self._settings.input_topic, number, own.position))
                        del self._waiting[number]
        except KafkaException as exception:
            self._wait(number, exception)
        self._again = time.monotonic() + AGAIN_SECONDS
        if begun:
            self._read(consumer, begun)
            log.info("reads %s, now %s", [where.partition for where in begun], sorted(self._partitions))

    def _committed(self, consumer: Consumer) -> list[TopicPartition]:
        """The committed offsets of the partitions that can begin. Raises KafkaException if Kafka is away."""
        led, led_outputs = self._connection.led(consumer)
        committed: list[TopicPartition] = []
        for number in [number for number in self._waiting if number not in self._unsettled]:
            output = self._output(number)
            if number not in led or output not in (*led_outputs, ANY):
                self._wait(number, f"it, or the output's partition {output}, has no leader")
                continue
            try:  # waits for what a former owner has not yet committed
                asked = [TopicPartition(self._settings.input_topic, number)]
                [where] = consumer.committed(asked, timeout=BEGIN_SECONDS)
                if where.error:
                    raise KafkaException(where.error)
            except KafkaException as exception:
                self._wait(number, exception)
                break  # the others would wait as long
            committed.append(where)
        return committed

    def _wait(self, number: int, why: str | KafkaException) -> None:
        """Says why a partition waits. Raises a KafkaException that does not pass."""
        if isinstance(why, KafkaException):
            error = why.args[0]
            if not passing(error):
                raise why
            why = str(error.str())
        if number in self._waiting:
            said = self._waiting.pop(number)  # so that the next time others are asked for first
            self._waiting[number] = why
            if said != why:
                log.warning("partition %s waits: %s", number, why)

    def _read(self, consumer: Consumer, begun: list[TopicPartition]) -> None:
        """Reads partitions, from the offsets that are given: never from a logical one.

        librdkafka (2.16) asks for what END is, say, takes an answer that comes after another `assign` or a `pause` for
        outdated, and asks again: then it jumps to the end, and what lies between is read by nobody.
        """
        consumer.incremental_assign(begun)

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("revoked").inc()
        try:
            if self._joined is not None:  # else the session ends, and has committed what it could
                self._delivery.drain(DRAIN_SECONDS)
        except DeliveryError:
            self._delivery.discard()  # before they are somebody else's
            raise
        finally:
            self._give_up(consumer, revoked)

    def _lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("lost").inc()
        self._joined = None  # until it is a member again
        self._delivery.discard()
        self._give_up(consumer, lost)

    def _give_up(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign([where for where in partitions if where.partition in self._partitions])
        for number in (where.partition for where in partitions):
            self._partitions.pop(number, None)
            self._waiting.pop(number, None)
            self._unsettled.discard(number)
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
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.unsettled.set(len(self._unsettled))
        self.metrics.replaying.set(sum(not partition.caught_up for partition in partitions))
        self.metrics.keys.set(sum(map(len, partitions)))
        self.metrics.ready.set(self.ready()[0])
        return self.metrics.text()


def _membership(consumer: Consumer) -> Any:
    """What proves that offsets may be committed; None while this is no member."""
    group = consumer.consumer_group_metadata()
    # In this order. Those of no member would prove nothing, and yet Kafka takes their offsets.
    return group if consumer.memberid() else None


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
