"""The packed Python: an application runs in it, on a cluster where nothing else of this project is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyspark
import pytest
from botocore.session import Session

from mlops_assets.lake.storage import open_storage
from mlops_assets.lake.store import Lake
from mlops_assets.resources.programs import ProgramError, java
from mlops_assets.resources.spark import LocalSpark
from mlops_assets.resources.spark_environment import ARCHIVE, MAIN, YANDEX_KEYS, arguments, build, publish, settings
from mlops_assets_tests.spark.raw_days import DAYS, data, write_raw

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an environment, built of this checkout and published into a folder."""
    if shutil.which("uv", path=f"{os.environ['PATH']}{os.pathsep}{PROJECT / '.tools' / 'bin'}") is None:
        pytest.skip("no uv, which packs the environment: make setup")
    if Path(sys.base_prefix) == Path("/usr"):
        pytest.skip("a distribution's Python is spread over /usr, and can't be packed instead of a standalone one")
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{PROJECT / '.tools' / 'bin'}", prepend=os.pathsep)
        # This machine's own Python: a standalone one is a download. All the rest is as it will be.
        version = build(PROJECT, folder / ARCHIVE, Path(sys.base_prefix))
    return publish(folder / ARCHIVE, version, str(folder / "bucket"))


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_an_application_runs_in_the_environment_on_executors_without_this_project(
    environment: str, tmp_path: Path
) -> None:
    java()
    lake, expected = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "expected"))
    for each in (lake, expected):
        write_raw(each, DAYS[0])
    LocalSpark(memory="1g").training_set(expected.root, DAYS[:1], lambda _: None)
    home = tmp_path / "spark"  # a copy, because Spark's own local cluster writes into it
    home.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        if entry.name != "work":
            (home / entry.name).symlink_to(entry)
    variables = {"AWS_REGION": "nowhere"}
    conf = settings(environment, variables)
    conf["spark.archives"] = conf.pop("spark.yarn.dist.archives")  # what it is called without YARN
    command = ["mlops_assets.spark.training_set", "--lake", lake.root, "--days", DAYS[0]]
    done = subprocess.run(
        [
            str(home / "bin" / "spark-submit"),
            *("--master", "local-cluster[1,2,1024]"),
            *(part for name, value in conf.items() for part in ("--conf", f"{name}={value}")),
            f"{environment}/{MAIN}",
            *arguments(environment, variables, command),
        ],
        cwd=tmp_path,
        # Of this machine: a system Python without packages, and Java.
        env={"PATH": f"{Path(java()).parent}:/usr/bin:/bin", "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
        | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"training_set of {DAYS[0]}: 4,000 rows" in done.stdout, "the driver's output is the job's"
    assert data(lake) == data(expected)


@pytest.mark.integration
def test_the_archive_is_the_locked_spark_extra_without_the_clusters_own_spark(environment: str, tmp_path: Path) -> None:
    with tarfile.open(f"{environment}/{ARCHIVE}") as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    shutil.unpack_archive(f"{environment}/{ARCHIVE}", tmp_path, "gztar")  # as main.py does
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    top = {name.removeprefix(f"{packages}/").split("/")[0] for name in names if name.startswith(f"{packages}/")}
    assert {"pyarrow", "boto3", "onnxruntime", "pandas", "mlops_assets"} <= top
    assert not {"pyspark", "py4j", "dagster", "mlflow", "sklearn"} & top
    assert "etc/yandex_keys.ini" in names
    program = "import mlops_assets.lake.s3, sys; print(mlops_assets.__file__, sys.prefix)"
    command = [str(tmp_path / "bin" / "python3"), "-c", program]
    seen = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, timeout=60, check=True).stdout
    assert seen == f"{tmp_path / packages / 'mlops_assets' / '__init__.py'} {tmp_path}\n", "wherever it lies"


def test_publishing_again_uploads_nothing_and_another_version_replaces_none(tmp_path: Path) -> None:
    archive, bucket = tmp_path / ARCHIVE, str(tmp_path / "bucket")
    archive.write_bytes(b"first")
    first = publish(archive, "1-aaa", bucket)
    archive.write_bytes(b"second")
    assert publish(archive, "1-aaa", bucket) == first
    second = publish(archive, "1-bbb", bucket)
    found = {key: open_storage(bucket).get(key) for key in open_storage(bucket).list("")}
    assert {key: data and data[0] for key, data in found.items() if key.endswith(ARCHIVE)} == {
        f"spark-environment-1-aaa/{ARCHIVE}": b"first",
        f"spark-environment-1-bbb/{ARCHIVE}": b"second",
    }
    assert {Path(first, MAIN).read_bytes(), Path(second, MAIN).read_bytes()} == {
        (PROJECT / "mlops_assets" / "spark" / "bare_main.py").read_bytes()
    }


@pytest.mark.parametrize(
    ("given", "calls"),
    [(None, ["cpython-3.11-linux-x86_64-gnu"]), ("3.14", ["lib/python3.14/site-packages", "--python-version 3.14"])],
)
def test_the_packed_python_is_one_for_clusters_or_the_one_given_whatever_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, calls: list[str]
) -> None:
    uv, said, python = tmp_path / "bin" / "uv", tmp_path / "calls", tmp_path / "python"
    for file in (uv, python / "lib" / f"python{given}" / "os.py", python / "bin" / f"python{given}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    uv.write_text(f'#!/bin/sh\necho "$@" >> {said}\n[ "$1" != pip ] && [ "$1" != python ]\n')
    monkeypatch.setenv("PATH", f"{uv.parent}:/usr/bin:/bin")
    with pytest.raises(ProgramError, match="could not be"):
        build(PROJECT, tmp_path / ARCHIVE, python if given else None)
    last = said.read_text().splitlines()[-1]
    assert all(call in last for call in calls), last


def test_what_is_no_python_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"holds no Python: it has no lib/python3\.\*/os\.py"):
        build(PROJECT, tmp_path / ARCHIVE, tmp_path)


class YandexMachine(BaseHTTPRequestHandler):
    """The metadata service of a virtual machine, and IAM."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    allowed: ClassVar[bool] = True

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Metadata-Flavor"]))
        self.answer(200, {"access_token": "t1.token", "expires_in": 43_000, "token_type": "Bearer"})

    def do_POST(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert wanted["duration"] == "3600s"
        key = {"accessKeyId": "YCAK", "secret": "short-lived", "sessionToken": "s1.session"}
        body = {**key, "expiresAt": "2999-12-16T06:23:51.383485065Z"}
        self.answer(*((200, body) if self.allowed else (403, {"message": "Permission denied"})))

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def yandex_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Variables and folder as on a node of Data Proc."""
    server = HTTPServer(("127.0.0.1", 0), YandexMachine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("YC_METADATA_ADDR", address)
    monkeypatch.setenv("MLOPS_YC_IAM", f"http://{address}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    python = tmp_path / "environment" / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(YANDEX_KEYS))
    monkeypatch.chdir(tmp_path)
    YandexMachine.asked.clear()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("yandex_machine")
def test_boto_gets_short_lived_keys_of_the_machines_own_account() -> None:
    credentials = Session().get_credentials()
    assert (credentials.access_key, credentials.secret_key, credentials.token) == ("YCAK", "short-lived", "s1.session")
    assert [each[1] for each in YandexMachine.asked] == ["Google", "Bearer t1.token"]


@pytest.mark.usefixtures("yandex_machine")
def test_a_missing_role_is_said_by_the_service_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(YandexMachine, "allowed", False)
    with pytest.raises(Exception, match=r"answers 403: .*Permission denied"):
        Session().get_credentials().get_frozen_credentials()
