"""`mlops-assets watch`: predictions, throughput and lag, live in the terminal."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from typing import Any, Final

import click
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mlops_assets.inference.config import ConfigError, Settings

LATEST: Final = 8
RATE_SECONDS: Final = 5.0
TIMEOUT: Final = 10.0


class Watch:
    """Follows the predictions and the dead letters from now on, and where the workers are."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        common = settings.kafka.client() | {"group.id": settings.group_id, "enable.auto.commit": False}
        self._consumer = Consumer(common | {"isolation.level": "read_committed"})
        self._input = self._partitions(settings.input_topic)
        followed = [*self._partitions(settings.output_topic), *self._partitions(settings.dead_letter_topic)]
        # Without joining the group, so no worker loses a partition to the watcher.
        self._consumer.assign([TopicPartition(p.topic, p.partition, self._end(p)) for p in followed])
        self.clicks = 0
        self.dead = 0
        self.installs = 0
        self.probability = 0.0
        self.models: Counter[str] = Counter()
        self.latest: deque[dict[str, Any]] = deque(maxlen=LATEST)
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def read(self, seconds: float) -> None:
        """Takes in what arrives within some time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for message in self._consumer.consume(10_000, min(left, 0.2)):
                if message.error() is not None:
                    continue
                if message.topic() == self._settings.dead_letter_topic:
                    self.dead += 1
                else:
                    answer = json.loads(message.value() or b"{}")
                    self.clicks += 1
                    self.installs += answer["label"]
                    self.probability += answer["probability"]
                    self.models[answer["model_version"]] += 1
                    self.latest.append(answer)
        self._seen.append((time.monotonic(), self.clicks))
        while self._seen[-1][0] - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()

    def view(self) -> Group:
        """What the terminal shows."""
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        rate = (after - before) / (end - begin) if end > begin else 0.0
        facts = Table(
            "predictions", "a second", "not yet answered", "dead letters", "mean P(install)", "label 1", "models"
        )
        mean = f"{self.probability / self.clicks:.6f}" if self.clicks else "-"
        models = ", ".join(f"{version}: {n:,}" for version, n in self.models.items()) or "-"
        facts.add_row(
            f"{self.clicks:,}", f"{rate:,.0f}", f"{self._lag():,}", f"{self.dead:,}", mean, f"{self.installs:,}", models
        )
        last = Table("click_id", "probability", "label", "model_version")
        for answer in self.latest:
            last.add_row(*(str(answer[name]) for name in ("click_id", "probability", "label", "model_version")))
        return Group(facts, last)

    def close(self) -> None:
        """Leaves Kafka."""
        self._consumer.close()

    def _partitions(self, topic: str) -> list[TopicPartition]:
        found = self._consumer.list_topics(topic, timeout=TIMEOUT).topics[topic]
        if not found.partitions:
            raise click.ClickException(f"the topic {topic!r} does not exist at {self._settings.kafka.servers}")
        return [TopicPartition(topic, number) for number in found.partitions]

    def _end(self, where: TopicPartition) -> int:
        ends = self._consumer.get_watermark_offsets(where, timeout=TIMEOUT)
        return ends[1] if ends else 0

    def _lag(self) -> int:
        # In this order: clicks that arrive between the two questions, one a partition, are no backlog.
        ends = [self._end(where) for where in self._input]
        committed = self._consumer.committed(self._input, timeout=TIMEOUT)
        return sum(max(0, end - max(0, where.offset)) for end, where in zip(ends, committed, strict=True))


@click.command()
@click.option("--seconds", type=click.FloatRange(0), default=0, help="End after so long; 0, the default: never.")
def watch(seconds: float) -> None:
    """Show predictions, throughput and what is waiting, live.

    Kafka is where the variables KAFKA_* say; `mlops-assets kafka up` prints them.
    """
    try:
        watching = Watch(Settings.from_environment())
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    except KafkaException as error:
        raise click.ClickException(f"Kafka does not answer: {error.args[0].str()}") from error
    end = time.monotonic() + seconds
    try:
        with Live(watching.view(), console=Console(), auto_refresh=False) as live:
            while not seconds or time.monotonic() < end:
                watching.read(min(1.0, seconds or 1.0))
                live.update(watching.view(), refresh=True)
    except KeyboardInterrupt:
        pass
    except KafkaException as error:
        raise click.ClickException(f"Kafka is away: {error.args[0].str()}") from error
    finally:
        watching.close()
