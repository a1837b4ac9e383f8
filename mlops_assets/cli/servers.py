"""The servers of the real environment on this machine, for its demo and its tests: S3, Postgres, and MLflow on both.

All listen on loopback only. What the environment names already is used as it is, and not started: an S3 endpoint by
AWS_ENDPOINT_URL_S3, an MLflow server by MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import requests

from mlops_assets.cli.dagster_server import free_port, stop_group
from mlops_assets.resources.programs import ProgramError, run

BUCKET: Final = "mlops-assets"
REGION: Final = "us-east-1"
START_SECONDS: Final = 180
COMMAND_SECONDS: Final = 120
PROBE_SECONDS: Final = 5
POSTGRES_FOLDERS: Final = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def find_s3_server() -> str:
    """The program versitygw, on PATH or named by MLOPS_VERSITYGW. Raises ProgramError."""
    found = shutil.which(os.environ.get("MLOPS_VERSITYGW") or "versitygw")
    if found is None:
        raise ProgramError(
            "no versitygw, an S3 server: `go install github.com/versity/versitygw/cmd/versitygw@latest` and put it on "
            "PATH or into MLOPS_VERSITYGW, or set AWS_ENDPOINT_URL_S3 and its keys to another S3"
        )
    return found


def find_postgres() -> Path:
    """The folder of Postgres' programs. Raises ProgramError."""
    on_path = shutil.which("pg_ctl")
    found = [Path(on_path).resolve().parent] if on_path else []
    for pattern in POSTGRES_FOLDERS:
        found += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    for folder in found:
        if (folder / "pg_ctl").exists() and (folder / "initdb").exists():
            return folder
    raise ProgramError("no Postgres server: install the package postgresql, or set MLFLOW_TRACKING_URI")


@contextmanager
def s3_server(folder: Path, port: int, key: str, secret: str) -> Iterator[dict[str, str]]:
    """An S3 server whose buckets are folders below `folder`; gives the variables by which all clients find it."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    command = [find_s3_server(), "--port", f"127.0.0.1:{port}", "--region", REGION, "--quiet", "posix", str(data)]
    environment = {"ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": secret}
    with serving(command, folder / "server.log", environment, partial(_accepts, port)):
        yield {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
        }


class Postgres:
    """A private Postgres whose data live in `folder`. As root it runs as the user postgres, for it refuses root."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.resolve()
        self.port = port
        self._programs = find_postgres()
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        """The address of its one database, with the password."""
        return f"postgresql+psycopg2://mlflow:{(self.folder / 'password').read_text()}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it answers. Raises ProgramError with the reason."""
        if not (self._data / "postgresql.auto.conf").exists():
            self._initialize()
        if (self._data / "postmaster.pid").exists():
            self.stop()  # of an earlier caller that was killed
        self._control(["start", "--log", str(self.folder / "server.log")], "Postgres did not start")

    def stop(self) -> None:
        """Ends it, and the sessions that are open, at once but in order."""
        status = [str(self._programs / "pg_ctl"), "status", "-D", str(self._data)]
        if subprocess.run(status, capture_output=True, timeout=COMMAND_SECONDS, check=False, **self._user).returncode:
            return
        self._control(["stop", "--mode", "fast"], "Postgres did not stop")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        names = {entry.pw_name for entry in pwd.getpwall()}
        entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _initialize(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        if user := self._user:
            for path in (self.folder, password):
                os.chown(path, user["user"], user["group"])
            failure = f"Postgres can't run as root, and the user it would run as can't reach {self.folder}"
            run(["test", "-w", str(self.folder)], COMMAND_SECONDS, failure, **user)
        command = [str(self._programs / "initdb"), "-D", str(self._data), "--username=mlflow", "--encoding=UTF8"]
        command += ["--locale=C", "--auth=scram-sha-256", f"--pwfile={password}"]
        run(command, COMMAND_SECONDS, f"no database could be made in {self._data}", **self._user)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n")

    def _control(self, arguments: list[str], failure: str) -> None:
        command = [str(self._programs / "pg_ctl"), *arguments, "-D", str(self._data), "--wait", "--timeout=60"]
        log = self.folder / "server.log"
        run(command, COMMAND_SECONDS, f"{failure}; its log is {log}", **self._user)


@contextmanager
def mlflow_server(folder: Path, port: int, database: str, environment: Mapping[str, str]) -> Iterator[str]:
    """An MLflow server on a database, which keeps and serves the artifacts in S3; gives its address."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": database,  # not on the command line, for all to see: it holds the password
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    url = f"http://127.0.0.1:{port}"
    with serving(command, folder / "server.log", {**environment, **settings}, partial(_is_healthy, url)):
        yield url


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """All of them; gives the environment's variables with which the graph runs on them.

    Ports, keys and data stay in `folder` for the next time. Raises ProgramError where a program is missing.
    """
    state = _state(folder)
    with ExitStack() as stack:
        s3 = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if "AWS_ENDPOINT_URL_S3" not in s3:
            s3 = stack.enter_context(s3_server(folder / "s3", state["s3"], state["key"], state["secret"]))
        make_bucket(s3, BUCKET)
        tracking = os.environ.get("MLFLOW_TRACKING_URI")
        if tracking is None:
            database = stack.enter_context(Postgres(folder / "postgres", state["postgres"])).url
            tracking = stack.enter_context(mlflow_server(folder / "mlflow", state["mlflow"], database, s3))
        lake = os.environ.get("MLOPS_LAKE", f"s3://{BUCKET}/lake")
        yield {**s3, "MLFLOW_TRACKING_URI": tracking, "MLOPS_LAKE": lake, "MLOPS_ENVIRONMENT": "real"}


def make_bucket(environment: Mapping[str, str], bucket: str) -> None:
    """Makes a bucket, unless it is there, at the endpoint and with the keys of these variables."""
    import boto3  # it takes a while

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        region_name=environment.get("AWS_REGION"),
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
    )
    if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)


@contextmanager
def serving(
    command: list[str], log: Path, environment: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server from when it is `ready` to the end of the block. Raises ProgramError with the end of its log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise ProgramError(f"the {log.parent.name} server did not start; the end of {log}:\n{tail}")
            time.sleep(0.1)
        yield process
    finally:
        stop_group(process)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "servers.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        ports = {name: free_port() for name in ("s3", "postgres", "mlflow")}
        path.write_text(json.dumps({**ports, "key": getpass.getuser(), "secret": secrets.token_urlsafe(24)}))
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _is_healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=PROBE_SECONDS).ok
    except requests.RequestException:
        return False
