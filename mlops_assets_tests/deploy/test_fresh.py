"""The check on a fresh Debian: what it says where it can't run, and what is left of it when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "test-fresh.sh"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of the few programs that the script needs before it makes a system, and a debootstrap that never ends."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "env", "flock", "grep", "mkdir", "rm", "sleep", "tail", "true", "unshare"):
        (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
    for name, text in {"id": "echo 0", "debootstrap": 'mkdir "$4" && touch "$4/begun" && sleep 600'}.items():
        (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def start(programs: Path, tmp_path: Path) -> subprocess.Popen[str]:
    variables = {"PATH": str(programs), "HOME": str(tmp_path), "MLOPS_CACHE": str(tmp_path)}
    return subprocess.Popen([str(SCRIPT), "bookworm"], env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("missing", ["root", "debootstrap", "unshare"])
def test_what_it_lacks_is_said_and_is_no_failure(programs: Path, tmp_path: Path, missing: str) -> None:
    if missing == "root":
        (programs / "id").write_text("#!/bin/sh\necho 1000\n")
    else:
        (programs / missing).unlink()
    with start(programs, tmp_path) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.startswith("SKIPPED: ")
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")
def test_a_debian_that_cannot_be_had_is_said_with_its_reason_and_is_no_failure(programs: Path, tmp_path: Path) -> None:
    (programs / "debootstrap").write_text("#!/bin/sh\necho no such mirror\nexit 1\n")
    with start(programs, tmp_path) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "namespaces" in said or said.startswith("no such mirror\nSKIPPED: debootstrap could not make bookworm")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces")
def test_ended_in_the_middle_it_leaves_no_process_and_no_folder(programs: Path, tmp_path: Path) -> None:
    with start(programs, tmp_path) as process:
        begun, deadline = tmp_path / "fresh" / "new" / "begun", time.monotonic() + 60
        while not begun.exists():
            if process.poll() is not None and "namespaces" in (said := process.communicate()[0]):
                pytest.skip(said)
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        below = psutil.Process(process.pid).children(recursive=True)
        assert {"unshare", "sleep"} <= {each.name() for each in below}
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(below, timeout=10)[1] == []
    assert {path.name for path in (tmp_path / "fresh").iterdir()} == {"lock", "bookworm.log"}
