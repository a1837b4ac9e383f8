"""Answers and offsets out to Kafka, exactly once: one transaction after another, in a thread of its own.

While a transaction is being acknowledged and committed (tens of milliseconds of waiting), the caller consumes, counts
and scores what the next ones will hold. Why each click is answered once:

- A transaction holds whole batches in the order of `put`, and of each partition the offset behind the last of them:
  answers and offsets become visible together or not at all. The batches that wait for the next one are in neither.
- Aborted: all its batches are produced again in the next attempt; they were computed once, so their counts are right.
- Revoked: `drain` commits everything that was put before the partitions are given up; if that takes too long the
  worker ends, and who takes over begins at the committed offsets. SIGTERM does the same.
- Lost: `discard` ends the era of all batches; an attempt that holds one of them is aborted, and they are forgotten. If
  its commit is under way already, Kafka judges it by the membership with which the offsets were sent.
- Fenced, or killed: the transaction is aborted by whoever takes the id over, or by its timeout.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer

from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import CALL_SECONDS, patiently
from mlops_assets.inference.metrics import Metrics, reason_label
from mlops_assets.inference.outcome import LARGE_BYTES, Outcome
from mlops_assets.inference.snapshots import Snapshot

log = logging.getLogger(__name__)

QUEUED_BATCHES: Final = 8
TRANSACTION_ANSWERS: Final = 100_000
UNACKNOWLEDGED: Final = 20_000  # messages within librdkafka: more would be memory, not speed
UNACKNOWLEDGED_LARGE: Final = 40  # its queue holds 64 MiB, and a message can have one
GIVE_UP_SECONDS: Final = 30
DEAD_LETTER_BYTES: Final = 65_536  # the whole message stays in the input, at the origin that the headers name
HOPELESS: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


class DeliveryError(RuntimeError):
    """Answers could not be committed; nothing of them is visible, and a restart answers them again."""


@dataclass(frozen=True, slots=True)
class _Batch:
    era: int
    outcome: Outcome
    more: bool


class Delivery:
    """Commits batches in the order of `put`."""

    def __init__(
        self, producer: Producer, settings: Settings, metrics: Metrics, keep: Callable[[Snapshot], None]
    ) -> None:
        self._producer, self._settings, self._metrics, self._keep = producer, settings, metrics, keep
        self._patience = settings.transaction_timeout_ms / 1_000  # then Kafka itself has aborted the transaction
        self.group: Any = None
        """The consumer group's metadata of the moment, which prove that its offsets may be committed."""
        # A batch; or an event to set as soon as everything before it is committed.
        self._queue: queue.Queue[_Batch | threading.Event] = queue.Queue(QUEUED_BATCHES)
        self.turn = threading.Lock()
        """Held by the thread that computes: two that both want Python pass its lock to and fro, all the time."""
        self._era = 0
        self._began = 0.0
        self._refused: KafkaError | None = None
        self._error: BaseException | None = None
        self.trouble = ""
        """Why answers are not being committed right now; empty when they are."""
        threading.Thread(target=self._run, name="delivery", daemon=True).start()

    def put(self, outcome: Outcome, more: bool = False) -> None:
        """Takes a batch, waiting for room if need be; `more` says that another one is about to come.

        Raises DeliveryError once delivery has failed for good.
        """
        self._enqueue(_Batch(self._era, outcome, more), time.monotonic() + 2 * GIVE_UP_SECONDS)

    def drain(self, seconds: float) -> None:
        """Returns when all that was put is committed. Raises DeliveryError if that takes longer than `seconds`."""
        deadline, done = time.monotonic() + seconds, threading.Event()
        self._enqueue(done, deadline)
        while not done.wait(0.05):
            self.check()
            if time.monotonic() > deadline:
                raise DeliveryError(f"the answers under way were not committed within {seconds:.0f} s: {self.trouble}")

    def discard(self) -> None:
        """Forgets what is not yet committed: its partitions are somebody else's now."""
        self._era += 1

    def check(self) -> None:
        """Raises DeliveryError once delivery has failed for good."""
        if self._error is not None:
            raise DeliveryError(str(self._error)) from self._error

    def _enqueue(self, item: _Batch | threading.Event, deadline: float) -> None:
        while True:
            self.check()
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                if time.monotonic() > deadline:
                    raise DeliveryError(f"answers are not being committed: {self.trouble}") from None

    def _run(self) -> None:
        try:
            while True:
                item = self._queue.get()
                done = item if isinstance(item, threading.Event) else self._transact(item)
                if done is not None:
                    done.set()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread, by check()
            self._error = error

    def _transact(self, first: _Batch) -> threading.Event | None:
        """Commits `first` and the batches that are ready behind it, or about to be; the event behind them, if any."""
        taken: list[_Batch] = []
        ended: list[threading.Event] = []

        def arriving() -> Iterator[_Batch]:
            end, room, batch = time.monotonic() + self._settings.commit_interval, TRANSACTION_ANSWERS, first
            while True:
                taken.append(batch)
                yield batch
                room -= batch.outcome.answered
                left = end - time.monotonic()
                if room <= 0 or left <= 0:
                    return
                try:
                    item = self._queue.get(block=batch.more, timeout=left)
                except queue.Empty:
                    return
                if isinstance(item, threading.Event):
                    ended.append(item)
                    return
                batch = item

        batches: Iterable[_Batch] = arriving()
        give_up = 0.0
        while True:
            try:
                if self._attempt(batches, taken):
                    self.trouble = ""
                    return ended[0] if ended else None
            except KafkaException as exception:
                error: KafkaError = self._refused or exception.args[0]
                give_up = give_up or time.monotonic() + GIVE_UP_SECONDS
                if exception.args[0].fatal():
                    raise DeliveryError(self._explain(error)) from exception
                if error.code() in HOPELESS or time.monotonic() > give_up:
                    self._abort()
                    raise DeliveryError(self._explain(error)) from exception
                self.trouble = error.str()
                log.warning("a transaction is aborted and tried again: %s", error.str())
                time.sleep(0.1)
            self._abort()
            batches = taken = [batch for batch in taken if batch.era == self._era]

    def _attempt(self, batches: Iterable[_Batch], taken: list[_Batch]) -> bool:
        """One transaction with all the batches; False, and nothing committed, if some were discarded meanwhile."""
        self._refused = None
        self._began = time.monotonic()
        self._producer.begin_transaction()
        for batch in batches:
            self._produce(batch.outcome)
        began = time.monotonic()
        group = self.group
        # In this order: metadata of a later membership could commit batches of partitions that were lost before it.
        if any(batch.era != self._era for batch in taken):
            return False
        offsets = list({o.partition: o for batch in taken for o in batch.outcome.offsets}.values())  # the last of each
        patiently(lambda: self._producer.send_offsets_to_transaction(offsets, group, CALL_SECONDS), self._patience)
        self._settle(0)
        patiently(lambda: self._producer.commit_transaction(CALL_SECONDS), self._patience)
        self._observe(taken, time.monotonic() - began)
        return True

    def _produce(self, outcome: Outcome) -> None:
        topic, produce, report = self._settings.output_topic, self._producer.produce, self._report
        for answers in outcome.answers:
            with self.turn:
                for key, text, partition in answers.messages():
                    produce(topic, text, key, partition, report)
            self._settle(UNACKNOWLEDGED_LARGE if answers.large else UNACKNOWLEDGED)
        for dead in outcome.dead:
            origin = {"topic": self._settings.input_topic, "partition": dead.partition, "offset": dead.offset}
            about = {"reason": dead.reason, **origin, "bytes": len(dead.value or b"")}
            value = dead.value and dead.value[:DEAD_LETTER_BYTES]
            # librdkafka's queue holds 64 MiB: large letters wait until it is nearly empty.
            self._settle(UNACKNOWLEDGED if len(value or b"") < LARGE_BYTES else 500)
            headers: dict[str, str | bytes | None] = {name: str(text) for name, text in about.items()}
            produce(self._settings.dead_letter_topic, value, dead.key, on_delivery=report, headers=headers)

    def _settle(self, most: int) -> None:
        """Returns when at most so many messages are unacknowledged, or one is refused; all time out in the end."""
        while len(self._producer) > most and self._refused is None:
            with self.turn:  # confluent-kafka takes and gives up Python's lock for every message that is acknowledged
                self._producer.poll(0)
            time.sleep(0.002)

    def _report(self, error: KafkaError | None, _: object) -> None:
        if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._refused = error

    def _abort(self) -> None:
        self._metrics.transactions.labels("aborted").inc()
        try:
            patiently(lambda: self._producer.abort_transaction(CALL_SECONDS), self._patience)
        except KafkaException as exception:  # a new producer, after a restart, ends the transaction in any case
            raise DeliveryError(self._explain(self._refused or exception.args[0])) from exception

    def _explain(self, error: KafkaError) -> str:
        if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
            # Kafka fences a producer too whose transaction it has aborted because it took too long.
            if time.monotonic() - self._began > 0.9 * self._patience:
                return f"a transaction took longer than TRANSACTION_TIMEOUT_MS: {error.str()}"
            return f"another worker took over the id {self._settings.worker_id!r} (WORKER_ID): {error.str()}"
        topics = f"{self._settings.output_topic}, {self._settings.dead_letter_topic}"
        return f"answers cannot be written to {topics}: {error.str()}"

    def _observe(self, taken: list[_Batch], seconds: float) -> None:
        now = time.time()
        self._metrics.transactions.labels("committed").inc()
        self._metrics.commit.observe(seconds)
        for outcome in (batch.outcome for batch in taken):
            if outcome.snapshot:
                self._keep(outcome.snapshot)
            self._metrics.clicks.inc(outcome.answered)
            for oldest, clicks in outcome.written:
                self._metrics.latency.observe(np.array([now - oldest]), clicks)
            for dead in outcome.dead:
                self._metrics.dead.labels(reason_label(dead.reason)).inc()
