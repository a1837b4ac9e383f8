"""MLflow on Postgres with its artifacts in S3: what is logged outlives restarts, and nothing half-logged is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow.tracking import MlflowClient

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.cli.servers import BUCKET, Postgres, make_bucket, mlflow_server
from mlops_assets.resources import mlflow as resource
from mlops_assets.resources.mlflow import MLflow, MLflowUnavailableError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TAGS = {"fingerprint": "0f3a", "day": "2017-11-08"}


class Server:
    """An MLflow server that a test stops and starts."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start, self._running = start, ExitStack()

    def start(self) -> None:
        self._running.enter_context(self._start())

    def stop(self) -> None:
        self._running.close()
        resource._await_server.cache_clear()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(postgres: Postgres, s3_variables: dict[str, str], port: int, tmp_path: Path) -> Iterator[Server]:
    make_bucket(s3_variables, BUCKET)
    server = Server(lambda: mlflow_server(tmp_path / "mlflow", port, postgres.url, s3_variables))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"\x00onnx" * 1000)
    (folder / "model.json").write_text("{}")
    return folder


def test_what_is_logged_outlives_restarts_and_what_is_half_logged_is_not_found(
    server: Server,
    postgres: Postgres,
    s3_variables: dict[str, str],
    port: int,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow = MLflow(tracking_uri=f"http://127.0.0.1:{port}", experiment="restarts", registered_model="restarts")
    log_artifact = MlflowClient.log_artifact

    def before_the_first_artifact(fault: Callable[[], None]) -> None:
        def faulty(*arguments: Any) -> None:
            monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
            fault()
            log_artifact(*arguments)

        monkeypatch.setattr(MlflowClient, "log_artifact", faulty)

    def restart_postgres() -> None:
        postgres.stop()
        postgres.start()

    # Postgres is restarted during a run: the run is whole.
    before_the_first_artifact(restart_postgres)
    first = mlflow.log_candidate(name="first", tags=TAGS, model=model, metrics={"auc": 0.9}, plots={"roc": b"png"})
    assert mlflow.find(TAGS) == first
    mlflow.set_champion(mlflow.register(first, {"day": "2017-11-08"}))

    # The server dies during a run: an error, and after its return the next attempt is the one that is found.
    other = {**TAGS, "fingerprint": "other"}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    before_the_first_artifact(server.stop)
    with pytest.raises(Exception, match=rf"127.0.0.1.*{port}"):
        mlflow.log_candidate(name="second", tags=other, model=model)

    # It is still down when the next one begins.
    monkeypatch.setattr(resource, "AWAIT_SECONDS", 1)
    with pytest.raises(MLflowUnavailableError, match=rf"127.0.0.1:{port} has not answered for 1 s: start it, or corre"):
        mlflow.find(other)

    server.start()
    assert mlflow.find(other) is None
    second = mlflow.log_candidate(name="second", tags=other, model=model)
    assert mlflow.find(other) == second == mlflow.log_candidate(name="again", tags=other)
    client = MlflowClient(mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("restarts")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "RUNNING"], "the broken one is no result"

    champion = mlflow.champion()
    assert champion
    assert champion.run_id == first
    folder = mlflow.model_folder(champion.run_id, tmp_path / "there")
    assert (folder / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()

    s3 = boto3.client(
        "s3",
        endpoint_url=s3_variables["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=s3_variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3_variables["AWS_SECRET_ACCESS_KEY"],
    )
    stored = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]]
    names = {Path(key).name for key in stored if first in key}
    assert names == {"model.onnx", "model.json", "roc.png"}, "in S3, and no pickle"
