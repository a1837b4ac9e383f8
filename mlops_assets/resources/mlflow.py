"""MLflow: the runs of the candidates and the registry with its champion. Embedded: sqlite and a folder."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import requests
from dagster import ConfigurableResource

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

# mlflow is imported where it is first used: it takes seconds, and most processes of a run never need it.

CHAMPION: Final = "champion"
MODEL_ARTIFACT: Final = "model"
SQLITE: Final = "sqlite:///"

_CLIENT_SETTINGS: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "120",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Seconds and attempts of mlflow's own HTTP client, and quiet logs. What the environment already says goes first."""


AWAIT_SECONDS: Final = 30.0
"""How long a server that is being restarted is waited for."""


class MLflowUnavailableError(RuntimeError):
    """The tracking server does not answer."""


class Registered(NamedTuple):
    """A version in the model registry: its number, the run that made it, and its tags."""

    number: str
    run_id: str
    tags: dict[str, str]


class MLflow(ConfigurableResource[Any]):
    """Candidates as runs, champions as versions of one registered model.

    `tracking_uri` is `sqlite:///` and an absolute path (artifacts then lie in `artifacts` beside the file), or the
    URL of a tracking server. A run is made explicitly and found again by its tags, so parallel steps share no state.
    """

    tracking_uri: str
    experiment: str = "click-fraud"
    registered_model: str = "click-fraud"

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The id of the first finished run with all these tags."""
        experiment = self._client().get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        conditions = [f"tags.`{name}` = '{_quotable(value)}'" for name, value in tags.items()]
        runs: Sequence[Run] = self._client().search_runs(
            [experiment.experiment_id],
            " and ".join([*conditions, "attributes.status = 'FINISHED'"]),
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return runs[0].info.run_id if runs else None

    def log_candidate(
        self,
        *,
        name: str,
        tags: Mapping[str, str],
        model: Path | None = None,
        parameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        series: Mapping[str, Sequence[float]] | None = None,
        plots: Mapping[str, bytes] | None = None,
    ) -> str:
        """The id of the finished run with these tags, which is made unless there is one.

        `model` is a model folder, `series` holds a metric's values step by step, `plots` PNG bytes by name. A run that
        fails half-way is marked FAILED, and not found later.
        """
        if (existing := self.find(tags)) is not None:
            return existing
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        values = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
        for key, steps in (series or {}).items():
            values += [Metric(key, float(value), now, step) for step, value in enumerate(steps)]
        with self._run(name, tags) as run_id, tempfile.TemporaryDirectory() as folder:
            params = [Param(key, str(value)) for key, value in (parameters or {}).items()]
            for start in range(0, max(len(values), 1), 900):  # the server takes 1,000 values a request
                self._client().log_batch(
                    run_id, metrics=values[start : start + 900], params=params if start == 0 else ()
                )
            for file in sorted(model.iterdir()) if model is not None else ():  # log_artifacts takes a missing folder
                self._client().log_artifact(run_id, str(file), MODEL_ARTIFACT)
            for plot, png in (plots or {}).items():
                (Path(folder) / f"{plot}.png").write_bytes(png)
            if plots:
                self._client().log_artifacts(run_id, folder, "plots")
        return run_id

    def model_folder(self, run_id: str, target: Path) -> Path:
        """Downloads the model of a run into `target`, which is created where missing, and returns its folder."""
        target.mkdir(parents=True, exist_ok=True)
        return Path(self._client().download_artifacts(run_id, MODEL_ARTIFACT, str(target)))

    def register(self, run_id: str, tags: Mapping[str, str]) -> Registered:
        """The registry's version of a run's model, made unless there is one. `tags` are added to it."""
        from mlflow.exceptions import MlflowException

        client = self._client()
        try:
            client.create_registered_model(self.registered_model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.search_model_versions(f"name = '{self.registered_model}' and run_id = '{run_id}'")
        if found:
            version = found[0]
            for key, value in tags.items():
                client.set_model_version_tag(self.registered_model, version.version, key, value)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_ARTIFACT}"
            version = client.create_model_version(self.registered_model, source, run_id, tags=dict(tags))
        return Registered(str(version.version), run_id, {**version.tags, **tags})

    def set_champion(self, version: Registered | None) -> None:
        """Moves the champion alias to a registered version, or removes it."""
        if version is not None:
            self._client().set_registered_model_alias(self.registered_model, CHAMPION, version.number)
        elif self.champion() is not None:
            self._client().delete_registered_model_alias(self.registered_model, CHAMPION)

    def champion(self) -> Registered | None:
        """The registered version that carries the champion alias."""
        from mlflow.exceptions import MlflowException

        try:
            version = self._client().get_model_version_by_alias(self.registered_model, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no alias
                return None
            raise
        return Registered(str(version.version), str(version.run_id), dict(version.tags))

    def url(self, run_id: str) -> str | None:
        """The page of a run on the tracking server; None where there is no server."""
        if not self.tracking_uri.startswith("http"):
            return None
        experiment = self._client().get_run(run_id).info.experiment_id
        return f"{self.tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    @contextmanager
    def _run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        run_id = self._client().create_run(self._experiment_id(), tags=dict(tags), run_name=name).info.run_id
        try:
            yield run_id
        except BaseException:
            self._client().set_terminated(run_id, "FAILED")
            raise
        self._client().set_terminated(run_id, "FINISHED")

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client()
        if (experiment := client.get_experiment_by_name(self.experiment)) is None:
            artifacts = (self._database.parent / "artifacts").as_uri() if self._database else None
            try:
                return client.create_experiment(self.experiment, artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(self.experiment)  # another process was faster
        if experiment is None or experiment.lifecycle_stage != "active":
            raise ValueError(
                f"the MLflow experiment {self.experiment!r} at {self.tracking_uri} was deleted: restore it "
                "(mlflow experiments restore), or configure another name"
            )
        return str(experiment.experiment_id)

    @property
    def _database(self) -> Path | None:
        if not self.tracking_uri.startswith(SQLITE):
            return None
        return Path(self.tracking_uri.removeprefix(SQLITE).partition("?")[0])

    def _client(self) -> MlflowClient:
        for name, value in _CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        if self._database:
            _create_tables(self._database, self.tracking_uri)
        elif self.tracking_uri.startswith("http"):
            _await_server(self.tracking_uri)
        return MlflowClient(self.tracking_uri, self.tracking_uri)


@cache
def _create_tables(database: Path, tracking_uri: str) -> None:
    """Opens a database once per process, and in one process at a time.

    mlflow migrates a new database without a lock that holds until the end, and parallel steps broke each other's.
    """
    from mlflow.tracking import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri, tracking_uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)


@cache
def _await_server(tracking_uri: str) -> None:
    """Waits for a server that is down, once per process. Raises MLflowUnavailableError.

    mlflow's own client waits as long for each request, and then says it in a page of text.
    """
    deadline = time.monotonic() + AWAIT_SECONDS
    while True:
        try:
            requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=5)
            return  # whatever it says: a proxy before it may want what only mlflow's client sends
        except requests.RequestException as error:
            if time.monotonic() > deadline:
                raise MLflowUnavailableError(
                    f"the MLflow server {tracking_uri} has not answered for {AWAIT_SECONDS:.0f} s: start it, or "
                    f"correct MLFLOW_TRACKING_URI; then run this again ({type(error).__name__})"
                ) from error
        time.sleep(1)


def _quotable(value: str) -> str:
    if "'" in value or "\\" in value:
        raise ValueError(f"an MLflow tag to search by can't hold a quote or a backslash: {value!r}")
    return value
