"""When answers are committed, and which of them together, with a producer that does nothing."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TopicPartition

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
    settings = Settings.from_environment(env)
    return Delivery(producer, settings, Metrics("1", "none"), lambda _: None)  # type: ignore[arg-type]


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
