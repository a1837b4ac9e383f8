"""What the tests on a real Kafka share: a stream of clicks, workers as processes, the judgement of their answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.clicks.csv import TEST_COLUMNS, parse
from mlops_assets.clicks.features import RunningCounts, features
from mlops_assets.inference.model import Model
from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_topics import create_topics

PARTITIONS = 12
Message = tuple[bytes | None, bytes | None]
"""Key and value."""


def click_lines(n: int, seed: int = 0, first_id: int = 0) -> list[Message]:
    """Clicks of some three hours across a midnight, a few busy ips among many, up to five minutes out of order."""
    random = np.random.default_rng(seed)
    ips = random.zipf(1.4, n) % 50_000
    base = int(datetime(2017, 11, 9, 22, 30, tzinfo=UTC).timestamp())
    times = np.sort(base + random.integers(0, 3 * 3_600, n)) - random.integers(0, 300, n)
    others = random.integers(0, [20, 3, 15, 100], (n, 4))
    rows = np.column_stack((np.arange(first_id, first_id + n), ips, others)).tolist()
    when = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S}" for t in times.tolist()]
    return [
        (str(row[1]).encode(), f"{','.join(map(str, row))},{t}".encode()) for row, t in zip(rows, when, strict=True)
    ]


def with_wrong_clocks(lines: list[Message]) -> tuple[list[Message], set[int]]:
    """The clicks with every 25th made one of 12 ips whose clocks are 8 hours, a day or years fast, and their ids."""
    result, wrong = list(lines), set[int]()
    for index in range(12, len(lines), 25):
        line = lines[index][1]
        assert line is not None
        fields = line.decode().split(",")
        which = index // 25 % 12
        ahead = timedelta(hours=8) if which < 8 else timedelta(days=1 if which < 10 else 3_000 + index)
        when = datetime.strptime(fields[6], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) + ahead
        ip = str(90_000 + which)
        result[index] = (ip.encode(), ",".join([fields[0], ip, *fields[2:6], f"{when:%Y-%m-%d %H:%M:%S}"]).encode())
        wrong.add(int(fields[0]))
    return result, wrong


@dataclass
class Worker:
    """A worker process and its probes."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a probe; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str) -> float:
        """A metric's value, 0 before it exists."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines()]
        return float(next((line[1] for line in lines if line[0] == name), 0))

    def wait_ready(self, seconds: float = 60) -> Worker:
        until(lambda: self.get("/ready")[0] == 200 or self.process.poll() is not None, seconds, "ready")
        assert self.process.poll() is None, self.log.read_text()
        return self

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@dataclass
class Stream:
    """Three topics of their own on the broker, the messages that went in, and the workers that answer them."""

    broker: LocalBroker
    name: str
    model: Path
    scratch: Path
    secure: bool = False
    workers: list[Worker] = field(default_factory=list)
    supervised: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client: dict[str, Any] = {"bootstrap.servers": self.broker.bootstrap_servers, "log_level": 0}
        self.topics = (self.name, f"{self.name}.predictions", f"{self.name}.dead-letter")
        create_topics(self.client, dict(zip(self.topics, (PARTITIONS, PARTITIONS, 1), strict=True)))
        self.producer = Producer(self.client | {"message.max.bytes": 1_100_000, "enable.idempotence": True})
        self.feeder = ThreadPoolExecutor(1)

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            **self.broker.environment(self.secure),
            "INPUT_TOPIC": self.topics[0],
            "OUTPUT_TOPIC": self.topics[1],
            "GROUP_ID": self.name,
            "METRICS_HOST": "127.0.0.1",
            "SESSION_TIMEOUT_MS": "3000",
            "TRANSACTION_TIMEOUT_MS": "5000",
            **changes,
        }

    def worker(self, **changes: str) -> Worker:
        """Starts a worker; environment variables may be changed."""
        port = free_port()
        log = self.scratch / f"worker-{len(self.workers)}.log"
        env = {**os.environ, **self.environment(METRICS_PORT=str(port)), "PYTHONFAULTHANDLER": "1", **changes}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "mlops_assets.inference", "--model", str(self.model)]
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        self.workers.append(Worker(changes.get("WORKER_ID", ""), process, port, log))
        return self.workers[-1]

    def produce(self, messages: Sequence[Message], per_second: float = 0) -> None:
        """Writes the messages keyed by ip, at once or at a rate."""
        began = time.monotonic()
        for start in range(0, len(messages), 500):
            while len(self.producer) > 50_000:  # the broker is away
                self.producer.poll(0.1)
            for key, value in messages[start : start + 500]:
                self.producer.produce(self.topics[0], value, key)
            self.producer.poll(0)
            if per_second:
                time.sleep(max(0.0, began + (start + 500) / per_second - time.monotonic()))
        assert self.producer.flush(60) == 0

    def feed(self, n: int, per_second: float = 10_000) -> Future[None]:
        """Writes n clicks in the background."""
        return self.feeder.submit(self.produce, click_lines(n), per_second)

    def read(self, topic: str, at_least: int = 0, seconds: float = 90) -> list[Any]:
        """All that a read_committed reader sees of a topic once it is that much, in order within each partition."""
        settings = {"group.id": "reader", "isolation.level": "read_committed", "enable.partition.eof": True}
        consumer = Consumer(self.client | settings | {"auto.offset.reset": "earliest", "enable.auto.commit": False})
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[Any] = []
        ended, deadline = set[int | None](), time.monotonic() + seconds
        while len(ended) < len(partitions) or len(found) < at_least:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(found)} of {at_least} messages in {topic}\n{self.stacks()}")
            self.restart_failed()
            for message in consumer.consume(10_000, 0.1):
                error = message.error()
                if error is None:
                    found.append(message)
                    ended.discard(message.partition())
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
        consumer.close()
        return found

    def judge(self, reasons: Mapping[bytes | None, str] | None = None, wrong: Container[int] = ()) -> None:
        """Every click is answered exactly once, with the probability computed offline, but for click ids that are
        `wrong`; the rest, named in `reasons`, is dead-lettered exactly once with its origin and reason."""
        reasons = reasons or {}
        expected, bad = self.offline(reasons)
        answers = self.read(self.topics[1], len(expected))
        assert Counter(int(m.key()) for m in answers) == Counter(expected.keys())
        values = [json.loads(m.value()) for m in answers]
        assert [v["click_id"] for v in values] == [int(m.key()) for m in answers]
        right = [value for value in values if value["click_id"] not in wrong]
        got = np.array([v["probability"] for v in right])
        # How a matrix product rounds depends on the size of the batch; one count more or less changes much more.
        np.testing.assert_allclose(got, [expected[v["click_id"]] for v in right], rtol=0, atol=2e-8)
        letters = self.read(self.topics[2], len(bad))
        dead = [({k: v.decode() for k, v in m.headers()}, m.value()) for m in letters]
        assert Counter((int(about["partition"]), int(about["offset"])) for about, _ in dead) == Counter(bad.keys())
        for about, value in dead:
            whole = bad[int(about["partition"]), int(about["offset"])]
            assert value == (whole and whole[:65_536])
            assert about == about | {"topic": self.topics[0], "reason": reasons[whole], "bytes": f"{len(whole or b'')}"}

    def offline(self, no_click: Container[bytes | None] = ()) -> tuple[dict[int, float], dict[tuple[int, int], Any]]:
        """The probability of every click, in the order of offsets; and what is no click by partition and offset."""
        model, expected, bad = Model.load(self.model), dict[int, float](), dict[tuple[int, int], Any]()
        partitions: defaultdict[int, list[bytes]] = defaultdict(list)
        for message in self.read(self.topics[0]):
            if message.value() in no_click:
                bad[message.partition(), message.offset()] = message.value()
            else:
                partitions[message.partition()].append(message.value())
        for lines in partitions.values():
            clicks = parse(b"\n".join(lines), TEST_COLUMNS).clicks
            assert clicks.click_id is not None
            answers = model.probability(features(clicks, RunningCounts().count(clicks)))
            expected |= dict(zip(clicks.click_id.tolist(), answers.tolist(), strict=True))
        return expected, bad

    def restart_failed(self) -> None:
        """Does what a supervisor does: starts again, under its name, what ended with the status 1."""
        for number, worker in enumerate(self.supervised):
            if worker.process.poll() == 1:
                self.supervised[number] = self.worker(WORKER_ID=worker.name)

    def stacks(self) -> str:
        """What the workers were doing when something did not come: their logs, with the stacks of all threads."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGABRT)
                worker.process.wait(60)
        return "\n\n".join(f"{worker.log}:\n{worker.log.read_text()[-3_000:]}" for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.kill()
        self.feeder.shutdown()


def until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.05) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(pause)


def run_once(stream: Stream, **changes: str) -> tuple[int, str]:
    """Runs a worker that is expected to end by itself: its exit status and its log."""
    worker = stream.worker(**changes)
    return worker.process.wait(120), worker.log.read_text()
