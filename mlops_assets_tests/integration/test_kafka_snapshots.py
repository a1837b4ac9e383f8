"""Snapshots of the counts on a real Kafka: used when they are right, and never in the way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from mlops_assets.inference import snapshots as module
from mlops_assets.inference.config import Settings
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.snapshots import Snapshot, Snapshots
from mlops_assets_tests.inference.test_partition import MONDAY, feed
from mlops_assets_tests.inference.test_partition import clicks as clicks_of
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import PARTITIONS, Message, Stream, click_lines, until

pytestmark = pytest.mark.kafka

CLICKS = 60_000
WRITTEN = 'inference_snapshots_total{outcome="written"}'
LOADED = 'inference_snapshots_total{outcome="loaded"}'
REFUSED = 'inference_snapshots_total{outcome="refused"}'


def answer(clicks: Stream, **changes: str) -> list[Message]:
    """Has most of the clicks answered and a snapshot of each partition written, and kills the worker; the rest."""
    lines, begin = click_lines(CLICKS), CLICKS // 2
    clicks.produce(lines[:begin])
    worker = clicks.worker(SNAPSHOT_SECONDS="1", **changes).wait_ready()
    # A snapshot a second is written, with the batches that come.
    while worker.metric(WRITTEN) < PARTITIONS:
        clicks.produce(lines[begin : begin + 200])
        begin += 200
        time.sleep(0.2)
    until(lambda: worker.metric("inference_clicks_total") == begin, 60, "all answers")
    worker.kill()
    assert begin < CLICKS
    return lines[begin:]


def kept(clicks: Stream) -> dict[bytes, Any]:
    """The messages of the snapshots' topic that are not deleted, by key."""
    messages = {message.key(): message for message in clicks.read(f"{clicks.name}.snapshots")}
    return {key: message for key, message in messages.items() if message.value() is not None}


@pytest.mark.parametrize("secure", [False, True])
def test_a_killed_worker_s_counts_are_taken_from_its_snapshots(stream: NewStream, secure: bool) -> None:
    clicks = stream(secure=secure)
    clicks.produce(answer(clicks))
    second = clicks.worker(SNAPSHOT_SECONDS="1").wait_ready()
    clicks.judge()
    assert second.metric(LOADED) >= PARTITIONS / 2  # of some a new day began since: that is read instead
    assert second.metric(REFUSED) == 0
    assert second.metric("inference_replayed_total") < CLICKS / 3
    # It is compacted, and what was superseded is deleted.
    topic = f"{clicks.name}.snapshots"
    admin = AdminClient(clicks.client)
    resource = ConfigResource(ResourceType.TOPIC, topic)
    assert "compact" in admin.describe_configs([resource])[resource].result(30)["cleanup.policy"].value
    assert len({key.rsplit(b"/", 1)[0] for key in kept(clicks)}) <= PARTITIONS + 1


def test_snapshots_larger_than_the_readers_queue_are_loaded_whole(
    stream: NewStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four partitions of a million keys. How long it takes is a benchmark's: make bench-recovery."""
    monkeypatch.setattr(module, "LOAD_SECONDS", 120)
    settings = Settings.from_environment(stream(secure=True).environment())
    whole = Partition(0, 0)
    for begin in range(0, 200_000, 50_000):
        ips = np.arange(begin, begin + 50_000)
        feed(whole, clicks_of(np.full(len(ips), MONDAY + 3_600), ips), begin)
    writer = Snapshots(settings, Metrics("1", "none"))
    until(writer._meet, 30, "the topic")
    producer, numbers = Producer(settings.kafka.client()), range(4)
    for number in 3 * [*numbers]:  # what was superseded lies before the newest until it is compacted
        writer._write(producer, Snapshot(number, writer._topic_id, whole.position, whole.save()))
    with Snapshots(settings, Metrics("1", "none")).reading() as newest:
        found = [newest(TopicPartition(settings.input_topic, number, whole.position)) for number in numbers]
    assert [each and len(each) for each in found] == [len(whole)] * len(numbers)
