"""Snapshots of the counts in a compacted topic: whoever takes a partition over counts little of its log again.

Counts are a pure function of the beginning of a partition's log. So a snapshot at any offset up to the committed one is
right, however old it is: recovery loads the newest, and counts what lies behind it.

- Never ahead: a snapshot travels with the batch behind which it was taken, and is written once that is committed.
- Never in the way: it is written by a thread and a producer of their own. Whatever becomes of it, answers go on.
- Whole or not at all: every chunk names its snapshot, by an id that is used once, how many chunks there are, and the
  checksum of all. What a killed worker left half written, or two workers wrote at the same time, makes no whole one.
- Of this log, counted by this code: it names the group, the input's topic id, the partition, and RULES.
- Deleted: once a snapshot is whole, the keys of all others that its writer knows of get tombstones, but not another
  version's: that one may be rolled back to. What nobody deletes goes by the topic's retention.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import queue
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
    Uuid,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]
from numpy.typing import NDArray

from mlops_assets.clicks import clock, csv, digits, features, schema
from mlops_assets.inference import partition as partitions
from mlops_assets.inference import scoring
from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import CALL_SECONDS
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition

log = logging.getLogger(__name__)

Saved = Mapping[str, NDArray[Any]]
CHUNK_BYTES: Final = 2**19
GAP_SECONDS: Final = 1.0  # between two snapshots, so that one at a time is written
LEAST_CLICKS: Final = 1_000
LOAD_SECONDS: Final = 15  # for all partitions that are assigned together; then the log is counted again
WRITE_SECONDS: Final = 30
RETRY_SECONDS: Final = 60
WARN_SECONDS: Final = 300
MOST_KEYS: Final = 1_000  # of a partition that are remembered, to be deleted
TOPIC_SETTINGS: Final = {
    "cleanup.policy": "compact,delete",
    "retention.ms": f"{3 * 86_400_000}",  # a snapshot of three days ago saves nothing: all its windows are over
    "segment.bytes": f"{2**24}",  # only what is in closed segments is compacted
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": "60000",
}
"""Of a topic that the service makes itself."""


def _rules() -> str:
    """Names the code that says what a click is and how clicks are counted, by its source."""
    modules = (schema, digits, csv, clock, features, partitions, scoring)
    files = [__file__, *(str(module.__file__) for module in modules)]
    source = b"".join(Path(file).read_bytes() for file in files)
    return hashlib.sha256(source).hexdigest()[:12]


RULES: Final = _rules()


class SnapshotError(RuntimeError):
    """A snapshot can't be used, or couldn't be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of a partition at an offset, and of which topic that partition is."""

    number: int
    topic_id: str
    offset: int
    saved: Saved


class _Found:
    """What was found in the topic of a snapshot, for a partition of which so much is committed."""

    def __init__(self, topic_id: str, committed: int) -> None:
        self.chunks: dict[int, bytes] = {}
        self._about: dict[str, Any] = {}
        self._topic_id, self._committed = topic_id, committed

    def take(self, number: int, message: Message) -> None:
        """Takes one of its chunks; of a useless one only its number, for there may be gigabytes of those."""
        with suppress(KeyError, ValueError, TypeError):  # then nothing is known about it, and it is refused
            self._about = json.loads(dict(message.headers() or ())["snapshot"] or b"")
        self.chunks[number] = b"" if self._about and self._useless() else message.value() or b""

    @property
    def offset(self) -> int:
        """Up to which the input is counted in it; -1 if that is not known."""
        return int(self._about.get("offset", -1))

    @property
    def foreign(self) -> bool:
        """Whether it is another version's."""
        return bool(self._about.get("rules", RULES) != RULES)

    def _useless(self) -> str:
        """Why it is of no use even if it is whole; empty if it is."""
        if self._about.get("topic_id") != self._topic_id:
            return "it is of a topic that was deleted since"
        if self._about.get("rules") != RULES:
            return "it was counted by another version of the service"
        if self.offset > self._committed:
            return f"the committed offset, {self._committed}, is before it"
        return ""

    def read(self) -> Saved:
        """Raises SnapshotError unless it is whole, of this log up to the committed offset, and counted by this code."""
        about, size = self._about, self._about.get("chunks", 1)
        if why := self._useless():
            raise SnapshotError(why)
        if len(self.chunks) < size:
            raise SnapshotError(f"it has {len(self.chunks)} of {size} chunks")
        whole = b"".join(self.chunks.get(number, b"") for number in range(size))
        if zlib.crc32(whole) != about.get("crc32"):
            raise SnapshotError("it is damaged: its checksum is another one")
        with np.load(io.BytesIO(whole), allow_pickle=False) as arrays:
            return dict(arrays)


class Snapshots:
    """One worker's: takes them, writes those that are handed to `write`, and finds the newest of a partition."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._wanted = False
        self._topic_id = ""  # of the input; empty: unknown
        self._numbers = 1  # of the snapshots' topic
        self._taken: dict[int, float] = {}  # by partition: when the last one was taken
        self._next = 0.0
        self._warned = float("-inf")
        self._keys: dict[int, set[bytes]] = {}  # by partition: of all chunks that are known to be in the topic
        self._queue: queue.Queue[Snapshot] = queue.Queue(1)
        self._writing = False

    def take(self, own: Mapping[int, Partition]) -> Snapshot | None:
        """A snapshot of the partition of which most would have to be counted again, if it is worth it by now."""
        now = time.monotonic()
        topic_id = self._topic_id  # the other thread may forget it meanwhile
        if not topic_id or self._writing or now < self._next:
            return None
        due = [number for number, partition in own.items() if self._due(number, partition, now)]
        if not due:
            return None
        number = max(due, key=lambda number: own[number].position - own[number].kept)
        partition, self._next, self._taken[number] = own[number], now + GAP_SECONDS, now
        partition.kept = partition.position
        return Snapshot(number, topic_id, partition.position, partition.save())

    def _due(self, number: int, partition: Partition, now: float) -> bool:
        """Loading ten keys takes as long as counting a click again; two clicks pay for writing a key."""
        clicks, keys = partition.position - partition.kept, len(partition)
        worth = partition.caught_up and clicks >= max(LEAST_CLICKS, keys / 10)
        old = now - self._taken.get(number, 0.0) >= self._settings.snapshot_seconds
        return worth and (old or clicks >= 2 * keys)

    def write(self, snapshot: Snapshot) -> None:
        """Has a snapshot written whose offset is committed by now; drops it if another one waits to be written."""
        if not self._queue.full():
            self._queue.put(snapshot)

    @contextmanager
    def reading(self) -> Iterator[Callable[[TopicPartition], Partition | None]]:
        """Within it, a function that gives a partition as its newest usable snapshot has it, or None; given its
        committed offset and that one's metadata, the offset from which it can be counted again.

        Whatever goes wrong is said, and costs no more than counting the log again.
        """
        deadline = time.monotonic() + LOAD_SECONDS
        reader = self._reader() if self._settings.snapshot_seconds else None
        topic_id = self._topic_id
        broken = not topic_id

        def newest(where: TopicPartition) -> Partition | None:
            nonlocal broken
            replay = where.metadata or ""
            little = where.offset < (int(replay) if replay.isdecimal() else 0) + LEAST_CLICKS
            if reader is None or little or broken or time.monotonic() > deadline:
                return None
            try:
                return self._newest(reader, where, topic_id, deadline)
            except Exception as error:  # noqa: BLE001 - whatever it is, answers go on
                broken = isinstance(error, KafkaException)  # the next ones would wait as long
                self._failed("snapshots cannot be read, so the log is counted again: %s", error)
                return None

        try:
            yield newest
        finally:
            if reader is not None:
                reader.close()

    def _reader(self) -> Consumer | None:
        """A consumer of the snapshots' topic, if there can be any in it."""
        if not self._wanted:
            self._wanted = True
            threading.Thread(target=self._run, name="snapshots", daemon=True).start()
        try:
            return Consumer(self._reader_settings()) if self._meet() else None
        except Exception as error:  # noqa: BLE001 - whatever it is, answers go on
            self._topic_id = ""  # until the other thread has asked again
            self._failed("snapshots cannot be used, so the log is counted again: %s", error)
            return None

    def _meet(self) -> bool:
        """Learns the id of the input, and sees to the snapshots' topic; whether there can be any in it."""
        topic, source = self._settings.snapshot_topic, self._settings.input_topic
        admin = AdminClient(self._settings.kafka.client())
        topics = admin.list_topics(timeout=CALL_SECONDS).topics
        there = {name: each.partitions for name, each in topics.items() if each.partitions}
        if source not in there:
            raise SnapshotError(f"the topic {source!r} has no partitions")
        numbers = len(there.get(topic, there[source]))
        if topic in there:
            self._check(admin, topic)
        else:
            copies = min(len(each.replicas) for each in there[source].values())
            new = NewTopic(topic, numbers, copies, config=TOPIC_SETTINGS)
            try:
                admin.create_topics([new], request_timeout=CALL_SECONDS)[topic].result(2 * CALL_SECONDS)
                log.info("made the topic %s for snapshots of the counts", topic)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise SnapshotError(f"the topic {topic!r} is missing and can't be made: {_text(error)}") from error
        described = admin.describe_topics(TopicCollection([source]), request_timeout=CALL_SECONDS)
        topic_id = str(described[source].result(2 * CALL_SECONDS).topic_id)
        if topic_id == str(Uuid(0, 0)):
            raise SnapshotError(
                "this Kafka gives topics no ids, so one that is made anew can't be told: SNAPSHOT_SECONDS=0"
            )
        self._numbers, self._topic_id = numbers, topic_id
        return topic in there

    def _check(self, admin: AdminClient, topic: str) -> None:
        """Raises SnapshotError if the topic, which somebody else made, keeps what is deleted: that fills the disks."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        with suppress(KafkaException):  # the worker may not look
            described = admin.describe_configs([resource], request_timeout=CALL_SECONDS)[resource]
            policy = str(described.result(2 * CALL_SECONDS)["cleanup.policy"].value)
            if "compact" not in policy:
                wanted = ",".join(f"{name}=[{value}]" for name, value in TOPIC_SETTINGS.items())
                text = (
                    f"the topic {topic!r} has cleanup.policy={policy}, and would keep every snapshot. Give it {wanted}"
                )
                raise SnapshotError(text)

    def _reader_settings(self) -> dict[str, Any]:
        return self._settings.kafka.client() | {
            "group.id": self._settings.group_id,  # it has to have one, and never joins it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "check.crcs": True,
            "fetch.wait.max.ms": 10,
            "queued.max.messages.kbytes": 4_096,
            "fetch.queue.backoff.ms": 10,  # else a full queue is looked at again after a second
        }

    def _newest(self, reader: Consumer, where: TopicPartition, topic_id: str, deadline: float) -> Partition | None:
        """Reads the topic from its end backwards, ever more at a time, until a usable snapshot is whole."""
        place = TopicPartition(self._settings.snapshot_topic, where.partition % self._numbers)
        low, end = reader.get_watermark_offsets(place, timeout=CALL_SECONDS)
        prefix = self._prefix(where.partition)
        found, deleted, useless = dict[str, _Found](), set[str](), dict[str, str]()
        newest: Saved | None = None
        size = 16
        while newest is None and end > low:
            begin = max(low, end - size)
            for message in _between(reader, place, begin, end, deadline):
                key = (message.key() or b"").decode("utf-8", "replace")
                name, _, chunk = key.removeprefix(prefix).partition("/")
                if not key.startswith(prefix) or not chunk.isdecimal():
                    continue  # another group's, or another partition's if the topic has fewer
                if message.value() is None:
                    deleted.add(name)
                    found.pop(name, None)
                elif name not in deleted:
                    found.setdefault(name, _Found(topic_id, where.offset)).take(int(chunk), message)
            end, size = begin, 2 * size
            for name, each in sorted(found.items(), key=lambda item: item[1].offset):
                try:
                    newest = each.read()
                    useless.pop(name, None)
                except SnapshotError as error:
                    useless[name] = f"of offset {each.offset}: {error}"
        self._keys[where.partition] = {
            f"{prefix}{name}/{chunk}".encode()
            for name, each in found.items()
            if not each.foreign
            for chunk in each.chunks
        }
        self._metrics.snapshots.labels("refused").inc(len(useless))
        for text in [*useless.values()][-3:]:
            log.warning("partition %s: no use of a snapshot %s", where.partition, text)
        return None if newest is None else Partition.load(newest, where.offset)

    def _prefix(self, number: int) -> str:
        """What the keys of a partition's chunks begin with; the snapshot's name and the chunk's number follow."""
        return f"{self._settings.group_id}/{number}/"

    def _run(self) -> None:
        producer: Producer | None = None
        while True:
            snapshot: Snapshot | None = None
            try:
                with suppress(queue.Empty):
                    snapshot = self._queue.get(timeout=RETRY_SECONDS)
                self._writing = True
                if not self._topic_id:  # Kafka was away when partitions were assigned
                    self._meet()
                if snapshot:
                    producer = producer or Producer(self._writer_settings())
                    self._write(producer, snapshot)
                    self._metrics.snapshots.labels("written").inc()
            except Exception as error:  # noqa: BLE001 - whatever it is, answers go on
                self._failed("a snapshot could not be written; recovery will take longer: %s", error)
                self._topic_id = ""  # until Kafka has been asked again
            finally:
                self._writing = False

    def _writer_settings(self) -> dict[str, Any]:
        return self._settings.kafka.client() | {
            "compression.type": "lz4",
            "message.timeout.ms": 1_000 * WRITE_SECONDS,
            "queue.buffering.max.kbytes": 16_384,
        }

    def _write(self, producer: Producer, snapshot: Snapshot) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **snapshot.saved)  # type: ignore[arg-type]
        whole, number = buffer.getbuffer(), snapshot.number
        about = {
            "topic_id": snapshot.topic_id,
            "offset": snapshot.offset,
            "rules": RULES,
            "chunks": -(-len(whole) // CHUNK_BYTES),
            "crc32": zlib.crc32(whole),
        }
        header = {"snapshot": json.dumps(about)}
        prefix = f"{self._prefix(number)}{uuid.uuid4().hex}"
        known, keys = self._keys.setdefault(number, set()), set[bytes]()
        if len(known) > MOST_KEYS:  # Kafka refuses them one after another
            known.clear()
        for chunk, begin in enumerate(range(0, len(whole), CHUNK_BYTES)):
            key = f"{prefix}/{chunk}".encode()
            keys.add(key)
            known.add(key)  # until it is whole, it is one of those to delete
            self._send(producer, number, [(key, bytes(whole[begin : begin + CHUNK_BYTES]))], header)
        self._metrics.snapshot_bytes.inc(len(whole))
        self._send(producer, number, [(key, None) for key in sorted(known - keys)], {})
        self._keys[number] = keys

    def _send(
        self, producer: Producer, number: int, items: Sequence[tuple[bytes, bytes | None]], header: dict[str, str]
    ) -> None:
        """Writes the messages, and returns when they are acknowledged. Raises SnapshotError if one is not."""
        errors: list[KafkaError] = []

        def report(error: KafkaError | None, _: object) -> None:
            if error is not None:
                errors.append(error)

        for key, value in items:
            topic, place = self._settings.snapshot_topic, number % self._numbers
            producer.produce(topic, value, key, place, on_delivery=report, headers=dict(header))
        if producer.flush(WRITE_SECONDS) or errors:
            raise SnapshotError(errors[0].str() if errors else "no answer from Kafka")

    def _failed(self, text: str, error: Exception) -> None:
        self._metrics.snapshots.labels("failed").inc()
        if time.monotonic() - self._warned > WARN_SECONDS:
            self._warned = time.monotonic()
            log.warning(text, _text(error))


def _between(reader: Consumer, place: TopicPartition, begin: int, end: int, deadline: float) -> Iterator[Message]:
    """The messages from offset `begin` to before `end`."""
    reader.assign([TopicPartition(place.topic, place.partition, begin)])
    while time.monotonic() < deadline:
        message = reader.poll(0.1)  # not consume(), which waits for as many messages as it is asked for
        if message is None:
            continue
        error, offset = message.error(), message.offset()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        if error is not None or offset is None or offset >= end:
            return
        yield message
        if offset == end - 1:
            return
    raise SnapshotError(f"not read within {LOAD_SECONDS} s")


def _text(error: Exception) -> str:
    """An error's words, without the name of its class."""
    return str(error.args[0].str()) if isinstance(error, KafkaException) else str(error) or type(error).__name__
