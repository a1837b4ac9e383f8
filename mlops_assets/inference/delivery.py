"""Answers and offsets out to Kafka, exactly once: one transaction after another, in a thread of its own.

While a transaction is being acknowledged and committed (tens of milliseconds of waiting), the caller consumes, counts
and scores what the next ones will hold. Why each click is answered once:

- A transaction holds whole batches in the order of `put`, and of each partition the offset behind the last of them:
  answers and offsets become visible together or not at all. The batches that wait for the next one are in neither.
- Aborted: all its batches are produced again in the next attempt; they were computed once, so their counts are right.
- Kafka is away: attempts go on until it is back, with a new producer if Kafka has aborted the transaction meanwhile.
- One output partition is away: what goes there is forgotten, and read again from the committed offsets once it is
  back. The rest goes on under another id, since a transaction with that partition in it can't end before.
- Revoked: `drain` commits everything that was put before the partitions are given up; if that takes too long it is
  forgotten, and who takes over begins at the committed offsets. SIGTERM does the same.
- Lost: `forget`; an attempt that holds forgotten batches is aborted. If its commit is under way already, Kafka judges
  it by the membership with which the offsets were sent.
- Kafka did not say what became of a commit: its batches are forgotten too, since only the committed offsets can tell.
- Fenced, or killed: the transaction is aborted by whoever takes the id over, or by its timeout.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import CALL_SECONDS, passing, patiently
from mlops_assets.inference.metrics import Metrics, reason_label
from mlops_assets.inference.outcome import Outcome
from mlops_assets.inference.snapshots import Snapshot

log = logging.getLogger(__name__)

QUEUED_BATCHES: Final = 8
TRANSACTION_ANSWERS: Final = 100_000
UNACKNOWLEDGED: Final = 20_000  # messages within librdkafka: more would be memory, not speed
GIVE_UP_SECONDS: Final = 30  # on errors that are not known to pass
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


INFINITE: Final = float("inf")
FENCED: Final = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    outcome: Outcome
    more: bool


class Delivery:
    """Commits batches in the order of `put`."""

    def __init__(
        self,
        producer: Producer,
        renew: Callable[[bool], Producer],
        output: Callable[[int], int],
        settings: Settings,
        metrics: Metrics,
        keep: Callable[[Snapshot], None],
    ) -> None:
        """`renew` makes another producer, under another id if told so; `output` says where a partition's answers go;
        `keep` takes the snapshots that came with what is committed."""
        self._producer, self._renew, self._output, self._keep = producer, renew, output, keep
        self._settings, self._metrics = settings, metrics
        self._patience = settings.transaction_timeout_ms / 1_000  # then Kafka itself has aborted the transaction
        self.group: Any = None
        """The consumer group's metadata of the moment, which prove that its offsets may be committed."""
        # A batch; or an event to set as soon as everything before it is committed.
        self._queue: queue.Queue[_Batch | threading.Event] = queue.Queue()
        self.turn = threading.Lock()
        """Held by the thread that computes: two that both want Python pass its lock to and fro, all the time."""
        self._sending, self._sends, self._forgot_at = False, 0, 0
        self._number = 0
        self._forgotten: dict[int, float] = {}  # of each output partition: up to which batch what goes there
        self._began = self._give_up = 0.0
        self._committing = False
        self._refused: KafkaError | None = None
        self._unwritten: set[tuple[str, int]] = set()  # topics and partitions that didn't take everything
        self._error: BaseException | None = None
        self.trouble = ""
        """Why answers are not being committed right now; empty when they are."""
        threading.Thread(target=self._run, name="delivery", daemon=True).start()

    def put(self, outcome: Outcome, more: bool = False) -> None:
        """Takes a batch; `more` says that another one is about to come. Ask for `room` first."""
        self._number += 1
        self._queue.put(_Batch(self._number, outcome, more))

    def room(self, seconds: float) -> bool:
        """Whether a batch should be put, now or within some seconds. Raises DeliveryError if none ever can be again."""
        with self._queue.not_full:  # notified whenever something is taken
            free = self._queue.not_full.wait_for(lambda: len(self._queue.queue) < QUEUED_BATCHES, seconds)
        self.check()
        return free

    def drain(self, seconds: float) -> bool:
        """Whether within some seconds all that was put is committed. Raises DeliveryError if it never can be."""
        deadline, done = time.monotonic() + seconds, threading.Event()
        self._queue.put(done)
        while not done.wait(0.05):
            self.check()
            if time.monotonic() > deadline:
                return False
        return True

    @property
    def refused(self) -> list[int]:
        """The output partitions that do not take answers. They are given none until `forget` is called for them."""
        return [output for output, number in dict(self._forgotten).items() if number == INFINITE]

    def forget(self, outputs: Iterable[int]) -> None:
        """Forgets what was put and is not yet committed for some output partitions: it will be put again, or is
        somebody else's now."""
        self._forgotten |= dict.fromkeys(outputs, self._number)
        self._forgot_at = self._sends + self._sending

    @property
    def settled(self) -> bool:
        """Whether the committed offsets will tell of what was forgotten: none of its offsets are on their way, and for
        those that have arrived and are not yet committed Kafka lets others wait."""
        return self._sends >= self._forgot_at

    def check(self) -> None:
        """Raises DeliveryError once delivery has failed for good."""
        if self._error is not None:
            raise DeliveryError(str(self._error)) from self._error

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
        self._give_up, again = 0.0, False
        while True:
            try:
                if self._attempt(batches, taken):
                    break
                self._abort()
            except KafkaException as exception:
                self._recover(exception.args[0], taken, again)
                again = True
            batches = taken = [kept for batch in taken if (kept := self._kept(batch)).outcome.offsets]
            if not taken:
                break
        self.trouble = ""
        return ended[0] if ended else None

    def _kept(self, batch: _Batch) -> _Batch:
        """The batch without what is to be forgotten of it."""
        outputs = {output for output, number in dict(self._forgotten).items() if batch.number <= number}
        outcome = batch.outcome.without(outputs, self._output) if outputs else batch.outcome
        return batch if outcome is batch.outcome else replace(batch, outcome=outcome)

    def _attempt(self, batches: Iterable[_Batch], taken: list[_Batch]) -> bool:
        """One transaction with all the batches; False, and nothing committed, if some were discarded meanwhile."""
        self._refused, self._unwritten, self._committing = None, set(), False
        self._began = time.monotonic()
        self._producer.begin_transaction()
        for batch in batches:
            self._produce(batch.outcome)
        began = time.monotonic()
        offsets = list({o.partition: o for batch in taken for o in batch.outcome.offsets}.values())  # the last of each
        group = self.group
        # In this order: metadata of a later membership could commit batches of partitions that were lost before it.
        self._sending = True
        try:
            if any(self._kept(batch) is not batch for batch in taken):
                return False
            # Once only: after a time-out librdkafka does not take it up again.
            self._producer.send_offsets_to_transaction(offsets, group, self._patience)
        finally:
            self._sending, self._sends = False, self._sends + 1
        self._settle(0)
        if self._refused:
            raise KafkaException(self._refused)
        self._committing = True
        patiently(lambda: self._producer.commit_transaction(CALL_SECONDS), self._patience)
        self._observe(taken, time.monotonic() - began)
        return True

    def _produce(self, outcome: Outcome) -> None:
        topic, produce, report = self._settings.output_topic, self._producer.produce, self._report
        for answers in outcome.answers:
            with self.turn:
                for key, text, partition in answers.messages():
                    produce(topic, text, key, partition, report)
            self._settle(answers.unacknowledged)
        for dead in outcome.dead:
            origin = {"topic": self._settings.input_topic, "partition": dead.partition, "offset": dead.offset}
            about = {"reason": dead.reason, **origin, "bytes": len(dead.value or b"")}
            value = dead.value and dead.value[:DEAD_LETTER_BYTES]
            # librdkafka's queue holds 64 MiB: large letters wait until it is nearly empty.
            self._settle(UNACKNOWLEDGED if len(value or b"") < 1_000 else 500)
            headers: dict[str, str | bytes | None] = {name: str(text) for name, text in about.items()}
            produce(self._settings.dead_letter_topic, value, dead.key, on_delivery=report, headers=headers)

    def _settle(self, most: int) -> None:
        """Returns when at most so many messages are unacknowledged, or one is refused; all time out in the end."""
        while len(self._producer) > most and self._refused is None:
            with self.turn:  # confluent-kafka takes and gives up Python's lock for every message that is acknowledged
                self._producer.poll(0)
            time.sleep(0.002)

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            return
        self._unwritten.add((message.topic() or "", message.partition() or 0))
        if error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._refused = error

    def _recover(self, error: KafkaError, taken: list[_Batch], again: bool) -> None:
        """Makes way for another attempt, however long Kafka is away. Raises DeliveryError where that can't help."""
        cause = self._refused or error
        fenced = error if error.code() in FENCED else cause if cause.code() in FENCED else None
        self._give_up = self._give_up or time.monotonic() + GIVE_UP_SECONDS
        if passing(cause) or fenced:
            self._give_up = 0.0
        passes = time.monotonic() < (self._give_up or INFINITE)
        if cause.code() in HOPELESS or (fenced and not self._expired()) or not passes:
            with contextlib.suppress(KafkaException):  # a new producer, after a restart, ends it in any case
                self._producer.abort_transaction(CALL_SECONDS)
            raise DeliveryError(self._explain(fenced or cause))
        self.trouble = cause.str()
        log.warning("a transaction is aborted and tried again: %s", cause.str())
        time.sleep(0.1)
        bad = self._outputs(taken)
        if not self._committing:  # else only the committed offsets tell whether it was committed in the end
            bad &= self._bad(taken, again) if self._refused else set()
        self._forgotten |= dict.fromkeys(bad, INFINITE)
        self._abort(1 if bad else CALL_SECONDS)
        if bad:
            log.error("what goes to the output's partitions %s is set aside: %s", sorted(bad), cause.str())
            self._producer = self._renew(not self._committing)

    def _abort(self, seconds: float = CALL_SECONDS) -> None:
        self._metrics.transactions.labels("aborted").inc()
        try:
            self._producer.abort_transaction(seconds)
        except KafkaException:
            if seconds == CALL_SECONDS:
                self._producer = self._renew(False)

    def _outputs(self, taken: list[_Batch]) -> set[int]:
        """The output partitions of some batches."""
        return {self._output(where.partition) for batch in taken for where in batch.outcome.offsets}

    def _bad(self, taken: list[_Batch], again: bool) -> set[int]:
        """The output partitions without which the others can be written: none if all of Kafka is away."""
        self._producer.purge()
        self._producer.flush(1)  # so that all is reported that is not written
        bad = {number for topic, number in self._unwritten if topic == self._settings.output_topic}
        if any(topic == self._settings.dead_letter_topic for topic, _ in self._unwritten):
            bad |= {self._output(dead.partition) for batch in taken for dead in batch.outcome.dead}
        try:
            topics = self._producer.list_topics(timeout=2).topics
            leaders = [topics[topic].partitions[number].leader for topic, number in self._unwritten]
        except (KafkaException, KeyError):
            return set()
        return bad if again or min(leaders, default=0) < 0 else set()  # a slow Kafka times messages out too

    def _expired(self) -> bool:
        """Whether Kafka has aborted the transaction because it took too long, and fenced its producer for that."""
        return time.monotonic() - self._began > 0.9 * self._patience

    def _explain(self, error: KafkaError) -> str:
        if error.code() in FENCED:
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
