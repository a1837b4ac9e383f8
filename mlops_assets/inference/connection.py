"""How the worker meets Kafka: its clients and their settings, whether Kafka refuses it, and patience with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from mlops_assets.inference.config import Settings

log = logging.getLogger(__name__)

CALL_SECONDS: Final = 5
SILENCE_SECONDS: Final = 30
BEGIN_SECONDS: Final = 30
"""So long a transactional id may be held by an earlier transaction of its own before another id is taken."""
STALL_SECONDS: Final = 90
"""A worker that has not asked for messages for so long is stuck: Kafka gives its partitions to others."""
PASSING: Final = (
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)
"""What passes by itself. librdkafka's own word for it, `retriable()`, is said of transactional calls only."""
AUTHENTICATION: Final = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)


class ServiceError(RuntimeError):
    """The worker cannot work; the message says why."""


class Connection:
    """The clients of one worker, and what librdkafka says of their connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.says = ""
        """Kafka's last complaint."""
        self.refused = False
        """Whether trying on is hopeless."""
        self.at_work = False
        self._ids = 0
        self._heard_at, self._heard_code = float("-inf"), 0
        self.output_partitions = 1

    def producer(
        self, stopping: threading.Event, turned: Callable[[], object] = lambda: None, other_id: bool = False
    ) -> Producer:
        """A producer whose transactions may begin; what its predecessor of the same id left open is ended.

        Waits for Kafka as long as it takes, and calls `turned` every few seconds. Raises ServiceError if Kafka refuses,
        or when `stopping` is set meanwhile.
        """
        while True:
            self._ids += other_id
            producer = Producer(self._producer_settings())
            self._await_topics(producer, stopping, turned)
            try:
                patiently(lambda: producer.init_transactions(CALL_SECONDS), BEGIN_SECONDS)  # noqa: B023 - called here
                return producer
            except KafkaException as exception:
                error = exception.args[0]
                if stopping.is_set() or not passing(error):
                    raise ServiceError(f"no transactions at {self._settings.kafka.servers}: {error.str()}") from error
                log.warning("transactions can't begin: %s", error.str())
            # An earlier transaction of the id can't end as long as one of its partitions has no leader.
            other_id = True

    def _await_topics(self, producer: Producer, stopping: threading.Event, turned: Callable[[], object]) -> None:
        """Returns when Kafka answers. Raises ServiceError if Kafka refuses, or a topic does not exist."""
        settings, servers = self._settings, self._settings.kafka.servers
        while True:
            turned()
            try:
                there = producer.list_topics(timeout=2).topics
                break
            except KafkaException as exception:
                producer.poll(0)
                reason = self.says or exception.args[0].str()
            if self.refused or stopping.is_set():
                raise ServiceError(f"cannot work with Kafka at {servers}: {reason}")
        if self.at_work:
            return
        for topic in (settings.input_topic, settings.output_topic, settings.dead_letter_topic):
            if topic not in there:
                raise ServiceError(f"the topic {topic!r} does not exist at {servers}: create it first")
        self.output_partitions = len(there[settings.output_topic].partitions)

    def consumer(self) -> Consumer:
        """A consumer, not yet subscribed to anything."""
        return Consumer(self._consumer_settings())

    def topic_id(self) -> str:
        """The id of the input, which another topic of its name would not have. Raises KafkaException."""
        name, admin = self._settings.input_topic, AdminClient(self._settings.kafka.client() | {"log_level": 2})
        described = admin.describe_topics(TopicCollection([name]), request_timeout=CALL_SECONDS)
        try:
            return str(described[name].result(2 * CALL_SECONDS).topic_id)
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None

    def led(self, client: Consumer) -> list[set[int]]:
        """The partitions of the input, and those of the output, that have a leader. Raises KafkaException."""
        topics = client.list_topics(timeout=CALL_SECONDS).topics
        names = (self._settings.input_topic, self._settings.output_topic)
        found = [topics[name].partitions if name in topics else {} for name in names]
        return [{number for number, about in partitions.items() if about.leader >= 0} for partitions in found]

    def _heard(self, error: KafkaError) -> None:
        """Called by librdkafka for what is wrong with a connection: it goes on trying by itself."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self.says:
            return  # the reason was said before
        self.says = error.str()
        # Once at work a refused certificate may be one that is being renewed.
        fatal = AUTHENTICATION if self.at_work else (*AUTHENTICATION, KafkaError._SSL)
        self.refused = self.refused or error.code() in fatal
        # While Kafka is away librdkafka says so 20 times a second.
        if time.monotonic() - self._heard_at > SILENCE_SECONDS or error.code() != self._heard_code:
            self._heard_at, self._heard_code = time.monotonic(), error.code()
            log.warning("Kafka: %s", error.str())

    def _producer_settings(self) -> dict[str, Any]:
        group, worker = self._settings.group_id, self._settings.worker_id
        return self._settings.kafka.client() | {
            "error_cb": self._heard,
            "log_level": 2,  # all else is said to it
            "transactional.id": "-".join([group, worker, *[str(self._ids)] * (self._ids > 0)]),
            "transaction.timeout.ms": self._settings.transaction_timeout_ms,
            "message.timeout.ms": self._settings.transaction_timeout_ms
            // 2,  # while the transaction may yet be aborted
            "delivery.report.only.error": True,
            "partitioner": "murmur2_random",  # of re-keyed clicks: that of Kafka's own clients
            "linger.ms": 10,
            "compression.type": "lz4",  # answers differ in a few digits: a fifth of the bytes, and no slower
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 65_536,
        }

    def _consumer_settings(self) -> dict[str, Any]:
        return self._settings.kafka.client() | {
            "error_cb": self._heard,
            "log_level": 2,  # all else is said to it
            "group.id": self._settings.group_id,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": self._settings.session_timeout_ms,
            "heartbeat.interval.ms": self._settings.session_timeout_ms // 3,
            "max.poll.interval.ms": 1_000 * STALL_SECONDS,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",  # never back to the beginning by itself
            "topic.metadata.refresh.interval.ms": 30_000,  # so long a partition that was added is not seen
            "enable.auto.commit": False,
            # What is fetched ahead: librdkafka needs half a kilobyte for a click of sixty bytes.
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 20_000,
            "queued.max.messages.kbytes": 5_120,
            "max.partition.fetch.bytes": 131_072,
        }


def passing(error: KafkaError) -> bool:
    """Whether it is worth while to try again."""
    return error.retriable() or error.code() in PASSING


def patiently(call: Callable[[], object], seconds: float) -> None:
    """Repeats a call to Kafka while it fails for a passing reason. Raises KafkaException for any other one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except KafkaException as exception:
            error = exception.args[0]
            if not passing(error) or error.txn_requires_abort() or error.fatal() or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
