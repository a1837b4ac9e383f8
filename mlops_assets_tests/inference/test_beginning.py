"""Where a partition begins to be read, by what Kafka tells."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import TopicPartition

from mlops_assets.inference.beginning import begin
from mlops_assets.inference.config import Settings
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition

LOW, HIGH = 100, 9_000


class Log:
    """A consumer of one partition."""

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return LOW, HIGH


def begun(metadata: str, offset: int = 5_000, saved: Partition | None = None) -> Partition:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": "nowhere:1"})
    log: Any = Log()
    where = TopicPartition("input", 0, offset, metadata=metadata)
    return begin(log, where, settings, 0, Metrics("1", "none"), saved)


def test_counts_are_rebuilt_from_where_the_committed_offset_says() -> None:
    assert (begun("3000").position, begun("3000").first) == (3_000, 5_000)


@pytest.mark.parametrize("metadata", ["", "set by hand", "3000 what a later version adds"])
def test_where_the_offset_does_not_say_all_that_the_log_holds_is_counted_again(
    metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever sets the group back by an hour would get answers without the clicks before, until midnight."""
    partition = begun(metadata)
    assert (partition.position, partition.first) == (LOW, 5_000)
    assert "all is counted from offset 100 on" in caplog.text
    saved = Partition(4_000, 5_000)
    assert begun(metadata, saved=saved) is saved
