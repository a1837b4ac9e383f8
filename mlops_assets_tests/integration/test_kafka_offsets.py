"""What Kafka no longer holds is said, and nothing is answered twice for it."""

from __future__ import annotations

from collections import Counter

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from mlops_assets.resources.kafka_topics import create_topics
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import PARTITIONS, Stream, click_lines, run_once, until

pytestmark = pytest.mark.kafka


def answer(clicks: Stream, n: int) -> None:
    """Has n clicks answered, and the worker stopped."""
    clicks.produce(click_lines(n))
    worker = clicks.worker().wait_ready()
    until(lambda: worker.metric("inference_clicks_total") == n, 60, "all answers")
    assert worker.stop() == 0


def test_clicks_that_were_deleted_unanswered_are_said_to_be_lost(stream: NewStream) -> None:
    clicks = stream()
    answer(clicks, 6_000)
    ends = Counter(message.partition() for message in clicks.read(clicks.topics[0]))
    clicks.produce(click_lines(6_000, seed=2, first_id=6_000))
    admin = AdminClient(clicks.client)
    cut = [TopicPartition(clicks.topics[0], number, ends[number] + 10) for number in range(PARTITIONS)]
    for future in admin.delete_records(cut).values():
        future.result(30)
    worker = clicks.worker().wait_ready()
    until(lambda: worker.metric("inference_clicks_total") == 6_000 - 10 * PARTITIONS, 60, "what is left is answered")
    assert worker.metric("inference_lost_messages_total") == 10 * PARTITIONS
    assert worker.metric("inference_short_replays_total") == PARTITIONS
    assert "10 messages from offset" in worker.log.read_text()
    answered = Counter(message.key() for message in clicks.read(clicks.topics[1], 12_000 - 10 * PARTITIONS))
    assert set(answered.values()) == {1}


def test_no_log_is_answered_again_from_its_beginning_without_being_told_to(stream: NewStream) -> None:
    clicks = stream()
    answer(clicks, 2_000)
    admin = AdminClient(clicks.client)
    for future in admin.delete_consumer_groups([clicks.name]).values():  # as when the offsets expire
        future.result(30)
    status, log = run_once(clicks)
    assert status == 1
    assert "no offset is committed" in log
    assert "START_FROM=earliest" in log
    assert len(clicks.read(clicks.topics[1])) == 2_000
    worker = clicks.worker(START_FROM="latest").wait_ready()
    clicks.produce(click_lines(1_000, seed=2, first_id=2_000))
    answered = Counter(int(message.key()) for message in clicks.read(clicks.topics[1], 3_000))
    assert answered == Counter(range(3_000))
    assert worker.stop() == 0


def test_a_topic_that_was_made_anew_is_not_read_before_somebody_says_from_where(stream: NewStream) -> None:
    clicks = stream()
    answer(clicks, 2_000)
    admin = AdminClient(clicks.client)
    for future in admin.delete_topics([clicks.topics[0]]).values():
        future.result(30)
    until(lambda: clicks.topics[0] not in admin.list_topics(timeout=10).topics, 30, "the topic is gone")
    create_topics(clicks.client, {clicks.topics[0]: PARTITIONS})
    status, log = run_once(clicks)
    assert status == 1
    assert "say where to begin: START_FROM=earliest (offset 0) or START_FROM=latest (0)" in log
