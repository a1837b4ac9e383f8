"""`mlops-assets ui` ends with all that it started, however it is ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.resources import supervisor
from mlops_assets_tests.integration.kafka_harness import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
COMMAND = str(Path(sys.executable).parent / "mlops-assets")
SECONDS = 120


@contextmanager
def opened(home: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """The UI on that home from when it answers, and all the processes that belong to it; none is left after it."""
    command = [COMMAND, "ui", "--home", str(home), "--port", str(free_port())]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes: list[psutil.Process] = [psutil.Process(ui.pid)]
    try:
        assert ui.stdout
        assert any("UI: " in line for line in iter(ui.stdout.readline, ""))
        processes += processes[0].children(recursive=True)
        yield ui, processes
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. In a container whose first process reaps nobody, ended ones stay as zombies."""

    def runs(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    return [process for process in processes if runs(process)]


def test_nothing_is_left_and_the_fleet_is_named(tmp_path: Path) -> None:
    fleet = tmp_path / "inference"
    fleet.mkdir()
    workers = subprocess.Popen([sys.executable, "-P", supervisor.__file__, str(fleet)])
    try:
        with opened(tmp_path) as (ui, processes):
            assert len(processes) >= 5  # itself, dagster, code server, webserver, daemon
            ui.send_signal(signal.SIGTERM)
            ui.send_signal(signal.SIGTERM)  # somebody is impatient
            said, _ = ui.communicate(timeout=SECONDS)
            assert running(processes) == []
        assert ui.returncode == 128 + signal.SIGTERM
        assert f"process {workers.pid}." in said
        assert workers.poll() is None
        stop = re.search(r"To stop them: mlops-assets (.*)", said)
        assert stop
        done = subprocess.run([COMMAND, *stop[1].split()], capture_output=True, text=True, timeout=SECONDS, check=True)
        assert "stopped" in done.stdout
        workers.wait(SECONDS)
    finally:
        workers.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_nothing_is_left_when_the_terminal_is_closed_or_the_user_interrupts(number: int, tmp_path: Path) -> None:
    with opened(tmp_path) as (ui, processes):
        ui.send_signal(number)
        said, _ = ui.communicate(timeout=SECONDS)
        assert running(processes) == []
        assert "fleet stop" not in said


def test_a_dagster_that_a_killed_ui_left_behind_is_named_and_can_be_ended(tmp_path: Path) -> None:
    with opened(tmp_path) as (ui, processes):
        ui.kill()
        ui.wait(SECONDS)
        command = [COMMAND, "ui", "--home", str(tmp_path), "--port", str(free_port())]
        second = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert second.returncode == 1
        kill = re.search(r"`kill (\d+)`", second.stderr)
        assert kill, second.stderr
        psutil.Process(int(kill[1])).terminate()  # a minimal system has no such program outside the shell
        until(lambda: running(processes) == [], SECONDS, "the end of all that the killed one left behind", pause=0.5)
