"""One Kafka, S3, and MLflow on Postgres for the whole session, all real; each test has its own streams and bucket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.cli.servers import (
    BUCKET,
    Postgres,
    find_postgres,
    find_s3_server,
    make_bucket,
    mlflow_server,
    s3_server,
)
from mlops_assets.lake import s3 as lake_s3
from mlops_assets.resources.kafka import LocalBroker, kafka_jars
from mlops_assets.resources.programs import ProgramError
from mlops_assets_tests.inference.tiny_model import write_model
from mlops_assets_tests.integration.kafka_harness import Stream

NUMBERS = count()
NewStream = Callable[..., Stream]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """Skips where Kafka cannot be fetched; a Kafka that does not start is a failure."""
    try:
        kafka_jars()
    except ProgramError as error:
        pytest.skip(f"no Kafka: {error}")
    with LocalBroker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture
def stream(broker: LocalBroker, tmp_path: Path) -> Iterator[NewStream]:
    """Makes streams; their workers end with the test."""
    made = []

    def new(secure: bool = False) -> Stream:
        model = write_model(tmp_path / "model")
        made.append(Stream(broker, f"test-{next(NUMBERS)}", model, tmp_path, secure))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def s3_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3: the one that the environment names, or versitygw; skips where there is neither."""
    named = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    if "AWS_ENDPOINT_URL_S3" in named:
        yield named
        return
    try:
        find_s3_server()
    except ProgramError as error:
        pytest.skip(str(error))
    with s3_server(tmp_path_factory.mktemp("s3"), free_port(), "tester", "a-secret-of-tests") as variables:
        yield variables


@pytest.fixture
def bucket(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, whose server this process' variables then name."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    lake_s3.client.cache_clear()
    name = f"test-{os.getpid()}-{next(NUMBERS)}"
    make_bucket(s3_variables, name)
    yield name
    lake_s3.client.cache_clear()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real Postgres; skips where there is none."""
    try:
        find_postgres()
    except ProgramError as error:
        pytest.skip(str(error))
    # Not below pytest's folders: only their owner may enter them, and Postgres may have to run as another user.
    with TemporaryDirectory(prefix="mlops-assets-postgres-") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "postgres", free_port()) as running:
            yield running


@pytest.fixture(scope="session")
def mlflow_url(
    postgres: Postgres, s3_variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real MLflow server on Postgres, with its artifacts in S3."""
    make_bucket(s3_variables, BUCKET)
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), free_port(), postgres.url, s3_variables) as url:
        yield url
