"""`mlops-assets produce`: clicks into the input topic."""

from __future__ import annotations

import datetime
import gzip
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mlops_assets.clicks.csv import TEST_COLUMNS, read
from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.inference.config import ConfigError, Kafka

CONFIRM_EVERY: Final = 100_000
FLUSH_SECONDS: Final = 60
CONNECT_SECONDS: Final = 10


@dataclass
class Report:
    """What became of the clicks that were sent."""

    sent: int = 0
    confirmed: int = 0
    """So many clicks from the beginning are known to be in the topic."""
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)


def send(
    lines: Iterator[bytes],
    kafka: Kafka,
    topic: str,
    rate: float = 0,
    advance: Callable[[int], object] = lambda _: None,
    compression: str = "lz4",
) -> Report:
    """Writes the lines of clicks, keyed by ip so that one partition sees every click of an ip, `rate` a second (0: all
    that Kafka takes). Stops at the first delivery error, and at KeyboardInterrupt; both are in the report. Raises
    ValueError for a topic that does not exist, and KafkaException when Kafka does not answer.
    """
    report, began = Report(), time.monotonic()
    settings = {
        "linger.ms": 5 if rate else 20,
        "compression.type": compression,
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
    }
    errors_only = {"delivery.report.only.error": True, "queue.buffering.max.messages": 2 * CONFIRM_EVERY}
    producer = Producer(kafka.client() | settings | errors_only)
    if topic not in producer.list_topics(timeout=CONNECT_SECONDS).topics:
        raise ValueError(f"the topic {topic!r} does not exist at {kafka.servers}")

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            report.errors[error.str()] += 1

    def confirm() -> None:
        left = producer.flush(FLUSH_SECONDS)
        if left:
            report.errors["no answer from Kafka"] += left
        if not report.errors:
            report.confirmed = report.sent

    step = max(1, min(5_000, int(rate / 20))) if rate else 5_000
    try:
        while chunk := list(islice(lines, step)):
            messages: list[dict[str, Any]] = [{"key": _ip(line), "value": line} for line in chunk]
            if producer.produce_batch(topic, messages, on_delivery=delivered) < len(messages):
                report.errors[str(next(m["_error"] for m in messages if "_error" in m))] += 1
            report.sent += len(chunk)
            producer.poll(0)
            advance(len(chunk))
            if report.sent - report.confirmed >= CONFIRM_EVERY:
                confirm()
            if report.errors:
                break
            if rate:
                time.sleep(max(0.0, began + report.sent / rate - time.monotonic()))
    except KeyboardInterrupt:
        report.errors["interrupted"] += 0
    confirm()
    report.seconds = time.monotonic() - began
    return report


def file_lines(path: Path, opened: ExitStack) -> Iterator[bytes]:
    """The clicks of a file like TalkingData's test.csv, plain or gzip. Raises ValueError for another header."""
    stream = opened.enter_context(gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb"))
    columns, blocks = read(stream, path.name, TEST_COLUMNS)
    if columns != TEST_COLUMNS:
        raise ValueError(f"{path.name}, line 1: the columns must stand in the order {','.join(TEST_COLUMNS)}")
    return (line.rstrip(b"\r") for _, block in blocks for line in block.removesuffix(b"\n").split(b"\n"))


def generated_lines(clicks: int, seed: int, day: datetime.date) -> Iterator[bytes]:
    """Synthetic clicks of one day, with click ids from 0."""
    first = 0
    for block in generate_day(day, clicks, seed):
        yield from lines_of(block, first)
        first += len(block)


def lines_of(clicks: Clicks, first_id: int) -> Iterator[bytes]:
    """Clicks as lines of the test file, with consecutive click ids."""
    times = np.datetime_as_string(clicks.time.astype("M8[s]")).tolist()
    columns = (clicks.ip, clicks.app, clicks.device, clicks.os, clicks.channel)
    rows = zip(*(column.tolist() for column in columns), times, strict=True)
    for number, (ip, app, device, system, channel, when) in enumerate(rows, first_id):
        yield f"{number},{ip},{app},{device},{system},{channel},{when.replace('T', ' ')}".encode()


def _ip(line: bytes) -> bytes | None:
    fields = line.split(b",", 2)
    return fields[1] if len(fields) == 3 else None  # what is no click goes anywhere, and becomes a dead letter


@click.command()
@click.argument("source")
@click.option("--rate", type=click.FloatRange(0), default=0, help="Clicks a second; 0, the default: full speed.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Go on after so many clicks, as a broken run advises.")
@click.option("--clicks", type=click.IntRange(1), help="Send at most so many.  [default for `generate`: 100000]")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Of `generate`.")
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), default="2017-11-10", show_default=True, help="Of `generate`."
)
@click.option("--topic", default=lambda: os.environ.get("INPUT_TOPIC", "input"), show_default="input, or INPUT_TOPIC")
def produce(
    source: str, rate: float, skip: int, clicks: int | None, seed: int, day: datetime.datetime, topic: str
) -> None:
    """Send the clicks of SOURCE to Kafka, keyed by ip.

    SOURCE is a file like Kaggle's test.csv (.csv or .csv.gz), or the word `generate`. Kafka is where the variables
    KAFKA_* say; `mlops-assets kafka up` prints them.
    """
    console = Console()
    try:
        with ExitStack() as opened:
            kafka = Kafka.from_environment()
            limit = clicks or (100_000 if source == "generate" else None)
            lines = (
                generated_lines(limit or 0, seed, day.date())
                if source == "generate"
                else file_lines(Path(source), opened)
            )
            columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
            progress = opened.enter_context(Progress(*columns, console=console))
            task = progress.add_task(f"clicks to {topic}", total=limit and max(0, limit - skip))
            report = send(islice(lines, skip, limit), kafka, topic, rate, lambda n: progress.advance(task, n))
    except (ConfigError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KafkaException as error:
        raise click.ClickException(f"Kafka does not answer at {kafka.servers}: {error.args[0].str()}") from error
    per_second = report.sent / report.seconds if report.seconds else 0
    console.print(f"{report.confirmed:,} clicks in {topic}, {report.seconds:.1f} s, {per_second:,.0f} a second")
    if report.errors:
        what = "; ".join(f"{reason} ({n})" if n else reason for reason, n in report.errors.items())
        raise click.ClickException(f"not everything was delivered: {what}. Go on with --skip {skip + report.confirmed}")
