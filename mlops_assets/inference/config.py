"""The service's configuration: environment variables, checked together at start so that one look shows every fault."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISM: Final = "SCRAM-SHA-512"
T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration is unusable; the message lists everything that is wrong with it."""


class _Reader:
    """Reads variables and remembers what is wrong with them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.problems: list[str] = []

    def text(self, name: str, default: str = "", required: bool = False) -> str:
        value = self.env.get(name, "").strip() or default
        if required and not value:
            self.problems.append(f"{name} is not set")
        return value

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self.env.get(name, "").strip()
        if not text:
            return default
        if not text.isdecimal() or not least <= int(text) <= most:
            self.problems.append(f"{name}={text!r} is not a whole number from {least} to {most}")
            return default
        return int(text)

    def check(self, get: Callable[[], T], default: T) -> T:
        try:
            return get()
        except (OSError, ValueError) as error:
            self.problems.append(str(error))
            return default

    def done(self) -> None:
        if self.problems:
            raise ConfigError("; ".join(self.problems))


@dataclass(frozen=True)
class Kafka:
    """How to reach a Kafka cluster."""

    servers: str
    protocol: str
    username: str
    password: str = field(repr=False)
    ca_file: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Self:
        """From the variables KAFKA_*. Raises ConfigError."""
        reader = _Reader(env)
        kafka = cls.read(reader)
        reader.done()
        return kafka

    @classmethod
    def read(cls, reader: _Reader) -> Self:
        """The settings; what is wrong with them is left in `reader`."""
        protocol = reader.text("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT").upper()
        if protocol not in PROTOCOLS:
            reader.problems.append(f"KAFKA_SECURITY_PROTOCOL={protocol!r} is none of {', '.join(PROTOCOLS)}")
        sasl = protocol.startswith("SASL")
        servers = reader.text("KAFKA_BOOTSTRAP_SERVERS", required=True)
        for server in filter(None, servers.split(",")):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdecimal():
                reader.problems.append(f"KAFKA_BOOTSTRAP_SERVERS: {server.strip()!r} is not HOST:PORT")
        username = reader.text("KAFKA_USERNAME", required=sasl)
        password = reader.check(lambda: _password(reader.env, sasl), "")
        ca_file = reader.text("KAFKA_CA_FILE")
        if ca_file and protocol.endswith("SSL"):
            reader.check(lambda: check_certificates(Path(ca_file)), None)
        return cls(servers, protocol, username, password, ca_file)

    def client(self) -> dict[str, Any]:
        """The settings that every client of librdkafka shares."""
        settings: dict[str, Any] = {
            "bootstrap.servers": self.servers,
            "security.protocol": self.protocol,
            "retry.backoff.ms": 10,  # transactions wait for it on every "concurrent transactions" answer
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 3,
        }
        if self.protocol.startswith("SASL"):
            settings |= {
                "sasl.mechanism": SASL_MECHANISM,
                "sasl.username": self.username,
                "sasl.password": self.password,
            }
        if self.ca_file and self.protocol.endswith("SSL"):
            settings["ssl.ca.location"] = self.ca_file
        return settings


def _password(env: Mapping[str, str], required: bool) -> str:
    file = env.get("KAFKA_PASSWORD_FILE", "").strip()
    if not file:
        password = env.get("KAFKA_PASSWORD", "")
        if required and not password:
            raise ValueError("neither KAFKA_PASSWORD nor KAFKA_PASSWORD_FILE is set")
        return password
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise ValueError(f"KAFKA_PASSWORD_FILE={file!r} cannot be read: {error.strerror}") from error


def check_certificates(file: Path) -> None:
    """Raises ValueError unless the PEM file holds certificates and at least one of them is valid now."""
    try:
        certificates: Any = ssl.create_default_context(cafile=str(file)).get_ca_certs()
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"KAFKA_CA_FILE={str(file)!r} holds no readable certificate: {error}") from error
    ends = [(ssl.cert_time_to_seconds(c["notAfter"]), c["notAfter"]) for c in certificates]
    if ends and max(ends)[0] < time.time():
        raise ValueError(f"KAFKA_CA_FILE={str(file)!r} expired on {max(ends)[1]}: mount the renewed certificate")


@dataclass(frozen=True)
class Settings:
    """Everything that one worker is told."""

    kafka: Kafka
    input_topic: str
    output_topic: str
    dead_letter_topic: str
    group_id: str
    worker_id: str
    metrics_host: str
    metrics_port: int
    batch_clicks: int
    commit_interval: float
    """How many seconds a transaction may grow while there is a backlog, which divides a commit's cost."""
    rekey_linger: float
    """How many seconds the re-keying step lets a click wait for earlier ones that are on their way."""
    start_from: str
    """Where to begin if Kafka has lost the offsets though clicks were answered: earliest, latest; empty: nowhere."""
    snapshot_topic: str
    snapshot_seconds: int
    """How old the snapshot of a partition's counts may become; 0: none are written or read."""
    session_timeout_ms: int
    transaction_timeout_ms: int

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ, rekeying: bool = False) -> Self:
        """Of the service, or of the re-keying step before it. Raises ConfigError that names all that is wrong."""
        reader = _Reader(env)
        input_topic = reader.text("INPUT_TOPIC", "input")
        rekey_topic = reader.text("REKEY_TOPIC", required=rekeying)
        source = input_topic if rekeying else rekey_topic or input_topic
        group_id = reader.text("GROUP_ID", "mlops-inference")
        settings = cls(
            kafka=Kafka.read(reader),
            input_topic=source,
            output_topic=rekey_topic if rekeying else reader.text("OUTPUT_TOPIC", "predictions"),
            dead_letter_topic=reader.text("DEAD_LETTER_TOPIC", f"{input_topic}.dead-letter"),
            group_id=f"{group_id}-rekey" if rekeying else group_id,
            # A pod's container is always process 1, so it comes back under its own name and ends at once the
            # transaction that a crash left open.
            worker_id=reader.text("WORKER_ID", f"{socket.gethostname()}-{os.getpid()}"),
            metrics_host=reader.text("METRICS_HOST"),
            metrics_port=reader.number("METRICS_PORT", 9091, 0, 65_535),
            batch_clicks=reader.number("BATCH_CLICKS", 8_000, 1, 100_000),
            commit_interval=reader.number("COMMIT_INTERVAL_MS", 200, 1, 10_000) / 1_000,
            rekey_linger=reader.number("REKEY_LINGER_MS", 500, 1, 60_000) / 1_000,
            start_from=reader.text("START_FROM").lower(),
            snapshot_topic=reader.text("SNAPSHOT_TOPIC", f"{source}.snapshots"),
            snapshot_seconds=0 if rekeying else reader.number("SNAPSHOT_SECONDS", 30, 0, 86_400),
            session_timeout_ms=reader.number("SESSION_TIMEOUT_MS", 6_000, 1_000, 300_000),
            transaction_timeout_ms=reader.number("TRANSACTION_TIMEOUT_MS", 10_000, 1_000, 900_000),
        )
        if settings.start_from not in ("", "earliest", "latest"):
            reader.problems.append(f"START_FROM={settings.start_from!r} is neither earliest nor latest")
        topics = [settings.input_topic, settings.output_topic, settings.dead_letter_topic, settings.snapshot_topic]
        if len(set(topics)) < len(topics):
            names = "INPUT_TOPIC, OUTPUT_TOPIC, DEAD_LETTER_TOPIC and SNAPSHOT_TOPIC"
            reader.problems.append(f"{names} must differ: {', '.join(topics)}")
        if 2_000 * settings.commit_interval > settings.transaction_timeout_ms:
            reader.problems.append(
                f"COMMIT_INTERVAL_MS={1_000 * settings.commit_interval:.0f} is more than half of "
                f"TRANSACTION_TIMEOUT_MS={settings.transaction_timeout_ms}: Kafka would abort what waits for the commit"
            )
        reader.done()
        return settings
