"""Producers that don't key by ip, as the original's doesn't: re-keyed, their clicks are answered as in batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from os import environ
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]
from kafka import KafkaProducer

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.clicks.csv import TEST_COLUMNS, parse
from mlops_assets.clicks.features import RunningCounts, features
from mlops_assets.inference.model import Model
from mlops_assets.resources.kafka_topics import create_topics
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import Stream, Worker, click_lines, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
CLICKS = 28_561


def original(clicks: Stream) -> KafkaProducer:
    """The original's producer: kafka-python over SASL_SSL."""
    env = clicks.broker.environment(secure=True)
    return KafkaProducer(
        bootstrap_servers=env["KAFKA_BOOTSTRAP_SERVERS"],
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=env["KAFKA_USERNAME"],
        sasl_plain_password=Path(env["KAFKA_PASSWORD_FILE"]).read_text(),
        ssl_cafile=env["KAFKA_CA_FILE"],
        max_block_ms=180_000,
    )


def rekeyer(clicks: Stream, **changes: str) -> Worker:
    port, log = free_port(), clicks.scratch / f"rekey-{len(clicks.workers)}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "mlops_assets.inference.rekey"]
        env = {**environ, **clicks.environment(METRICS_PORT=str(port)), **changes}
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    clicks.workers.append(Worker("rekey", process, port, log))
    return clicks.workers[-1]


def expected(lines: list[bytes], model: Path) -> dict[int, float]:
    """The batch job's answers: the clicks in the order in which they were sent."""
    parsed = parse(b"\n".join(lines), TEST_COLUMNS).clicks
    assert parsed.click_id is not None
    probability = Model.load(model).probability(features(parsed, RunningCounts().count(parsed)))
    return dict(zip(parsed.click_id.tolist(), probability.tolist(), strict=True))


def test_clicks_without_a_key_are_answered_as_by_the_batch_job(stream: NewStream) -> None:
    clicks = stream(secure=True)
    setting = {"REKEY_TOPIC": f"{clicks.name}.by-ip", "DEAD_LETTER_TOPIC": clicks.topics[2]}
    setting["REKEY_LINGER_MS"] = "5000"  # a busy machine reads no partition for seconds
    create_topics(clicks.client, {setting["REKEY_TOPIC"]: 12})
    lines = [line or b"" for _, line in click_lines(CLICKS)]
    producer = original(clicks)
    for line in lines[:10_000]:
        producer.send(clicks.topics[0], line)
    producer.flush()
    steps = [rekeyer(clicks, **setting)]
    worker = clicks.worker(**setting).wait_ready()
    until(lambda: steps[0].metric("rekey_clicks_total") > 0, 180, "clicks are passed on")
    for line in lines[10_000:15_000]:
        producer.send(clicks.topics[0], line)
    steps[0].kill()
    producer.send(clicks.topics[0], b"garbage")
    steps.append(rekeyer(clicks, **setting))
    admin = AdminClient(clicks.client)
    admin.create_partitions([NewPartitions(clicks.topics[0], 15)])[clicks.topics[0]].result(30)
    producer.close()
    producer = original(clicks)  # which knows of the new partitions
    for line in lines[15_000:]:
        producer.send(clicks.topics[0], line)
    producer.close()
    found = clicks.read(clicks.topics[1], CLICKS, 200)
    assert {message.partition() for message in clicks.read(clicks.topics[0])} == set(range(15))
    answers = {int(message.key()): json.loads(message.value())["probability"] for message in found}
    batch = expected(lines, clicks.model)
    assert Counter(int(message.key()) for message in found) == Counter(batch.keys())
    np.testing.assert_allclose([answers[number] for number in batch], list(batch.values()), rtol=0, atol=2e-8)
    assert len(clicks.read(clicks.topics[2], 1)) == 1
    assert worker.metric("inference_misplaced_clicks_total") == 0
    assert [steps[1].stop(), worker.stop()] == [0, 0]


def test_partitions_that_are_added_to_the_input_are_said(stream: NewStream) -> None:
    clicks = stream()
    worker = clicks.worker().wait_ready()
    admin = AdminClient(clicks.client)
    admin.create_partitions([NewPartitions(clicks.topics[0], 15)])[clicks.topics[0]].result(30)
    until(lambda: worker.metric("inference_partitions_added_total") == 3, 90, "the new partitions are counted")
    assert "has 15 partitions instead of 12" in worker.log.read_text()
    clicks.produce(click_lines(1_000))
    until(lambda: worker.metric("inference_clicks_total") == 1_000, 90, "theirs are answered too")


def test_two_steps_are_not_ready_since_their_order_is_lost(stream: NewStream) -> None:
    clicks = stream()
    setting = {"REKEY_TOPIC": clicks.topics[1]}
    steps = [rekeyer(clicks, **setting).wait_ready(), rekeyer(clicks, **setting)]
    until(lambda: all(step.get("/ready")[0] == 503 for step in steps), 60, "neither is ready")
    assert "run one re-keying step" in steps[0].get("/ready")[1]
    assert steps.pop().stop() == 0
    steps[0].wait_ready()
    assert steps[0].stop() == 0


def test_a_step_without_its_topic_says_so(stream: NewStream) -> None:
    clicks = stream()
    step = rekeyer(clicks)
    assert step.process.wait(60) == 2
    assert "REKEY_TOPIC is not set" in step.log.read_text()
