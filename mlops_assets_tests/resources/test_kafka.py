"""What the local broker is made from, and how its process is found, without a broker."""

import subprocess
import sys
import uuid
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_settings import cluster_id


def test_a_cluster_id_is_never_taken_for_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xff" * 16))
    assert cluster_id()[0].isalnum()
    assert len(urlsafe_b64decode(cluster_id() + "==")) == 16


def test_cluster_ids_differ() -> None:
    assert cluster_id() != cluster_id()


def process_with(argument: Path) -> subprocess.Popen[bytes]:
    program = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program, str(argument)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # a process that just begins has no command line yet
    return process


def test_a_broker_is_found_and_ended_on_a_machine_without_ps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with process_with(tmp_path / "server.properties") as process:
        (tmp_path / "pid").write_text(str(process.pid))
        broker = LocalBroker(tmp_path)
        try:
            assert broker.pid == process.pid
            broker.stop()
            assert broker.pid is None, "what has ended runs no more, also while nobody has reaped it"
        finally:
            process.kill()


def test_a_number_that_went_to_another_process_is_no_broker(tmp_path: Path) -> None:
    with process_with(tmp_path / "other" / "server.properties") as process:
        (tmp_path / "pid").write_text(str(process.pid))
        assert LocalBroker(tmp_path).pid is None
        LocalBroker(tmp_path).stop()
        assert process.poll() is None
        process.kill()
    assert LocalBroker(tmp_path).pid is None, "nor is one that no process has"
