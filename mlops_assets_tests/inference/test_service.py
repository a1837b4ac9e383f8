"""What a worker does with what Kafka gives it, without a Kafka."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from mlops_assets.inference.config import Settings
from mlops_assets.inference.connection import ServiceError, patiently
from mlops_assets.inference.delivery import Delivery
from mlops_assets.inference.model import Model
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.service import Service
from mlops_assets_tests.inference.tiny_model import write_model


@pytest.fixture
def service(tmp_path: Path) -> Service:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"})
    return Service(settings, Model.load(write_model(tmp_path / "model")))


def message(offset: int, value: bytes | None = None) -> Any:
    """A message that was written at `offset` seconds."""
    line = b"%d,7,3,1,13,379,2017-11-10 04:00:00" % offset
    return SimpleNamespace(
        offset=lambda: offset,
        value=lambda: value or line,
        key=lambda: b"7",
        partition=lambda: 0,
        timestamp=lambda: (1, 1_000 * offset),
    )


@pytest.fixture(autouse=True)
def plain_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mlops_assets.inference.service.Message", SimpleNamespace(value=lambda message: message.value())
    )


def test_latency_is_that_of_the_oldest_new_click(service: Service) -> None:
    service._partitions[0] = Partition(0, 5)
    outcome = service._score({0: [message(offset) for offset in range(10)]})
    assert outcome.written == [(5.0, 5)]


def test_a_garbage_line_is_dead_lettered_when_it_is_new_and_not_when_it_is_counted_again(service: Service) -> None:
    service._partitions[0] = Partition(0, 5)
    run = [message(offset, b"garbage" if offset in (2, 7) else None) for offset in range(10)]
    assert [dead.offset for dead in service._score({0: run}).dead] == [7]


@pytest.mark.parametrize(("key", "wrong"), [(b"7", 0), (None, 1), (b"123", 1), (b"", 1)])
def test_clicks_that_are_not_keyed_by_their_ip_are_counted_and_said(
    service: Service, key: bytes | None, wrong: int, caplog: pytest.LogCaptureFixture
) -> None:
    service._partitions[0] = Partition(0, 0)
    for begin in (0, 20):
        run = [message(offset) for offset in range(begin, begin + 20)]
        for each in run:
            each.key, each.partition = (lambda: key), (lambda: 0)
        service._score({0: run})
    assert service.metrics.registry.get_sample_value("inference_misplaced_clicks_total") == 4 * wrong
    assert caplog.text.count("and not the click's ip") == wrong


def test_a_partition_that_goes_back_is_not_answered_again(service: Service) -> None:
    service._partitions[0] = Partition(0, 0)
    service._score({0: [message(offset) for offset in range(10)]})
    with pytest.raises(ServiceError, match="partition 0 went back from offset 10 to 4"):
        service._score({0: [message(offset) for offset in range(4, 12)]})


def test_a_worker_that_lost_its_membership_is_not_ready(service: Service) -> None:
    service._delivery = SimpleNamespace(discard=lambda: None, trouble="")  # type: ignore[assignment]
    service._joined = time.monotonic() - 100
    assert service.ready()[0]
    service._lost(None, [])  # type: ignore[arg-type]
    assert service.ready() == (False, "not a member of the group ")


@pytest.mark.parametrize("code", ["_TIMED_OUT", "_TRANSPORT", "LEADER_NOT_AVAILABLE", "UNSTABLE_OFFSET_COMMIT"])
def test_what_passes_is_waited_for(code: str) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise KafkaException(KafkaError(getattr(KafkaError, code)))

    patiently(call, 10)
    assert len(calls) == 3


def test_what_does_not_pass_is_said_at_once() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    with pytest.raises(KafkaException):
        patiently(call, 10)
    assert len(calls) == 1


def test_a_transaction_that_took_too_long_is_no_take_over(service: Service) -> None:
    delivery = Delivery.__new__(Delivery)
    delivery._settings, delivery._patience, delivery._began = service._settings, 10, time.monotonic()
    fenced = KafkaError(KafkaError.INVALID_PRODUCER_EPOCH)
    assert "another worker took over" in delivery._explain(fenced)
    delivery._began -= 11
    assert "took longer than TRANSACTION_TIMEOUT_MS" in delivery._explain(fenced)
