"""The configuration is judged as a whole, at start."""

from pathlib import Path

import pytest

from mlops_assets.inference.config import ConfigError, Kafka, Settings
from mlops_assets.resources.kafka_settings import make_certificate

PLAIN = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092"}


def test_the_defaults_need_only_an_address() -> None:
    settings = Settings.from_environment(PLAIN)
    assert (settings.input_topic, settings.output_topic) == ("input", "predictions")
    assert settings.dead_letter_topic == "input.dead-letter"
    assert settings.metrics_port == 9091


def test_every_fault_is_named_at_once() -> None:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": "broker",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_PASSWORD_FILE": "/nowhere",
        "KAFKA_CA_FILE": "/nowhere.pem",
        "METRICS_PORT": "70000",
        "COMMIT_INTERVAL_MS": "soon",
        "OUTPUT_TOPIC": "input",
    }
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment(env)
    for part in (
        "'broker' is not HOST:PORT",
        "KAFKA_USERNAME is not set",
        "KAFKA_PASSWORD_FILE='/nowhere' cannot be read",
        "KAFKA_CA_FILE='/nowhere.pem' holds no readable certificate",
        "METRICS_PORT='70000' is not a whole number from 0 to 65535",
        "COMMIT_INTERVAL_MS='soon'",
        "must differ",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({}, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (PLAIN | {"KAFKA_SECURITY_PROTOCOL": "TLS"}, "'TLS' is none of"),
        (PLAIN | {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_USERNAME": "u"}, "neither KAFKA_PASSWORD nor"),
    ],
)
def test_what_is_missing_is_named(env: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Kafka.from_environment(env)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"COMMIT_INTERVAL_MS": "6000"}, "COMMIT_INTERVAL_MS=6000 is more than half of TRANSACTION_TIMEOUT_MS=10000"),
        ({"START_FROM": "beginning"}, "START_FROM='beginning' is neither earliest nor latest"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(env: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Settings.from_environment(PLAIN | env)


def test_a_password_file_wins_and_loses_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    env = PLAIN | {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_USERNAME": "u", "KAFKA_PASSWORD": "other"}
    kafka = Kafka.from_environment(env | {"KAFKA_PASSWORD_FILE": str(tmp_path / "password")})
    assert kafka.client()["sasl.password"] == "secret"
    assert kafka.client()["sasl.mechanism"] == "SCRAM-SHA-512"


def test_the_password_shows_in_no_repr() -> None:
    env = PLAIN | {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_USERNAME": "mlops", "KAFKA_PASSWORD": "open-sesame"}
    settings = Settings.from_environment(env)
    assert settings.kafka.client()["sasl.password"] == "open-sesame"
    assert "open-sesame" not in f"{settings!r} {settings} {settings.kafka!r} {settings.kafka}"


def test_an_expired_certificate_is_refused_with_its_date(tmp_path: Path) -> None:
    make_certificate(tmp_path / "store.p12", tmp_path / "ca.pem", "password", days=1, start="-3d")
    env = PLAIN | {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_CA_FILE": str(tmp_path / "ca.pem")}
    with pytest.raises(ConfigError, match=r"ca.pem' expired on .* GMT"):
        Kafka.from_environment(env)
    make_certificate(tmp_path / "store.p12", tmp_path / "ca.pem", "password")
    assert Kafka.from_environment(env).client()["ssl.ca.location"] == str(tmp_path / "ca.pem")
