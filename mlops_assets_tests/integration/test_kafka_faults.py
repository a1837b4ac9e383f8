"""The long fault tests: 200,000 clicks under everything that breaks in production."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_settings import make_certificate
from mlops_assets_tests.inference.tiny_model import write_model
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import Stream, click_lines, run_once, until

pytestmark = [pytest.mark.kafka, pytest.mark.faults]
CLICKS = 200_000


def test_kills_at_random_moments_under_a_supervisor(stream: NewStream) -> None:
    clicks, random = stream(), np.random.default_rng()
    names, often = ["a", "b", "c"], {"SNAPSHOT_SECONDS": "1"}
    workers = {name: clicks.worker(WORKER_ID=name, **often) for name in names}
    for worker in workers.values():
        worker.wait_ready()
    feeding = clicks.feed(CLICKS)
    while not feeding.done():
        time.sleep(random.uniform(0.2, 3))
        name = names[random.integers(3)]
        workers[name].kill()
        workers[name] = clicks.worker(WORKER_ID=name, **often)
    clicks.judge()
    if not any("from its snapshot" in worker.log.read_text() for worker in clicks.workers):
        pytest.skip("right, but this machine is too slow for a snapshot between two kills")


def test_rebalances_under_load_skip_no_click(stream: NewStream) -> None:
    """A partition that changes hands is read from its committed offset on: a consumer that jumps to the end of a log
    leaves no error and no backlog, only clicks that nobody has answered."""
    clicks = stream()
    stay = [clicks.worker(WORKER_ID=name).wait_ready() for name in "ab"]
    rounds, per_second = 8, 2_000
    feeding = clicks.feed(rounds * 8 * per_second, per_second)
    while not feeding.done():
        come = [clicks.worker() for _ in range(3)]
        for worker in come:
            until(lambda: worker.metric("inference_partitions") > 0, 60, "it has partitions")  # noqa: B023 - called here
        for worker in come:
            worker.stop()
    clicks.judge()
    assert [worker.process.poll() for worker in stay] == [None, None]


def test_a_broker_that_stops_and_one_that_crashes_in_mid_stream(tmp_path: Path) -> None:
    with LocalBroker(tmp_path / "kafka") as broker:
        clicks = Stream(broker, "restarts", write_model(tmp_path / "model"), tmp_path)
        try:
            clicks.supervised = [clicks.worker(WORKER_ID=name).wait_ready() for name in "ab"]
            feeding = clicks.feed(CLICKS)
            time.sleep(3)
            broker.stop()
            time.sleep(2)
            broker.start()
            time.sleep(6)
            broker.kill()
            time.sleep(4)
            broker.start()
            feeding.result()
            clicks.judge()
        finally:
            clicks.close()


def test_a_worker_that_sleeps_through_its_session_answers_nothing_twice(stream: NewStream) -> None:
    clicks = stream()
    clicks.supervised = [clicks.worker(WORKER_ID=name).wait_ready() for name in "ab"]
    first, second = clicks.supervised
    feeding = clicks.feed(CLICKS)
    time.sleep(3)
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: second.metric("inference_partitions") == 12, 40, "the other takes over")
    time.sleep(2)
    first.process.send_signal(signal.SIGCONT)
    feeding.result()
    clicks.judge()


def test_a_second_worker_of_the_same_id_ends_the_first(stream: NewStream) -> None:
    clicks = stream()
    first = clicks.worker(WORKER_ID="twin").wait_ready()
    feeding = clicks.feed(CLICKS // 2)
    time.sleep(2)
    clicks.worker(WORKER_ID="twin")
    assert first.process.wait(60) == 1
    assert "another worker took over the id 'twin'" in first.log.read_text()
    feeding.result()
    clicks.judge()


def test_a_topic_that_may_not_be_written_stops_the_worker_and_loses_nothing(stream: NewStream) -> None:
    clicks = stream(secure=True)
    clicks.produce(click_lines(20_000))
    admin = AdminClient(clicks.client)
    topic = (ResourceType.TOPIC, clicks.topics[1], ResourcePatternType.LITERAL, "User:mlops", "*")
    forbidden = (*topic, AclOperation.WRITE, AclPermissionType.DENY)
    rest = AclBinding(*topic, AclOperation.ALL, AclPermissionType.ALLOW)
    for future in admin.create_acls([AclBinding(*forbidden), rest]).values():
        future.result(30)
    status, log = run_once(clicks)
    assert status == 1
    assert f"answers cannot be written to {clicks.topics[1]}" in log
    assert "Topic authorization failed" in log
    assert not clicks.read(clicks.topics[1])
    for found in admin.delete_acls([AclBindingFilter(*forbidden)]).values():
        found.result(30)
    clicks.worker()
    clicks.judge()


def test_an_expired_certificate_is_refused_with_the_reason(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "kafka")
    broker.start()
    broker.stop()
    make_certificate(tmp_path / "kafka" / "broker.p12", broker.ca_file, broker.password_file.read_text(), 1, "-3d")
    with broker:
        clicks = Stream(broker, "expired", write_model(tmp_path / "model"), tmp_path, secure=True)
        status, log = run_once(clicks)
        assert status == 2
        assert "expired on" in log
        # A bundle that also holds a valid authority passes the check at start: then the connection itself must fail.
        make_certificate(tmp_path / "other.p12", tmp_path / "other.pem", "password")
        bundle = tmp_path / "bundle.pem"
        bundle.write_text(broker.ca_file.read_text() + (tmp_path / "other.pem").read_text())
        status, log = run_once(clicks, KAFKA_CA_FILE=os.fspath(bundle))
        assert status == 1
        assert "certificate" in log
