"""Where a worker begins to read a partition, and what is said when Kafka no longer holds what it should.

A partition goes on at the committed offset, and is read from further back to rebuild its counts. None is read from its
beginning again, which would answer clicks twice, unless START_FROM says so.
"""

from __future__ import annotations

import logging

from confluent_kafka import Consumer, TopicPartition

from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import ASSIGN_SECONDS, CALL_SECONDS, ServiceError, patiently
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition

log = logging.getLogger(__name__)


def begin(
    consumer: Consumer,
    where: TopicPartition,
    settings: Settings,
    output: int,
    metrics: Metrics,
    saved: Partition | None,
) -> Partition:
    """The partition as its committed offset and that one's metadata describe it; its answers go to partition `output`.
    What was `saved` of it is used where that leaves less to be counted again.

    Raises ServiceError if it may have been answered before and nobody knows up to where.
    """
    low, high = _ends(consumer, where)
    number, first = where.partition, where.offset
    if not 0 <= first <= high:
        first, saved = _anew(consumer, where, settings, output, low, high), None
    if first < low:
        metrics.lost.inc(low - first)
        log.error(
            "partition %s: %s messages from offset %s on were deleted before they were answered. No worker read them "
            "for longer than the topic keeps them: raise its retention",
            *(number, low - first, first),
        )
    metadata = where.metadata or ""
    replay = min(first, int(metadata)) if metadata.isdecimal() else first
    foreign = first == where.offset and not metadata.isdecimal()
    needed = low if foreign else max(low, replay)
    if saved is not None and needed <= saved.position:
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


def _anew(consumer: Consumer, where: TopicPartition, settings: Settings, output: int, low: int, high: int) -> int:
    """Where to begin in a partition of which Kafka holds no usable offset."""
    number = where.partition
    if settings.start_from:
        log.warning("partition %s begins at the %s offset, as START_FROM says", number, settings.start_from)
        return low if settings.start_from == "earliest" else high
    why = f"the committed offset {where.offset} lies behind the end of the log, {high}: it was cut, or made anew"
    if where.offset < 0:
        why = "no offset is committed: they expire when no worker comes for offsets.retention.minutes"
        if not _answered(consumer, settings, output) or _others(consumer, settings.input_topic):
            log.info("partition %s is new, and begins at offset %s", number, low)
            return low
    raise ServiceError(
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
        message = reader.poll(ASSIGN_SECONDS)
        return message is None or message.error() is None
    finally:
        reader.close()


def _others(consumer: Consumer, topic: str) -> bool:
    """Whether offsets of any partition of the input are committed: then one that has none was added."""
    partitions = consumer.list_topics(topic, timeout=CALL_SECONDS).topics[topic].partitions
    every, found = [TopicPartition(topic, number) for number in partitions], list[TopicPartition]()
    patiently(lambda: found.extend(consumer.committed(every, timeout=CALL_SECONDS)), ASSIGN_SECONDS)
    return any(where.offset >= 0 for where in found)


def _ends(consumer: Consumer, where: TopicPartition) -> tuple[int, int]:
    """The first offset of a partition's log and the one behind its last."""
    ends: list[int] = []
    patiently(lambda: ends.extend(consumer.get_watermark_offsets(where, timeout=CALL_SECONDS)), ASSIGN_SECONDS)
    low, high = ends
    return low, high
