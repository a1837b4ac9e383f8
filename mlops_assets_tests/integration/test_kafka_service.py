"""The service on a real Kafka: every click answered exactly once, with the probability computed offline."""

from __future__ import annotations

import json
import re
import time

import pytest

from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import click_lines, run_once, until, with_wrong_clocks

pytestmark = pytest.mark.kafka

GARBAGE: dict[bytes | None, str] = {
    b"click_id,ip,app,device,os,channel,click_time": "click_id is not a whole number of at most 18 digits",
    b"\xff\xfe\x00\x01": "1 fields instead of 7",
    b"x" * 1_000_000: "1 fields instead of 7",
    b"900001,4294967296,3,1,13,379,2017-11-10 04:00:00": "ip is not a whole number from 0 to 4294967295",
    b"900002,7,65536,1,13,379,2017-11-10 04:00:00": "app is not a whole number from 0 to 65535",
    b"900003,7,3,1,13,379,10/11/2017 04:00": "click_time is not a time like 2017-11-06 14:32:21",
    b"1,2,3\n4,5,6": "more than one line",
    b'{"click_id": 900004}': "JSON without a usable ip",
    b"": "empty line",
    None: "no value",
}


def test_garbage_is_dead_lettered_and_everything_else_answered_over_tls(stream: NewStream) -> None:
    clicks = stream(secure=True)
    lines = click_lines(20_000)
    clicks.produce([*lines[:9_000], *((b"garbage", value) for value in GARBAGE), *lines[9_000:]])
    worker = clicks.worker().wait_ready()
    clicks.judge(GARBAGE)
    assert worker.get("/live")[0] == 200
    assert "model tiny-1" in worker.get("/ready")[1]
    assert worker.metric("inference_clicks_total") == 20_000
    assert worker.metric('inference_dead_letters_total{reason="ip is not a whole number from N to N"}') == 1
    assert worker.metric("inference_partitions") == 12
    assert worker.metric("inference_late_clicks_total") == 0
    assert worker.metric("inference_latency_seconds_count") == 20_000
    assert worker.metric("inference_probability_count") == 20_000
    assert worker.metric('inference_model{algorithm="tiny",version="tiny-1"}') == 1
    assert 0 < worker.metric("inference_count_keys") < 20_000 * 6
    assert worker.stop() == 0
    assert "all that was read is answered" in worker.log.read_text()


def test_wrong_clocks_change_no_other_ips_answers_and_hold_back_no_replay(stream: NewStream) -> None:
    clicks = stream()
    lines, wrong = with_wrong_clocks(click_lines(120_000))
    clicks.produce(lines[:80_000])
    first = clicks.worker().wait_ready()
    until(lambda: first.metric("inference_clicks_total") == 80_000, 90, "80,000 answers")
    flagged = [first.metric(f"inference_{what}_clicks_total") for what in ("ahead", "late")]
    first.kill()
    clicks.produce(lines[80_000:])
    second = clicks.worker().wait_ready()
    clicks.judge(wrong=wrong)
    assert flagged[0] > 0.7 * len([number for number in wrong if number < 80_000])
    assert flagged[1] == 0
    # The day began behind the first 60,000 of the clicks.
    assert 0 < second.metric("inference_replayed_total") < 50_000


def test_json_and_csv_are_answered_alike(stream: NewStream) -> None:
    clicks = stream()
    names = ("click_id", "ip", "app", "device", "os", "channel", "click_time")
    for key, line in click_lines(50):
        assert line is not None
        *ids, when = line.decode().split(",")
        click = {**dict(zip(names, map(int, ids), strict=False)), "click_time": when}
        clicks.produce([(key, line.replace(f"{click['click_id']},".encode(), b"1%05d," % int(ids[0]), 1))])
        clicks.produce([(key, json.dumps(click).encode())])
    clicks.worker()
    answers = {int(m.key()): json.loads(m.value())["probability"] for m in clicks.read(clicks.topics[1], 100)}
    assert len(answers) == 100
    # The two share their keys, so the second of a pair is counted one higher: nearly, and not quite, as probable.
    for number in range(50):
        assert answers[number] == pytest.approx(answers[100_000 + number], rel=1e-3)
        assert answers[number] != answers[100_000 + number]


def test_the_answers_to_a_partition_are_together(stream: NewStream) -> None:
    clicks = stream()
    clicks.produce(click_lines(5_000))
    clicks.worker()
    answered = {(m.partition(), m.key()) for m in clicks.read(clicks.topics[1], 5_000)}
    assert answered == {(m.partition(), m.value().split(b",")[0]) for m in clicks.read(clicks.topics[0])}


def test_a_killed_worker_loses_and_doubles_nothing(stream: NewStream) -> None:
    clicks = stream()
    clicks.produce(
        [(b"%d" % number, value) for number, value in enumerate(GARBAGE)]
    )  # not to be lettered again, either
    workers = [clicks.worker(WORKER_ID="a").wait_ready(), clicks.worker(WORKER_ID="b")]
    feeding = clicks.feed(40_000)
    # What it had committed is what its successor must count again.
    until(lambda: workers[0].metric('inference_transactions_total{outcome="committed"}') >= 2, 60, "two commits")
    workers[0].kill()  # in the middle of the stream
    time.sleep(0.5)
    restarted = clicks.worker(WORKER_ID="a")
    feeding.result()
    clicks.judge(GARBAGE)
    restarted.wait_ready()
    assert sum(w.metric("inference_replayed_total") for w in (workers[1], restarted)) > 0
    assert [workers[1].stop(), restarted.stop()] == [0, 0]


def test_workers_that_join_and_leave_share_the_partitions(stream: NewStream) -> None:
    clicks = stream()
    first = clicks.worker().wait_ready()
    feeding = clicks.feed(40_000, 5_000)
    second, third = clicks.worker(), clicks.worker()
    until(lambda: [w.metric("inference_partitions") for w in (first, second, third)] == [4, 4, 4], 40, "a fair share")
    assert first.stop() == 0
    until(lambda: [w.metric("inference_partitions") for w in (second, third)] == [6, 6], 40, "a fair share of two")
    feeding.result()
    clicks.judge()
    assert [second.stop(), third.stop()] == [0, 0]


def test_a_worker_without_partitions_is_ready_to_step_in(stream: NewStream) -> None:
    clicks = stream()
    clicks.topics = (clicks.topics[2], clicks.topics[1], clicks.topics[0])  # an input of one partition
    environment = {"INPUT_TOPIC": clicks.topics[0], "DEAD_LETTER_TOPIC": clicks.topics[2]}
    clicks.worker(**environment).wait_ready()
    idle = clicks.worker(**environment).wait_ready()
    assert "partitions []" in idle.get("/ready")[1]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"KAFKA_PASSWORD_FILE": "", "KAFKA_PASSWORD": "wrong"}, 1, "Authentication failed"),
        ({"OUTPUT_TOPIC": "nowhere"}, 1, "the topic 'nowhere' does not exist"),
        ({"METRICS_PORT": "none", "BATCH_CLICKS": "0"}, 2, "METRICS_PORT='none' .* BATCH_CLICKS='0'"),
    ],
)
def test_a_worker_that_cannot_work_says_why(
    stream: NewStream, changes: dict[str, str], status: int, reason: str
) -> None:
    clicks = stream(secure=True)
    clicks.produce(click_lines(10))
    ended, log = run_once(clicks, **changes)
    assert ended == status
    assert re.search(reason, log), log
    assert not clicks.read(clicks.topics[1])


def test_a_corrupt_model_is_refused_before_any_click_is_read(stream: NewStream) -> None:
    clicks = stream()
    clicks.produce(click_lines(10))
    (clicks.model / "model.onnx").write_bytes(b"not a model")
    status, log = run_once(clicks)
    assert status == 2
    assert "onnxruntime can't read model.onnx" in log
    assert not clicks.read(clicks.topics[1])
