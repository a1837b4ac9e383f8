from pathlib import Path

import pytest

from mlops_assets.lake.store import Lake
from mlops_assets.resources import ephemeral
from mlops_assets_tests.spark.raw_days import DAYS, write_raw


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that doesn't go is asked to without a pause."""
    monkeypatch.setattr(ephemeral, "DELETE_SECONDS", 0.001)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with some raw days of 100 clicks."""
    lake = Lake(str(tmp_path / "lake"))
    for day in DAYS:
        write_raw(lake, day, clicks=100)
    return lake
