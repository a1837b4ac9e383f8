"""What the service is compared with: an echo through the same Kafka code, and the original's loop made again."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Message

from mlops_assets.inference.config import Settings
from mlops_assets.inference.model import Model
from mlops_assets.inference.outcome import Outcome
from mlops_assets.inference.service import Service

IDS: Final = ["click_id", "ip", "app", "device", "os", "channel"]
KEYS: Final = {
    "ip_count": ["ip"],
    "ip_day_hour": ["ip", "day_of_week", "hour"],
    "ip_hour_channel": ["ip", "hour", "channel"],
    "ip_hour_os": ["ip", "hour", "os"],
    "ip_hour_app": ["ip", "hour", "app"],
    "ip_hour_device": ["ip", "hour", "device"],
}


@dataclass(frozen=True)
class Copies:
    """Messages as they came in, for one partition."""

    run: list[Any]
    output: int
    large: bool = False

    def __len__(self) -> int:
        return len(self.run)

    def messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        return zip(map(Message.key, self.run), map(Message.value, self.run), repeat(self.output))  # type: ignore[arg-type]


class Echo(Service):
    """The service's own consuming, producing and transactions, without any work between."""

    def _score(self, runs: dict[int, list[Any]]) -> Outcome:
        offsets, copies = [], list[Copies]()
        for number, run in runs.items():
            partition = self._partitions[number]
            partition.position = run[-1].offset() + 1
            offsets.append(self._offset(number, partition.position, partition.replay_from))
            copies.append(Copies(run, self._output(number)))
        return Outcome(offsets, [], copies, [])


def original(pipeline: Path) -> None:
    """Polls of up to 30,000 messages, pandas, groupby and merge, scikit-learn, one joined message."""
    import pandas as pd
    from kafka import KafkaConsumer, KafkaProducer

    model = pickle.loads(pipeline.read_bytes())
    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(
        os.environ["INPUT_TOPIC"],
        bootstrap_servers=servers,
        group_id=os.environ["GROUP_ID"],
        auto_offset_reset="earliest",
        max_poll_records=30_000,
    )
    producer = KafkaProducer(bootstrap_servers=servers)
    while True:
        polled = consumer.poll(timeout_ms=1_000, max_records=30_000)
        lines = [record.value.decode() for records in polled.values() for record in records]
        if not lines:
            continue
        clicks = pd.read_csv(io.StringIO("\n".join(lines)), names=[*IDS, "click_time"], parse_dates=["click_time"])
        clicks["hour"] = clicks["click_time"].dt.hour
        clicks["day_of_week"] = clicks["click_time"].dt.dayofweek
        for name, key in KEYS.items():
            counts = clicks.groupby(key).size().reset_index(name=name)
            clicks = clicks.merge(counts, on=key, how="left")
        columns = ["app", "device", "os", "channel", "hour", "day_of_week", *KEYS]
        answers = model.predict_proba(clicks[columns].to_numpy("float32"))[:, 1]
        joined = "\n".join(f"{i},{p}" for i, p in zip(clicks["click_id"], answers, strict=True))
        producer.send(os.environ["OUTPUT_TOPIC"], joined.encode())
        producer.flush()


if __name__ == "__main__":
    role, path = sys.argv[1:]
    if role == "echo":
        Echo(Settings.from_environment(), Model.load(Path(path))).run()
    original(Path(path))
