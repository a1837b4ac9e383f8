"""The applications as a cluster runs them: by their command line, ended by a signal, with executors of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_assets.lake.store import Lake
from mlops_assets.spark import executor
from mlops_assets_tests.spark.raw_days import DAYS, write_raw

SCHEDULER = {
    **{variable: name for name, variable in executor.ARGUMENTS.items()},
    "SPARK_EXECUTOR_MEMORY": "512m",
    "SPARK_JAVA_OPT_10": "-Dlast=1",
    "SPARK_JAVA_OPT_2": "-Dfirst=a b",
}


@pytest.mark.integration  # long: a JVM of its own
def test_an_application_that_is_ended_by_its_cluster_leaves_whole_days_and_nothing_else(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for day in DAYS:
        write_raw(lake, day, clicks=30_000)
    command = [sys.executable, "-m", "mlops_assets.spark.training_set", "--lake", lake.root, "--days", ",".join(DAYS)]
    options = "--conf spark.ui.enabled=false --conf spark.ui.showConsoleProgress=false pyspark-shell"
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": options}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"training_set of {DAYS[0]}: 30,000 rows, version ")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 128 + signal.SIGTERM
    assert DAYS[0] in lake.days("training_set")
    assert DAYS[2] not in lake.days("training_set")
    assert not list(Path(lake.root, "_staging").rglob("*.parquet"))


def test_an_executor_is_started_as_sparks_scheduler_describes_it() -> None:
    command = executor.command(SCHEDULER, Path("/jars"))
    assert command[:4] == ["-Dfirst=a b", "-Dlast=1", "-Xms512m", "-Xmx512m"]
    assert command[command.index("-cp") + 1 :][:2] == ["/jars/*", executor.BACKEND]
    assert command[-2:] == ["--podName", "podName"]
    with_settings = executor.command({**SCHEDULER, "SPARK_CONF_DIR": "/conf"}, Path("/jars"))
    assert "/conf:/jars/*" in with_settings


def test_without_sparks_scheduler_it_says_what_is_missing() -> None:
    with pytest.raises(SystemExit, match="sets SPARK_DRIVER_URL"):
        executor.command({name: value for name, value in SCHEDULER.items() if name != "SPARK_DRIVER_URL"}, Path())
