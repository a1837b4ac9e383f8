"""When answers are committed, and which of them together, with a producer that does nothing."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from mlops_assets.inference.config import Settings
from mlops_assets.inference.delivery import Delivery
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.outcome import Outcome
from mlops_assets.inference.scoring import Answers


class FakeProducer:
    """Keeps the keys of each transaction; `gate` holds a commit up."""

    def __init__(self) -> None:
        self.transactions: list[list[bytes]] = []
        self.committed: list[list[bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.changed = threading.Condition()

    def begin_transaction(self) -> None:
        with self.changed:
            self.transactions.append([])

    def produce(self, _topic: str, _text: bytes, key: bytes, _partition: int, _report: Any) -> None:
        self.transactions[-1].append(key)

    def send_offsets_to_transaction(self, _offsets: Any, _group: Any, _seconds: float) -> None:
        pass

    def commit_transaction(self, _seconds: float) -> None:
        assert self.gate.wait(30)
        with self.changed:
            self.committed.append(self.transactions[-1])
            self.changed.notify_all()

    def __len__(self) -> int:
        return 0

    def until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 5), self.committed


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def delivery(producer: FakeProducer) -> Delivery:
    """A delivery whose transactions may grow for longer than any test waits."""
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": "localhost:1",
        "COMMIT_INTERVAL_MS": "10000",
        "TRANSACTION_TIMEOUT_MS": "60000",
    }
    settings, metrics = Settings.from_environment(env), Metrics("1", "none")
    return Delivery(
        producer,  # type: ignore[arg-type]
        lambda _: producer,  # type: ignore[arg-type, return-value]
        lambda number: number,
        settings,
        metrics,
        lambda _: None,
    )


def batch(number: int) -> Outcome:
    key = np.array([f"{number}"], "S")
    offsets = [TopicPartition("input", 0, number)]
    return Outcome(offsets, [], [Answers(key, key, np.zeros(1, np.uint16))], [])


def test_a_batch_with_nothing_behind_it_is_committed_at_once(producer: FakeProducer, delivery: Delivery) -> None:
    delivery.put(batch(1))
    producer.until(lambda: producer.committed == [[b"1"]])


def test_what_comes_while_a_commit_is_under_way_is_committed_together(
    producer: FakeProducer, delivery: Delivery
) -> None:
    producer.gate.clear()
    for number in range(1, 6):
        delivery.put(batch(number))
        if number == 1:
            threading.Event().wait(0.1)  # the first is in its commit
    producer.gate.set()
    producer.until(lambda: len(producer.committed) >= 2)
    assert producer.committed == [[b"1"], [b"2", b"3", b"4", b"5"]]


def test_a_transaction_grows_while_there_is_a_backlog(producer: FakeProducer, delivery: Delivery) -> None:
    for number in range(1, 4):
        delivery.put(batch(number), more=number < 3)
        threading.Event().wait(0.05)
    producer.until(lambda: bool(producer.committed))
    assert producer.committed == [[b"1", b"2", b"3"]]


class BrokenProducer(FakeProducer):
    """Fails as `errors` says, by what is called; takes nothing for the partitions in `away`."""

    def __init__(self, **errors: list[KafkaError]) -> None:
        super().__init__()
        self.errors, self.away = errors, set[int]()
        self.unwritten: list[tuple[int, Any]] = []

    def fail(self, call: str) -> None:
        if self.errors.get(call):
            raise KafkaException(self.errors[call].pop(0))

    def produce(self, topic: str, text: bytes, key: bytes, partition: int, report: Any) -> None:
        super().produce(topic, text, key, partition, report)
        if partition in self.away:
            self.unwritten.append((partition, report))

    def poll(self, _seconds: float) -> None:
        while self.unwritten:
            number, report = self.unwritten.pop()
            message = mock.Mock(**{"topic.return_value": "predictions", "partition.return_value": number})
            report(KafkaError(KafkaError._MSG_TIMED_OUT), message)

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self.fail("offsets")

    def commit_transaction(self, seconds: float) -> None:
        self.fail("commit")
        super().commit_transaction(seconds)

    def abort_transaction(self, _seconds: float) -> None:
        self.fail("abort")

    def purge(self) -> None:
        pass

    def flush(self, _seconds: float) -> int:
        return 0

    def list_topics(self, timeout: float) -> Any:
        self.fail("list")
        return SimpleNamespace(topics={"predictions": SimpleNamespace(partitions={7: SimpleNamespace(leader=-1)})})

    def __len__(self) -> int:
        return len(self.unwritten)


def deliver(first: BrokenProducer, second: BrokenProducer) -> tuple[Delivery, list[bool]]:
    """A delivery that is given the second producer once the first is of no use; and for what."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"})
    renewed: list[bool] = []

    def renew(other_id: bool) -> Any:
        renewed.append(other_id)
        return second

    producer: Any = first
    return Delivery(producer, renew, lambda number: number, settings, Metrics("1", "none"), lambda _: None), renewed


def outcome(*numbers: int) -> Outcome:
    """An answer each to clicks of some partitions, which go to the partition of the same number."""
    keys = np.array([f"{number}" for number in numbers], "S")
    offsets = [TopicPartition("input", number, 1) for number in numbers]
    return Outcome(offsets, [(0.0, 1)] * len(numbers), [Answers(keys, keys, np.array(numbers, np.uint16))], [])


AWAY = [KafkaError(KafkaError._TIMED_OUT)]


def test_while_kafka_is_away_batches_are_kept_and_then_committed_once_by_a_new_producer() -> None:
    gone = BrokenProducer(offsets=AWAY[:], abort=AWAY[:], list=AWAY[:])
    back = BrokenProducer()
    delivery, renewed = deliver(gone, back)
    delivery.put(outcome(1, 2))
    back.until(lambda: back.committed == [[b"1", b"2"]])
    assert (gone.committed, renewed, delivery.refused) == ([], [False], [])
    assert delivery.drain(5)
    assert not delivery.trouble


def test_what_a_commit_without_an_answer_held_is_not_written_again() -> None:
    gone = BrokenProducer(commit=[KafkaError(KafkaError._FAIL)])
    back = BrokenProducer()
    delivery, renewed = deliver(gone, back)
    delivery.put(outcome(1, 2))
    assert delivery.drain(5)
    assert (sorted(delivery.refused), renewed) == ([1, 2], [False])
    delivery.put(outcome(1, 3))  # read before that was known
    back.until(lambda: back.committed == [[b"3"]])
    delivery.forget([1, 2])  # to be begun again, at the committed offsets
    delivery.put(outcome(1))
    back.until(lambda: back.committed == [[b"3"], [b"1"]])
    assert delivery.refused == []


def test_a_partition_that_takes_no_answers_holds_up_no_others() -> None:
    first, second = BrokenProducer(), BrokenProducer()
    first.away = {7}
    delivery, renewed = deliver(first, second)
    delivery.put(outcome(1, 7, 2))
    second.until(lambda: second.committed == [[b"1", b"2"]])
    assert (delivery.refused, renewed) == ([7], [True])  # the old id is held up by the transaction with 7 in it
    assert delivery.settled
