"""What the watcher says waits to be answered, while clicks come and are answered all the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from mlops_assets.cli.watch import Watch

PARTITIONS = 12


class BusyKafka:
    """Between any two questions 1,000 clicks arrive in each partition; all but the last 20 are answered."""

    def __init__(self) -> None:
        self.end = 50_000

    def get_watermark_offsets(self, _where: TopicPartition, timeout: float) -> tuple[int, int]:
        self.end += 1_000
        return 0, self.end

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.end += 1_000
        return [TopicPartition(where.topic, where.partition, self.end - 20) for where in partitions]


@pytest.fixture
def watch() -> Watch:
    watching = Watch.__new__(Watch)
    consumer: Any = BusyKafka()
    watching._consumer = consumer
    watching._input = [TopicPartition("input", number) for number in range(PARTITIONS)]
    watching._settings = SimpleNamespace()  # type: ignore[assignment]
    return watching


def test_clicks_that_come_while_the_watcher_asks_do_not_wait(watch: Watch) -> None:
    assert watch._lag() == 0


def test_clicks_that_nobody_answers_wait(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = [TopicPartition("input", number, 40_000 if number else -1_001) for number in range(PARTITIONS)]
    monkeypatch.setattr(watch._consumer, "committed", lambda *_, **__: committed)
    ends = sum(range(51_000, 51_000 + 1_000 * PARTITIONS, 1_000))
    assert watch._lag() == ends - 40_000 * (PARTITIONS - 1)
