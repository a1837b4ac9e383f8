"""The same days through the graph on folders and on real servers: the same data, models and verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlops_assets.assets.promoted_model import ledger, production_champion
from mlops_assets.cli.clicks import generate
from mlops_assets.cli.summary import is_done, summary
from mlops_assets.lake.store import Lake
from mlops_assets.resources.environment import embedded, real

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

DAYS = ["2017-11-06", "2017-11-07", "2017-11-08"]
VOLATILE = ("run_id", "time", "decided_by")


def backfill(home: Path, systems: dict[str, Any], variables: dict[str, str]) -> None:
    """Lands the days and runs the graph on them, in a process of that environment."""
    command = ["--days", str(len(DAYS)), "--clicks", "10000", "--home", str(home), "--lake", systems["lake"].root]
    assert CliRunner().invoke(generate, command).exit_code == 0
    graph = [sys.executable, "-m", "mlops_assets_tests.assets.graph", str(home), *DAYS]
    done = subprocess.run(graph, env={**os.environ, **variables}, timeout=600, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-5000:]


def story(lake: Lake, images: Any) -> list[Any]:
    """What was decided and built, without what must differ: the time, and the ids of runs."""
    decided = [{**entry.as_dict(), **dict.fromkeys(VOLATILE)} for entry in ledger(lake)]
    return [*summary(lake, DAYS), *decided]


def test_the_graph_on_real_servers_decides_what_it_decides_on_folders(
    bucket: str, mlflow_url: str, tmp_path: Path
) -> None:
    variables = {"MLOPS_LAKE": f"s3://{bucket}/lake", "MLFLOW_TRACKING_URI": mlflow_url, "MLOPS_ENVIRONMENT": "real"}
    homes = tmp_path / "embedded", tmp_path / "real"
    on_folders, on_servers = embedded(homes[0]), real(homes[1], variables)
    backfill(homes[0], on_folders, {"MLOPS_ENVIRONMENT": "embedded"})
    backfill(homes[1], on_servers, variables)

    here, there = on_folders["lake"].lake(), on_servers["lake"].lake()
    for dataset in ("raw_clicks", "training_set"):
        assert [there.manifest(dataset, day) for day in DAYS] == [here.manifest(dataset, day) for day in DAYS]
    assert story(there, on_servers["images"]) == story(here, on_folders["images"])
    assert all(is_done(there, on_servers["lake"].landing(), day) for day in DAYS)
    assert not (homes[1] / "lake").exists(), "nothing but S3 holds data"

    champion = production_champion(there)
    assert champion
    registered = on_servers["mlflow"].champion()
    assert registered.run_id == champion.run_id
    folder = on_servers["mlflow"].model_folder(registered.run_id, tmp_path / "model")
    trained = on_folders["mlflow"].champion().run_id
    other = on_folders["mlflow"].model_folder(trained, tmp_path / "other")
    assert (folder / "model.onnx").read_bytes() == (other / "model.onnx").read_bytes()
