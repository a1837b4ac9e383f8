"""One session for a day's two jobs: it waits between them, and never for longer than it was told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from mlops_assets.lake.storage import Folder, Storage
from mlops_assets.lake.store import Lake
from mlops_assets.spark import both, predictions, training_set
from mlops_assets.spark.both import NO_MORE, REQUEST, WAITING, wait
from mlops_assets.spark.days import FailedDaysError
from mlops_assets_tests.spark.raw_days import DAYS, data, write_raw
from mlops_assets_tests.spark.test_predictions import model_folder

FOLDER = "_jobs/run/job"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both, "POLL_SECONDS", 0.001)


def ask(storage: Storage, request: bytes) -> bool:
    return storage.put_if(f"{FOLDER}/{REQUEST}", request, None) is not None


def test_both_jobs_of_one_session_make_what_two_make(spark: SparkSession, tmp_path: Path) -> None:
    one, two = (Lake(str(tmp_path / name)) for name in ("one", "two"))
    for lake in (one, two):
        write_raw(lake, DAYS[0], clicks=300)
    model = model_folder(tmp_path / "model")
    training_set.run(spark, two.root, [DAYS[0]])
    predictions.run(spark, two.root, [DAYS[0]], model=str(model))
    ask(one.storage, json.dumps({"days": [DAYS[0]], "model": str(model)}).encode())
    both.run_both(spark, one.root, [DAYS[0]], FOLDER, 60)
    made = data(one)
    assert made.pop(f"{FOLDER}/{WAITING}")
    assert made.pop(f"{FOLDER}/{REQUEST}")
    assert made == data(two)


def test_nothing_is_waited_for_when_a_day_failed(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(FailedDaysError):
        both.run_both(spark, lake.root, [DAYS[0]], FOLDER, 60)
    assert not lake.storage.list(FOLDER)


def test_at_its_limit_it_ends_by_itself_and_no_request_is_taken_any_more(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    assert wait(storage, FOLDER, 0.01) == {}
    assert storage.get(f"{FOLDER}/{WAITING}")
    assert not ask(storage, b'{"days": []}')


def test_told_that_there_is_no_more_it_ends_at_once(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    ask(storage, NO_MORE)
    assert wait(storage, FOLDER, 10**9) == {}


def test_a_request_that_comes_at_the_very_limit_is_done(tmp_path: Path) -> None:
    class AskedAtTheLimit(Folder):
        def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
            if data == NO_MORE and key.endswith(REQUEST):
                super().put_if(key, b'{"days": ["a day"]}', tag)
            return super().put_if(key, data, tag)

    assert wait(AskedAtTheLimit(tmp_path), FOLDER, 0) == {"days": ["a day"]}


def test_a_lake_that_fails_for_a_while_costs_no_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Folder):
        def get(self, key: str) -> tuple[bytes, str] | None:
            if key.endswith(REQUEST) and len(failures) < 2:
                failures.append(key)
                raise OSError("503 Slow Down")
            return super().get(key)

    failures = list[str]()
    ask(Folder(tmp_path), b'{"days": ["a day"]}')
    assert wait(Failing(tmp_path), FOLDER, 60) == {"days": ["a day"]}
    assert capsys.readouterr().out.count("503 Slow Down") == 2


@pytest.mark.integration  # long: a JVM of its own
@pytest.mark.parametrize("ended", [False, True])
def test_the_waiting_application_does_a_request_of_another_process_or_is_ended(tmp_path: Path, ended: bool) -> None:
    lake, model = Lake(str(tmp_path / "lake")), model_folder(tmp_path / "model")
    write_raw(lake, DAYS[0], clicks=300)
    command = [sys.executable, "-m", "mlops_assets.spark.both", "--lake", lake.root, "--days", DAYS[0]]
    command += ["--folder", FOLDER, "--minutes", "10"]
    options = "--conf spark.ui.enabled=false --conf spark.ui.showConsoleProgress=false pyspark-shell"
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": options}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        try:
            while not lake.storage.get(f"{FOLDER}/{WAITING}"):
                assert process.poll() is None
                time.sleep(0.1)
            assert lake.days("training_set") == [DAYS[0]]
            if ended:
                process.send_signal(signal.SIGTERM)
            else:
                ask(lake.storage, json.dumps({"days": [DAYS[0]], "model": str(model)}).encode())
            process.wait(120)
        finally:
            process.kill()
    assert process.returncode == (128 + signal.SIGTERM if ended else 0)
    assert lake.days("batch_predictions") == ([] if ended else [DAYS[0]])
