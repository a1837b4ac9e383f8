"""Where a worker begins to read a partition, and what is said when Kafka no longer holds what it should.

A partition goes on at the committed offset, and is read from further back to rebuild its counts. None is read from its
beginning again, which would answer clicks twice, unless START_FROM says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import CALL_SECONDS
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition

log = logging.getLogger(__name__)

ID_LENGTH: Final = 22  # of a topic's id, in base64


class BeginningError(RuntimeError):
    """Kafka has lost up to where a partition is answered; the message says how, and what to do."""


def begin(
    consumer: Consumer,
    number: int,
    topic_id: str,
    settings: Settings,
    output: int,
    metrics: Metrics,
    newest: Callable[[TopicPartition], Partition | None],
) -> Partition:
    """Partition `number` as its committed offset and that one's metadata describe it; it is answered in `output`.
    The `newest` that was saved of it is used where less has then to be counted again.

    Raises:
        BeginningError: it may have been answered before, and nobody knows up to where.
        KafkaException: Kafka does not tell: a former owner's offsets are not yet committed, or a leader is missing.
    """
    [where] = consumer.committed([TopicPartition(settings.input_topic, number)], timeout=CALL_SECONDS)
    if where.error:
        raise KafkaException(where.error)
    low, high = _ends(consumer, where)
    first, saved = where.offset, newest(where)
    replay_from, _, known_id = (where.metadata or "").partition(" ")
    ours = replay_from.isdecimal() and len(known_id) in (0, ID_LENGTH)
    anew = ours and known_id not in ("", topic_id)
    if anew or not 0 <= first <= high:
        first, ours, saved = _anew(consumer, where, settings, output, low, high, anew), False, None
    if first < low:
        metrics.lost.inc(low - first)
        log.error(
            "partition %s: %s messages from offset %s on were deleted before they were answered. No worker read them "
            "for longer than the topic keeps them: raise its retention",
            *(number, low - first, first),
        )
    replay = min(first, int(replay_from)) if ours else first
    foreign = first == where.offset and not anew and not ours
    if saved is not None and max(low, low if foreign else replay) <= saved.position:
        metrics.snapshots.labels("loaded").inc()
        log.info(
            "partition %s goes on from its snapshot of offset %s, %s behind",
            number,
            saved.position,
            first - saved.position,
        )
        return saved
    if foreign:  # set by a person, say, or written by another version
        log.warning(
            "partition %s: offset %s was not committed by this service, so all is counted from offset %s on, where the "
            "log begins",
            *(number, first, low),
        )
        replay = low
    if replay < min(low, first):
        metrics.short.inc()
        log.error(
            "partition %s: its counts begin at offset %s, but the log at %s: until midnight (UTC) they may be too low. "
            "Let the topic keep clicks for two days at least",
            *(number, replay, low),
        )
    return Partition(max(low, replay), max(low, first))


def resume(replay_from: int, topic_id: str) -> str:
    """The metadata of a committed offset: from where the counts can be rebuilt, and in which topic of that name."""
    return f"{replay_from} {topic_id}"


def _anew(
    consumer: Consumer, where: TopicPartition, settings: Settings, output: int, low: int, high: int, anew: bool
) -> int:
    """Where to begin in a partition of which Kafka holds no usable offset."""
    number = where.partition
    if settings.start_from:
        log.warning("partition %s begins at the %s offset, as START_FROM says", number, settings.start_from)
        return low if settings.start_from == "earliest" else high
    why = f"the committed offset {where.offset} lies behind the end of the log, {high}: it was cut"
    if anew:
        why = f"the topic was made anew since offset {where.offset} was committed"
    elif where.offset < 0:
        why = "no offset is committed: they expire when no worker comes for offsets.retention.minutes"
        if not _answered(consumer, settings, output) or _others(consumer, settings.input_topic):
            log.info("partition %s is new, and begins at offset %s", number, low)
            return low
    raise BeginningError(
        f"partition {number} of {settings.input_topic}, group {settings.group_id}: {why}. Its clicks could be answered "
        f"twice or never, so say where to begin: START_FROM=earliest (offset {low}) or START_FROM=latest ({high})"
    )


def _answered(consumer: Consumer, settings: Settings, output: int) -> bool:
    """Whether there are answers in a partition of the output, or were. Those of aborted transactions are none."""
    low, high = _ends(consumer, TopicPartition(settings.output_topic, output))
    if low or not high:
        return bool(low)
    isolated = {"isolation.level": "read_committed", "enable.partition.eof": True, "auto.offset.reset": "earliest"}
    reader = Consumer(settings.kafka.client() | isolated | {"group.id": settings.group_id, "enable.auto.commit": False})
    try:
        reader.assign([TopicPartition(settings.output_topic, output, low)])
        message = reader.poll(CALL_SECONDS)
        if message is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return message.error() is None
    finally:
        reader.close()


def _others(consumer: Consumer, topic: str) -> bool:
    """Whether offsets of any partition of the input are committed: then one that has none was added."""
    partitions = consumer.list_topics(topic, timeout=CALL_SECONDS).topics[topic].partitions
    committed = consumer.committed([TopicPartition(topic, number) for number in partitions], timeout=CALL_SECONDS)
    return any(where.offset >= 0 for where in committed)


def _ends(consumer: Consumer, where: TopicPartition) -> tuple[int, int]:
    """The first offset of a partition's log and the one behind its last."""
    ends: tuple[int, int] | None = consumer.get_watermark_offsets(where, timeout=CALL_SECONDS)
    if ends is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return ends
