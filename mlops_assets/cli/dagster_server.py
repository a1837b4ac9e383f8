"""Dagster as one local process group: webserver, daemon and code server on an instance folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import click
import requests

INSTANCE_SETTINGS: Final = Path(__file__).parents[2] / "deploy" / "dagster.yaml"
MODULE: Final = "mlops_assets.definitions"
START_SECONDS: Final = 180
REQUEST_SECONDS: Final = 60

LAUNCH_JOB: Final = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""

RUNS: Final = """
query($job: String!) {
  runsOrError(filter: {pipelineName: $job}) { ... on Runs { results { runId status tags { key value } } } }
}"""

RUN: Final = """
query($id: ID!) {
  runOrError(runId: $id) { ... on Run { status executionPlan { steps { key } } stepStats { stepKey status } } }
}"""

FAILURES: Final = """
query {
  runsOrError(filter: {statuses: [FAILURE]}, limit: 3) { ... on Runs { results {
    runId
    eventConnection { events { ... on ExecutionStepFailureEvent { stepKey error { message } } } }
  } } }
}"""


class DagsterError(click.ClickException):
    """Dagster refused a request, or did not start; shown to the user as it is."""


@dataclass(frozen=True)
class DagsterServer:
    """A running Dagster's GraphQL API, for the graph of a module."""

    url: str
    module: str = MODULE
    process: subprocess.Popen[bytes] | None = None

    def wait(self) -> None:
        """Returns when Dagster has ended by itself."""
        if self.process:
            self.process.wait()

    def query(self, text: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The `data` of one GraphQL request. Raises DagsterError with the server's own message."""
        body: dict[str, Any] = {"query": text, "variables": dict(variables or {})}
        response = requests.post(f"{self.url}/graphql", json=body, timeout=REQUEST_SECONDS)
        answer = response.json()
        if response.status_code != requests.codes.ok or answer.get("errors"):
            raise DagsterError(f"Dagster refused a request: {answer.get('errors', response.text)}")
        data: dict[str, Any] = answer["data"]
        return data

    def launch_job(
        self, job: str, day: str | None = None, last: str | None = None, config: Mapping[str, Any] | None = None
    ) -> str:
        """Starts a run of `job`, for the partition `day` if it has partitions, or for all from it to `last`; its id."""
        return self._launch({"jobName": job}, day, last, config)

    def launch_assets(self, assets: Iterable[str], day: str) -> str:
        """Starts a run of some assets' partition `day`, as `Materialize` in the UI does; the id of the run."""
        return self._launch({"jobName": "__ASSET_JOB", "assetSelection": [{"path": [asset]} for asset in assets]}, day)

    def _launch(
        self, job: Mapping[str, Any], day: str | None, last: str | None = None, config: Mapping[str, Any] | None = None
    ) -> str:
        selector = {"repositoryName": "__repository__", "repositoryLocationName": self.module, **job}
        if day and last not in (None, day):
            tags = {"dagster/asset_partition_range_start": day, "dagster/asset_partition_range_end": last}
        else:
            tags = {"dagster/partition": day} if day else {}
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        params = {"selector": selector, "executionMetadata": metadata, "runConfigData": dict(config or {})}
        result = self.query(LAUNCH_JOB, {"params": params})["launchRun"]
        if result["__typename"] != "LaunchRunSuccess":
            raise DagsterError(f"the run was not accepted: {result}")
        run_id: str = result["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        """The run's status, its plan and its steps' statuses, as GraphQL gives them."""
        result: dict[str, Any] = self.query(RUN, {"id": run_id})["runOrError"]
        return result

    def runs(self, job: str) -> list[dict[str, Any]]:
        """All runs of `job` with their statuses and tags, as GraphQL gives them, the newest first."""
        results: list[dict[str, Any]] = self.query(RUNS, {"job": job})["runsOrError"]["results"]
        return results

    def failures(self) -> list[str]:
        """Why the latest failed steps failed."""
        runs = self.query(FAILURES)["runsOrError"]["results"]
        events = [event for run in runs for event in run["eventConnection"]["events"] if event.get("error")]
        return [f"{event['stepKey']}: {event['error']['message'].strip()}" for event in events]


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def prepare_instance(home: Path) -> None:
    """Makes `home` a Dagster instance with the project's settings, unless it has its own already."""
    home.mkdir(parents=True, exist_ok=True)
    target = home / "dagster.yaml"
    if not target.exists():
        shutil.copyfile(INSTANCE_SETTINGS, target)


def dagster_command(port: int, module: str) -> list[str]:
    """The command that serves a module's graph on `port`."""
    return [sys.executable, "-m", "dagster", "dev", "--module-name", module, "--host", "127.0.0.1", "--port", str(port)]


@contextmanager
def only_one(home: Path) -> Iterator[IO[str]]:
    """Keeps a second Dagster off the instance: two daemons would fight for its runs. Raises DagsterError.

    Gives the lock, which the kernel drops with the last process that has it open; it holds the id of one that does.
    """
    with (home / "in-use.lock").open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DagsterError(
                f"{home} is in use by another `demo` or `ui`, or by the Dagster that a killed one left behind: "
                f"end that one first, as by `kill {lock.read()}`"
            ) from None
        yield lock


@contextmanager
def serve(
    home: Path, environment: Mapping[str, str], port: int | None = None, module: str = MODULE
) -> Iterator[DagsterServer]:
    """Runs Dagster on the instance `home` and stops it, with all its children, at the end.

    Raises:
        DagsterError: the instance is in use; Dagster ended, or did not answer within three minutes (the message names
            its log).
    """
    import dagster as dg  # it takes a while

    from mlops_assets.automation.lost_runs import fail_lost_runs, running

    prepare_instance(home)
    with only_one(home) as lock, (home / "dagster.log").open("ab") as log:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            fail_lost_runs(instance, running(instance))
        port = port or free_port()
        process = subprocess.Popen(
            dagster_command(port, module),
            env={**os.environ, **environment, "DAGSTER_HOME": str(home.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # it is in use for as long as Dagster lives, also when this process is killed
        )
        try:
            lock.truncate(0)
            lock.write(str(process.pid))
            lock.flush()
            yield started(process, DagsterServer(f"http://127.0.0.1:{port}", module, process), home / "dagster.log")
        finally:
            stop_group(process)


def started(process: subprocess.Popen[bytes], server: DagsterServer, log: Path) -> DagsterServer:
    """The server, as soon as it answers. Raises DagsterError as `serve` says."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.query("{ version }")
            return server
        except requests.RequestException:
            time.sleep(0.5)
    raise DagsterError(f"Dagster did not start; the reason is at the end of {log}")


def stop_group(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """Ends a process that leads its own group, politely and then by force, and what is left of the group.

    By force at once when it is interrupted itself, as by a second Ctrl-C.
    """
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=seconds)
