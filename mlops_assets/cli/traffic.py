"""Live clicks for the demo, and the bookkeeping that shows that each of them was answered exactly once."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import islice
from typing import Any, Final

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from mlops_assets.cli.produce import Report, lines_of, send
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.inference.config import Settings
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS, create_topics

CLICKS_A_DAY: Final = 2_000_000
TIMEOUT: Final = 30.0


def live_clicks(after: str, seed: int) -> Iterator[bytes]:
    """Lines of clicks of the days after `after`, with click ids from 0, without end."""
    first_id, day = 0, date.fromisoformat(after)
    while True:
        day += timedelta(days=1)
        for block in generate_day(day, CLICKS_A_DAY, seed):
            yield from lines_of(block, first_id)
            first_id += len(block)


def prepare_topics(environment: Mapping[str, str]) -> None:
    """Creates the topics that the workers need before they start."""
    settings = Settings.from_environment(environment)
    topics = dict.fromkeys([settings.input_topic, settings.output_topic], INPUT_PARTITIONS)
    create_topics(settings.kafka.client(), {**topics, settings.dead_letter_topic: 1})


class Traffic:
    """Sends clicks, and counts the answers to each as a read_committed reader sees them."""

    def __init__(self, environment: Mapping[str, str], lines: Iterator[bytes]) -> None:
        self.settings = Settings.from_environment(environment)
        self.sent = self.dead_letters = 0
        self._lines = lines
        self._answers = np.zeros(1 << 16, dtype=np.uint8)
        self.models: Counter[str] = Counter()
        settings = {"group.id": "demo", "isolation.level": "read_committed", "enable.auto.commit": False}
        self._reader = Consumer({**self.settings.kafka.client(), **settings})
        self._reader.assign(self._ends(self.settings.output_topic) + self._ends(self.settings.dead_letter_topic))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts answers in the background for as long as the block lasts."""
        done = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._count, done)
            try:
                yield
            finally:
                done.set()
                reading.result()
                self._reader.close()

    def burst(self, clicks: int, advance: Callable[[int], object]) -> None:
        """Sends so many clicks as fast as Kafka takes them."""
        self._send(islice(self._lines, clicks), 0, advance)

    @contextmanager
    def steady(self, clicks_per_second: int) -> Iterator[None]:
        """Sends clicks at a rate for as long as the block lasts."""
        done = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            sending: Future[None] = pool.submit(
                self._send, _until(done, self._lines), clicks_per_second, lambda _: None
            )
            try:
                yield
            finally:
                done.set()
                sending.result()

    def wait_answered(self, seconds: float) -> bool:
        """Whether within some time every click sent so far was answered or became a dead letter."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.answered + self.dead_letters >= self.sent:
                return True
            time.sleep(0.2)
        return False

    @property
    def answered(self) -> int:
        """How many clicks have an answer."""
        return int(np.count_nonzero(self._answers))

    def record(self) -> dict[str, Any]:
        """What was sent, and what became of it."""
        answers = self._answers[: self.sent]
        return {
            "clicks": self.sent,
            "answered_once": int(np.count_nonzero(answers == 1)),
            "doubled": int(np.count_nonzero(answers > 1)),
            "dead_letters": self.dead_letters,
            "lost": int(np.count_nonzero(answers == 0)) - self.dead_letters,
            "by_model": dict(self.models),
        }

    def _send(self, lines: Iterator[bytes], rate: float, advance: Callable[[int], object]) -> None:
        report: Report = send(lines, self.settings.kafka, self.settings.input_topic, rate, advance)
        self.sent += report.confirmed
        if report.errors:
            raise RuntimeError(f"clicks were not delivered: {', '.join(report.errors)}")

    def _count(self, done: threading.Event) -> None:
        while not done.is_set():
            for message in self._reader.consume(10_000, 0.2):
                if message.error() is None and message.topic() == self.settings.dead_letter_topic:
                    self.dead_letters += 1
                elif message.error() is None:
                    answer = json.loads(message.value() or b"{}")
                    click_id = answer["click_id"]
                    if click_id >= len(self._answers):
                        self._answers = np.concatenate([self._answers, np.zeros(click_id + 1, dtype=np.uint8)])
                    self._answers[click_id] += 1
                    self.models[answer["model_version"]] += 1

    def _ends(self, topic: str) -> list[TopicPartition]:
        partitions = self._reader.list_topics(topic, TIMEOUT).topics[topic].partitions
        return [TopicPartition(topic, partition, OFFSET_END) for partition in partitions]


def _until(done: threading.Event, lines: Iterator[bytes]) -> Iterator[bytes]:
    while not done.is_set():
        yield next(lines)
