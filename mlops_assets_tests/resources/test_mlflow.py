from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.resources.mlflow import MLflow

TAGS = {"fingerprint": "0f3a", "day": "2017-11-08"}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> MLflow:
    return MLflow(tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'deep' / 'mlflow.db'}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "to-log"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"\x00onnx")
    (folder / "model.json").write_text("{}")
    return folder


def test_a_candidate_is_one_run_found_again_by_its_tags(mlflow: MLflow, model: Path, tmp_path: Path) -> None:
    assert mlflow.find(TAGS) is None
    run = mlflow.log_candidate(
        name="candidate 2017-11-08",
        tags=TAGS,
        model=model,
        parameters={"algorithm": "LogisticRegression"},
        metrics={"auc": 0.96},
        series={"bootstrap_auc": [i / 1_000 for i in range(950)]},
        plots={"roc": b"png"},
    )
    assert mlflow.find(TAGS) == run
    assert mlflow.log_candidate(name="again", tags=TAGS) == run
    assert mlflow.find({**TAGS, "fingerprint": "other"}) is None
    assert mlflow.url(run) is None, "there is no server to look at"

    client = mlflow._client()
    logged = client.get_run(run).data
    assert logged.params == {"algorithm": "LogisticRegression"}
    assert logged.metrics["auc"] == 0.96
    assert [m.value for m in client.get_metric_history(run, "bootstrap_auc")] == [i / 1_000 for i in range(950)]
    assert [item.path for item in client.list_artifacts(run, "plots")] == ["plots/roc.png"]
    folder = mlflow.model_folder(run, tmp_path / "not" / "there")
    assert (folder / "model.onnx").read_bytes() == b"\x00onnx"


def test_artifacts_lie_beside_the_database_and_nowhere_else(mlflow: MLflow, model: Path) -> None:
    run = mlflow.log_candidate(name="c", tags={"fingerprint": "artifacts"}, model=model)
    database = Path(mlflow.tracking_uri.removeprefix("sqlite:///"))
    assert list((database.parent / "artifacts" / run).rglob("model.onnx"))
    assert not Path("mlruns").exists()


def test_a_run_that_fails_half_way_is_not_found(mlflow: MLflow, tmp_path: Path) -> None:
    tags = {"fingerprint": "fails"}
    with pytest.raises(Exception, match="missing"):
        mlflow.log_candidate(name="c", tags=tags, model=tmp_path / "missing")
    assert mlflow.find(tags) is None
    assert mlflow.log_candidate(name="c", tags=tags) == mlflow.find(tags)


def test_the_champion_alias_moves_and_can_be_removed(mlflow: MLflow, model: Path) -> None:
    assert mlflow.champion() is None
    mlflow.set_champion(None)
    runs = [mlflow.log_candidate(name=tag, tags={"fingerprint": tag}, model=model) for tag in ("first", "second")]
    first, second = (mlflow.register(run, {"day": f"2017-11-0{i}"}) for i, run in enumerate(runs, start=7))
    assert first.number != second.number
    mlflow.set_champion(first)
    mlflow.set_champion(second)
    assert mlflow.champion() == second
    assert second.tags == {"day": "2017-11-08"}
    mlflow.set_champion(None)
    assert mlflow.champion() is None
    assert mlflow.register(runs[0], {"day": "2017-11-09"}) == (first.number, runs[0], {"day": "2017-11-09"})


def test_a_tag_that_would_break_out_of_the_search_is_refused(mlflow: MLflow) -> None:
    mlflow.log_candidate(name="c", tags={"fingerprint": "quotes"})
    with pytest.raises(ValueError, match="can't hold a quote"):
        mlflow.find({"fingerprint": "x' or '1'='1"})


def test_the_url_of_a_run_on_a_server(mlflow: MLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mlflow.log_candidate(name="c", tags={"fingerprint": "url"})
    client = mlflow._client()
    monkeypatch.setattr(MLflow, "_client", lambda self: client)
    experiment = client.get_run(run).info.experiment_id
    assert (
        MLflow(tracking_uri="http://host:5000/").url(run) == f"http://host:5000/#/experiments/{experiment}/runs/{run}"
    )


def test_importing_the_resource_does_not_import_mlflow() -> None:
    code = "import sys, mlops_assets.resources.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


_LOG_THREE = """
import sys
from mlops_assets.resources.mlflow import MLflow
mlflow = MLflow(tracking_uri=sys.argv[1])
for i in range(3):
    mlflow.register(mlflow.log_candidate(name="c", tags={"fingerprint": f"{sys.argv[2]}-{i}"}), {})
"""


@pytest.mark.integration
def test_parallel_steps_may_be_the_first_to_use_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    steps = [subprocess.Popen([sys.executable, "-c", _LOG_THREE, uri, name]) for name in "ab"]
    assert [step.wait(timeout=200) for step in steps] == [0, 0]
    assert all(MLflow(tracking_uri=uri).find({"fingerprint": f"{name}-{i}"}) for name in "ab" for i in range(3))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/far"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.integration
def test_the_same_calls_work_on_a_tracking_server(server: str, model: Path, tmp_path: Path) -> None:
    mlflow = MLflow(tracking_uri=server)
    assert mlflow.champion() is None
    assert mlflow.find(TAGS) is None
    run = mlflow.log_candidate(name="c", tags=TAGS, model=model, series={"auc": [0.5] * 950}, plots={"roc": b"png"})
    assert mlflow.log_candidate(name="c", tags=TAGS) == run
    version = mlflow.register(run, {"day": "2017-11-08"})
    mlflow.set_champion(version)
    assert mlflow.champion() == version
    assert (mlflow.model_folder(run, tmp_path / "here") / "model.onnx").read_bytes() == b"\x00onnx"
    assert mlflow.url(run) == f"{server}/#/experiments/1/runs/{run}"
    mlflow.set_champion(None)
    assert mlflow.champion() is None
