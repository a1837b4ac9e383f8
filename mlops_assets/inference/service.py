"""The worker: reads clicks, scores them in batches, hands the answers to delivery, shares partitions with others."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, Final

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
from mlops_assets.inference.delivery import Delivery
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.model import Model
from mlops_assets.inference.outcome import DeadLetter, Outcome
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.scoring import Run, misplaced, score
from mlops_assets.inference.snapshots import Snapshots

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
"""What clicks wait for others, so that a batch and its transaction share their fixed cost.

It bounds the transactions a second where few clicks come. With 0.02 they took a pod of 500 clicks a second above the
autoscaler's target, 25 % of 250m, and more pods would have made as many transactions each.
"""
DRAIN_SECONDS: Final = 15  # until answers under way must be committed, when partitions or the whole worker go
IDLE_SECONDS: Final = 10  # so long without partitions means that there are more workers than partitions
LOOK_SECONDS: Final = 5
KEY_SAMPLE: Final = 16  # of so many clicks the key of one is looked at
WARN_SECONDS: Final = 300


class Service:
    """One worker. `run` returns after `stop`, and raises ServiceError or DeliveryError when a restart is due."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._settings, self._model = settings, model
        self.metrics = Metrics(model.version, model.algorithm)
        self._partitions: dict[int, Partition] = {}
        self._stopping = threading.Event()
        self._connection = Connection(settings)
        self._snapshots = Snapshots(settings, self.metrics)
        self._beat = time.monotonic()
        self._joined: float | None = None
        self._looked = 0.0
        self._warned = float("-inf")
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
        return True, f"model {self._model.version}, partitions {sorted(partitions)}"

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
            if messages:
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

    def _score(self, runs: dict[int, list[Any]]) -> Outcome:
        outcome, todo = Outcome([], [], [], []), []
        for number, run in runs.items():
            partition, first = self._partitions[number], 0
            if run[0].offset() < partition.position:
                went = f"from offset {partition.position} to {run[0].offset()}"
                raise ServiceError(
                    f"partition {number} went back {went} while it was read: its log was cut or made anew"
                )
            if run[0].offset() < partition.first:
                first = sum(message.offset() < partition.first for message in run)
                self.metrics.replayed.inc(first)
            values, offset = list(map(Message.value, run)), partial(_offset_of, run)
            todo.append(Run(values, partition, first, self._output(number), offset))
        if not todo:
            return outcome
        scored = score(todo, self._model)
        self.metrics.probability.observe(scored.probability)
        self.metrics.late.inc(scored.late)
        self.metrics.ahead.inc(scored.ahead)
        for (number, run), new, part in zip(runs.items(), scored.new, todo, strict=True):
            partition = self._partitions[number]
            partition.position = run[-1].offset() + 1
            if partition.position > partition.first:
                outcome.offsets.append(self._offset(number, partition))
                oldest = run[min(part.first, len(run) - 1)]  # of the new ones: the others were answered in time
                outcome.written.append((oldest.timestamp()[1] / 1_000, new))
                self._check_keys(run[part.first :: KEY_SAMPLE])
        numbers = list(runs)
        for (index, at), reason in scored.rejected.items():
            message = runs[numbers[index]][at]
            outcome.dead.append(DeadLetter(numbers[index], message.offset(), message.key(), message.value(), reason))
        snapshot = self._snapshots.take(self._partitions) if outcome.offsets else None
        return replace(outcome, answers=scored.answers, snapshot=snapshot)

    def _check_keys(self, run: Sequence[Any]) -> None:
        """Whether producers keep what all counts rest on: that the key is the ip, so that an ip is in one partition."""
        wrong = [message for message in run if misplaced(message.key(), message.value())]
        if not wrong:
            return
        self.metrics.misplaced.inc(len(wrong))
        if time.monotonic() - self._warned > WARN_SECONDS:
            self._warned, first = time.monotonic(), wrong[0]
            log.error(
                "partition %s, offset %s: the key is %.50r and not the click's ip, so an ip's clicks are spread over "
                "partitions, and its counts are too low. Have the producer send the ip, in decimal, as the key",
                *(first.partition(), first.offset(), first.key()),
            )

    def _output(self, number: int) -> int:
        """The partition that takes a partition's answers: an ip's stay together, and record batches are large."""
        return number % self._connection.output_partitions

    def _offset(self, number: int, partition: Partition) -> TopicPartition:
        replay = str(partition.replay_from)
        return TopicPartition(self._settings.input_topic, number, partition.position, metadata=replay)

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        self.metrics.rebalances.labels("assigned").inc()
        if assigned:
            # Waits for what the former owner has not yet committed.
            committed: list[TopicPartition] = []
            patiently(lambda: committed.extend(consumer.committed(assigned, timeout=CALL_SECONDS)), ASSIGN_SECONDS)
            with self._snapshots.reading() as newest:
                for where in committed:
                    output, saved = self._output(where.partition), newest(where)
                    partition = begin(consumer, where, self._settings, output, self.metrics, saved)
                    self._partitions[where.partition] = partition
                    where.offset = partition.position
            consumer.incremental_assign(committed)
        self._joined, self._connection.at_work = time.monotonic(), True
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

    def _metrics_text(self) -> bytes:
        partitions = list(self._partitions.values())
        self.metrics.partitions.set(len(partitions))
        self.metrics.replaying.set(sum(not partition.caught_up for partition in partitions))
        self.metrics.keys.set(sum(map(len, partitions)))
        self.metrics.ready.set(self.ready()[0])
        return self.metrics.text()


def _offset_of(run: Sequence[Any], position: int) -> int:
    offset: int = run[position].offset()
    return offset
