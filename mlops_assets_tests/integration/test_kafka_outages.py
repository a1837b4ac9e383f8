"""Kafka, a partition of it, or another worker's transaction stands still: workers wait, and go on by themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from mlops_assets.resources.kafka import LocalBroker
from mlops_assets_tests.inference.tiny_model import write_model
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import PARTITIONS, Message, Stream, Worker, click_lines, until
from mlops_assets_tests.integration.second_broker import SecondBroker, topic_on

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]
SHORT_SECONDS = 25
"""Long enough for a worker to give its transaction up."""
LONG_SECONDS = float(os.environ.get("MLOPS_TEST_OUTAGE_SECONDS", "120"))
"""Longer than any time-out of a worker; 600 is what is promised."""


def answered(workers: list[Worker]) -> float:
    return sum(worker.metric("inference_clicks_total") for worker in workers)


def shows(worker: Worker, ready: int) -> bool:
    return worker.get("/live")[0] == 200 and worker.get("/ready")[0] == ready


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path / "kafka") as broker:
        yield broker


@pytest.fixture
def own_stream(own_broker: LocalBroker, tmp_path: Path) -> Iterator[Stream]:
    clicks = Stream(own_broker, "clicks", write_model(tmp_path / "model"), tmp_path)
    yield clicks
    clicks.close()


@pytest.mark.timeout(int(LONG_SECONDS) + 600)
@pytest.mark.parametrize("seconds", [SHORT_SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.faults)])
def test_workers_live_through_an_outage_of_kafka_and_answer_after_it(
    own_broker: LocalBroker, own_stream: Stream, record_property: Callable[[str, object], None], seconds: float
) -> None:
    workers = [own_stream.worker(WORKER_ID=name).wait_ready() for name in "ab"]
    feeding = own_stream.feed(int(2_000 * (seconds + 15)), 2_000)
    until(lambda: answered(workers) > 5_000, 180, "answers")
    own_broker.stop()
    gone = time.monotonic()
    late = own_stream.worker(WORKER_ID="c")  # one that starts meanwhile, as when a node is replaced
    time.sleep(15)
    while time.monotonic() - gone < seconds:
        assert all(shows(worker, ready=503) for worker in [*workers, late])
        time.sleep(1)
    own_broker.start()
    back, before = time.monotonic(), answered(workers)
    until(lambda: answered([*workers, late]) > before, 180, "answers after the outage")
    record_property("seconds from Kafka's return to answers", round(time.monotonic() - back, 1))
    feeding.result()
    own_stream.judge()
    assert [worker.stop() for worker in [*workers, late]] == [0, 0, 0]


@pytest.mark.faults
def test_survivors_wait_for_the_open_offsets_of_a_lost_worker(stream: NewStream) -> None:
    """A node was lost between its offsets and its commit: Kafka says nothing of these offsets until that has ended."""
    clicks, lines = stream(), click_lines(6_000)
    clicks.produce(lines[:2_000])
    workers = [clicks.worker(WORKER_ID=name).wait_ready() for name in "ab"]
    until(lambda: answered(workers) == 2_000, 180, "answers")
    lost = Producer(clicks.client | {"transactional.id": "lost", "transaction.timeout.ms": 300_000})
    lost.init_transactions(30)
    lost.begin_transaction()
    lost.produce(clicks.topics[2], b"never seen")
    looker = Consumer(clicks.client | {"group.id": clicks.name})
    every = [TopicPartition(clicks.topics[0], number) for number in range(PARTITIONS)]
    lost.send_offsets_to_transaction(looker.committed(every, timeout=30), looker.consumer_group_metadata(), 30)
    workers.pop(0).kill()
    third = clicks.worker(WORKER_ID="c")
    clicks.produce(lines[2_000:])
    time.sleep(90)  # longer than any patience by the clock
    assert [worker.process.poll() for worker in (*workers, third)] == [None, None]
    assert sum(worker.metric("inference_partitions_waiting") for worker in (*workers, third)) == 6
    assert len(clicks.read(clicks.topics[1])) > 2_000  # what the survivor has is answered meanwhile
    lost.abort_transaction(30)
    clicks.judge()
    assert [worker.stop() for worker in (*workers, third)] == [0, 0]


@pytest.mark.faults
@pytest.mark.parametrize("which", ["input", "output"])
def test_a_partition_without_a_leader_stops_only_what_needs_it(
    own_broker: LocalBroker, own_stream: Stream, tmp_path: Path, which: str
) -> None:
    own_stream.produce(click_lines(100))
    own_stream.worker().wait_ready()  # and Kafka's own topics are on the first broker
    until(lambda: answered(own_stream.workers) == 100, 180, "answers")
    own_stream.workers[0].stop()
    with SecondBroker(tmp_path / "second", own_broker) as second:
        own_stream.topics = ("in", "out", "dead")
        for topic, partitions, kind in (("in", 12, "input"), ("out", 12, "output"), ("dead", 1, "")):
            topic_on(own_broker, topic, partitions, 5 if kind == which else -1)
        topics = {"INPUT_TOPIC": "in", "OUTPUT_TOPIC": "out", "DEAD_LETTER_TOPIC": "dead", "GROUP_ID": "leaderless"}
        lines: list[Message] = click_lines(30_000)
        own_stream.produce(lines[:10_000])
        workers = [own_stream.worker(WORKER_ID=name, **topics).wait_ready() for name in "ab"]
        until(lambda: answered(workers) == 10_000, 180, "answers")
        second.kill()
        bad = 5
        workers.append(own_stream.worker(WORKER_ID="c", **topics))  # so that partitions change hands meanwhile
        beside = 10_000
        if which == "input":  # the bad one too
            beside -= int(answered(workers[:2]))
            for worker in (workers.pop(0), workers.pop(0)):
                worker.kill()
        beside += sum(own_stream.partition_of(key) != bad for key, _ in lines[10_000:20_000])
        own_stream.send(lines[10_000:20_000])
        until(lambda: answered(workers) == beside, 240, f"{beside} answers beside the bad partition's")
        time.sleep(40)
        assert {worker.process.poll() for worker in workers} == {None}
        assert sum(worker.metric("inference_partitions_waiting") for worker in workers) == 1
        own_stream.send(lines[20_000:])
        beside += sum(own_stream.partition_of(key) != bad for key, _ in lines[20_000:])
        until(lambda: answered(workers) == beside, 180, "the others go on")
        second.start()
        own_stream.judge()
        assert {worker.stop() for worker in workers} == {0}
