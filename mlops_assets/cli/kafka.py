"""`mlops-assets kafka up` and `down`: a real Kafka on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click
from confluent_kafka import KafkaException

from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS, create_topics
from mlops_assets.resources.programs import ProgramError

TOPICS = {"input": INPUT_PARTITIONS, "predictions": INPUT_PARTITIONS, "input.dead-letter": 1}

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path(os.environ.get("MLOPS_HOME", ".demo")),
    show_default=".demo, or MLOPS_HOME",
    help="Where the broker's data, password and log live, in the folder `kafka`.",
)


@click.group()
def kafka() -> None:
    """A real Kafka on this machine: one KRaft broker on loopback, no Docker."""


@kafka.command()
@home_option
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, help="Of the plaintext listener; 0 takes a free one."
)
def up(home: Path, port: int) -> None:
    """Start it, with its topics, and print how to reach it. The first start fetches Kafka (43 MB)."""
    broker = LocalBroker(home / "kafka", port)
    try:
        broker.start()
        create_topics({"bootstrap.servers": broker.bootstrap_servers}, TOPICS)
    except (ProgramError, KafkaException) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"# Kafka runs, process {broker.pid}. For `mlops-assets produce` and `watch`, and for workers:")
    for secure, comment in ((False, ""), (True, "# ")):
        if secure:
            click.echo("# or with TLS and a password:")
        for name, value in broker.environment(secure).items():
            click.echo(f"{comment}export {name}={value}")


@kafka.command()
@home_option
def down(home: Path) -> None:
    """Stop it. Its data stay for the next start."""
    broker = LocalBroker(home / "kafka")
    running = broker.pid is not None
    broker.stop()
    click.echo("Kafka is stopped." if running else "No Kafka was running.")
