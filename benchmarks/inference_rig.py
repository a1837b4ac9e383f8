"""What the contestants of the inference benchmark run on: a broker with a backlog, their processes, and the clocks."""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.cli.produce import generated_lines, send
from mlops_assets.inference.config import Kafka
from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS, create_topics

MIB: Final = 2**20
LIVE_KEYS: Final = 1_000_000
SECONDS: Final = 600
DAY: Final = date(2017, 11, 10)
T = TypeVar("T")


@dataclass
class Worker:
    """A process under test."""

    process: psutil.Popen
    port: int

    @property
    def rss_mib(self) -> float:
        return float(self.process.memory_info().rss) / MIB

    @property
    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = [line.split(" ") for line in answer.read().decode().splitlines()]
        return float(next((line[1] for line in lines if line[0] == name), 0))


class Bench:
    """A broker with a backlog of clicks, and the contestants' processes."""

    def __init__(self, broker: LocalBroker, scratch: Path) -> None:
        self.broker, self.scratch = broker, scratch
        self.client: dict[str, Any] = {"bootstrap.servers": broker.bootstrap_servers, "log_level": 0}
        self.kafka = Kafka.from_environment(broker.environment())

    def fill(self, topic: str, lines: Iterator[bytes], rate: float = 0) -> int:
        create_topics(self.client, {topic: INPUT_PARTITIONS})
        report = send(lines, self.kafka, topic, rate, compression="none")  # the original's client reads nothing else
        if report.errors:
            raise SystemExit(f"{topic} could not be filled: {report.errors}")
        return report.confirmed

    @contextmanager
    def worker(self, source: str, output: str, *module: str, name: str = "0", **changes: str) -> Iterator[Worker]:
        create_topics(self.client, {output: INPUT_PARTITIONS, f"{source}.dead-letter": 1})
        port = free_port()
        topics = {"INPUT_TOPIC": source, "OUTPUT_TOPIC": output, "GROUP_ID": output, "WORKER_ID": name}
        env = {**os.environ, **self.broker.environment(), **topics, "METRICS_HOST": "127.0.0.1", **changes}
        with (self.scratch / f"{output}-{name}.log").open("ab") as log:
            command = [sys.executable, "-m", *module]
            process = psutil.Popen(command, env={**env, "METRICS_PORT": str(port)}, stdout=log, stderr=log)
        try:
            yield Worker(process, port)
        finally:
            if process.is_running():
                process.kill()
            process.wait(30)

    def race(self, name: str, clicks: int, *module: str, workers: int = 1, joined: bool = False) -> tuple[float, float]:
        """Clicks a second of wall time, and of CPU time, while the workers answer the backlog."""
        with ExitStack() as stack:
            running = [stack.enter_context(self.worker("input", name, *module, name=f"{i}")) for i in range(workers)]
            steps = self.joined_answers(name) if joined else self.committed(name)
            begin = before = cpu = 0.0
            for now, answered in self.within(steps, running):
                if not begin and answered:
                    begin, before, cpu = now, answered, sum(worker.cpu_seconds for worker in running)
                if answered >= clicks:
                    spent = sum(worker.cpu_seconds for worker in running) - cpu
                    return (answered - before) / (now - begin), (answered - before) / spent
        raise AssertionError

    def within(self, steps: Iterator[T], running: Sequence[Worker]) -> Iterator[tuple[float, T]]:
        deadline = time.monotonic() + SECONDS
        for answered in steps:
            if time.monotonic() > deadline or any(worker.process.poll() is not None for worker in running):
                raise SystemExit(f"only {answered} clicks were answered; the logs are in {self.scratch}")
            yield time.monotonic(), answered

    def committed(self, group: str, source: str = "input") -> Iterator[int]:
        """How many clicks a group has answered, from its committed offsets."""
        for offsets in self.offsets(group, source):
            yield sum(offsets)

    def offsets(self, group: str, source: str = "input") -> Iterator[list[int]]:
        """A group's committed offsets, by partition."""
        looker = Consumer(self.client | {"group.id": group})
        partitions = [TopicPartition(source, number) for number in range(INPUT_PARTITIONS)]
        while True:
            yield [max(0, where.offset) for where in looker.committed(partitions, timeout=30)]
            time.sleep(0.02)

    def size(self, topic: str) -> int:
        """How many messages were written to it."""
        looker = Consumer(self.client | {"group.id": "looker"})
        places = [TopicPartition(topic, number) for number in range(INPUT_PARTITIONS)]
        return sum(looker.get_watermark_offsets(place, timeout=30)[1] for place in places)

    def joined_answers(self, topic: str) -> Iterator[int]:
        """How many answers the original's joined messages hold."""
        reader, answered = self.reader(topic), 0
        while True:
            for message in reader.consume(100, 0.02):
                answered += (message.value() or b"").count(b"\n") + 1
            yield answered

    def reader(self, topic: str) -> Consumer:
        reader = Consumer(self.client | {"group.id": "reader", "isolation.level": "read_committed"})
        reader.assign([TopicPartition(topic, number, 0) for number in range(INPUT_PARTITIONS)])
        return reader

    def latency(self, rate: int, seconds: float, *module: str) -> tuple[float, float]:
        """p50 and p99 in milliseconds at `rate` clicks a second, from a click's timestamp in the input to when a
        read_committed reader has its answer."""
        clicks, source, output = int(seconds * rate), f"paced-{rate}", f"paced-{rate}-out"
        create_topics(self.client, {source: INPUT_PARTITIONS})
        with self.worker(source, output, *module) as worker:
            wait(worker.ready)
            feeding = threading.Thread(target=self.fill, args=(source, generated_lines(clicks, 8, DAY), rate))
            feeding.start()
            reader, arrived = self.reader(output), dict[bytes, float]()
            while len(arrived) < clicks:
                messages = reader.consume(5_000, 0.01)
                now = time.time() * 1_000
                arrived |= {m.key() or b"": now for m in messages if m.error() is None}
            feeding.join()
        written, inputs = dict[bytes, float](), self.reader(source)
        while len(written) < clicks:
            for message in inputs.consume(10_000, 0.1):
                written[(message.value() or b"").split(b",", 1)[0]] = message.timestamp()[1]
        warm = clicks // 5  # the first second or so warms up caches and connections
        spans = np.array([arrived[key] - written[key] for key in arrived if int(key) >= warm])
        return float(np.percentile(spans, 50)), float(np.percentile(spans, 99))

    def memory(self, *module: str) -> tuple[float, float, float]:
        """RSS in MiB idle and with a million live keys, and how many keys those were."""
        self.fill("quiet", iter(()))
        with self.worker("quiet", "quiet-out", *module) as worker:
            wait(worker.ready)
            time.sleep(2)
            idle = worker.rss_mib
        many = (
            f"{i},{i * 7919},{i % 300},1,{i % 50},{i % 180},2017-11-10 04:{i * 60 // LIVE_KEYS % 60:02}:00".encode()
            for i in range(LIVE_KEYS // 6 + 1)
        )
        clicks, peak = self.fill("many", many), 0.0
        with self.worker("many", "many-out", *module) as worker:
            for _, answered in self.within(self.committed("many-out", "many"), [worker]):
                peak = max(peak, worker.rss_mib)
                if answered >= clicks:
                    return idle, max(peak, worker.rss_mib), worker.metric("inference_count_keys")
        raise AssertionError

    def recovery(self, group: str, *module: str) -> tuple[float, float]:
        """Seconds from a kill to a worker that has its counts again, and how many messages it read for that."""
        with self.worker("input", group, *module) as worker:
            wait(worker.ready)
            worker.process.kill()
            killed = time.monotonic()
        with self.worker("input", group, *module) as worker:
            wait(worker.ready)
            return time.monotonic() - killed, worker.metric("inference_replayed_total")


def wait(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("a worker did not become ready")
        time.sleep(0.02)
