"""A Yandex Cloud for these tests, and the form that works on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.lake.store import Lake
from mlops_assets.resources import dataproc, ephemeral
from mlops_assets.resources.dataproc import DataprocSpark
from mlops_assets_tests.resources.dataproc.server import yandex_cloud
from mlops_assets_tests.resources.dataproc.world import World
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

REQUIRED = {
    "MLOPS_SPARK_ENVIRONMENT": "s3://lake/spark-environment-1-abc/",
    "MLOPS_SPARK_YC_FOLDER": "b1gfolder",
    "MLOPS_SPARK_YC_SUBNET": "e9bsubnet",
    "MLOPS_SPARK_YC_SERVICE_ACCOUNT": "ajeaccount",
    "MLOPS_SPARK_YC_BUCKET": "logs",
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral, "DELETE_SECONDS", 0.1)
    monkeypatch.setattr(dataproc, "DELETE_POLL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, dict[str, str]]]:
    with yandex_cloud(tmp_path_factory.mktemp("cloud")) as served:
        yield served


@pytest.fixture
def world(cloud: tuple[World, dict[str, str]]) -> World:
    """Empty, and without faults."""
    cloud[0].__dict__.update(World().__dict__)
    return cloud[0]


@pytest.fixture
def spark(cloud: tuple[World, dict[str, str]], world: World) -> DataprocSpark:
    return made(cloud[1])


def made(variables: dict[str, str], **changes: Any) -> DataprocSpark:
    form = DataprocSpark.from_environment({**REQUIRED, **variables})
    settings = {"poll_seconds": 0.1, "deadline_minutes": 2, **changes}
    return DataprocSpark(**{**form.model_dump(exclude_none=True), **settings})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(str(tmp_path / "lake"))
    write_raw(made, DAYS[0], clicks=300)
    return made
