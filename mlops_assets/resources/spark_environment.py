"""This project's Python for clusters that bring only Spark: one relocatable archive, built once and kept in the bucket.

    <address>/environment.tar.gz   a standalone CPython, the locked packages of the extra spark-cluster, this project
    <address>/main.py              what starts an application in it, see spark/bare_main.py

The address holds the hash of the content, so a new version never replaces the one that a running job reads.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mlops_assets.lake.storage import open_storage
from mlops_assets.resources.programs import ProgramError, run
from mlops_assets.spark import bare_main

ARCHIVE: Final = "environment.tar.gz"
MAIN: Final = "main.py"
PYTHON: Final = "3.11"
"""The Python for clusters, whichever runs Dagster: no cluster's Spark is too old for it but those before 3.4."""

OLDEST_SPARK: Final = "3.4"
"""Older ones can't send functions of Python 3.11 to their executors (their cloudpickle is too old)."""

PLATFORM: Final = "x86_64-manylinux_2_28"
"""glibc 2.28 or newer: Amazon Linux 2023 has 2.34, Data Proc's Ubuntu 2.31 and newer."""

EXTRA: Final = "spark-cluster"
YANDEX_KEYS: Final = Path(bare_main.__file__).with_name("yandex_keys.ini")
"""At `environment/etc` in the archive, see spark/yandex_keys.py."""

CLUSTERS_OWN: Final = ("pyspark", "py4j")
BUILD_SECONDS: Final = 900
_UNUSED: Final = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "__pycache__")


def build(project: Path, archive: Path, python: Path | None = None) -> str:
    """Packs the project of a checkout into `archive`; returns the version that its content has.

    `python` is the folder of a relocatable CPython for Linux on x86-64; without it uv downloads a 3.11. Raises
    ProgramError.
    """
    version = _version(python) if python else PYTHON
    with tempfile.TemporaryDirectory(prefix="mlops-assets-environment-") as scratch:
        home, wheels, locked = Path(scratch, "environment"), Path(scratch, "wheels"), Path(scratch, "requirements.txt")
        _copy_python(python or _standalone(version, Path(scratch, "pythons")), home, version)
        export = ["export", "--project", str(project), "--locked", "--no-dev", "--extra", EXTRA, "--no-emit-project"]
        export += [part for package in CLUSTERS_OWN for part in ("--no-emit-package", package)]
        _uv([*export, "--output-file", str(locked)], "the locked packages could not be read")
        _uv(["build", "--wheel", str(project), "--out-dir", str(wheels)], "this project's wheel could not be built")
        target = ["--target", str(home / "lib" / f"python{version}" / "site-packages"), "--no-deps"]
        target += ["--python-version", version, "--python-platform", PLATFORM, "--only-binary", ":all:"]
        _uv(["pip", "install", *target, "--require-hashes", "-r", str(locked)], "the packages could not be installed")
        wheel = next(wheels.glob("*.whl"))
        _uv(["pip", "install", *target, str(wheel)], "this project could not be installed")
        return f"{wheel.name.split('-')[1]}-{_pack(home, archive)[:12]}"


def publish(archive: Path, version: str, to: str) -> str:
    """Uploads the archive and its main file below `to`, unless that version is there; returns the address."""
    name = f"spark-environment-{version}"
    storage = open_storage(to)
    main = Path(bare_main.__file__).read_bytes()
    found = storage.get(f"{name}/{MAIN}")
    if found is None or found[0] != main:  # written last, so the archive is there with it
        with archive.open("rb") as source, storage.open_output(f"{name}/{ARCHIVE}") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        with storage.open_output(f"{name}/{MAIN}") as target:
            target.write(main)
    return storage.uri(name)


def settings(address: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Spark's settings on YARN with which driver and executors run in the environment, with these variables set."""
    return {
        "spark.submit.deployMode": "client",  # the driver on the master, which is never a spot instance
        "spark.yarn.dist.archives": f"{address}/{ARCHIVE}#environment",
        "spark.pyspark.python": "./environment/bin/python3",
        "spark.pyspark.driver.python": "python3",  # the cluster's, for main.py
        **{f"spark.executorEnv.{name}": value for name, value in variables.items()},
    }


def arguments(address: str, variables: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """The arguments of main.py."""
    return [f"{address}/{ARCHIVE}", *(f"{name}={value}" for name, value in variables.items()), *command]


def _uv(arguments: Sequence[str], failure: str) -> None:
    program = shutil.which("uv")
    if program is None:
        raise ProgramError("no uv on PATH, which packs the environment: `make setup` installs it into .tools/bin")
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    run([program, *arguments], BUILD_SECONDS, failure, env=environment)


def _standalone(version: str, folder: Path) -> Path:
    command = ["python", "install", "--no-bin", "--install-dir", str(folder), f"cpython-{version}-linux-x86_64-gnu"]
    _uv(command, "a standalone Python could not be downloaded; name the folder of one instead (--python)")
    return next(path for path in folder.glob("cpython-*") if not path.is_symlink())


def _version(python: Path) -> str:
    found = list(python.glob("lib/python3.*/os.py"))
    if len(found) != 1:
        reason = "several Pythons" if found else "no Python: it has no lib/python3.*/os.py"
        raise ProgramError(f"{python} holds {reason}")
    return found[0].parent.name.removeprefix("python")


def _copy_python(source: Path, home: Path, version: str) -> None:
    """The interpreter and its library, without packages and without what a job never imports."""
    library = Path("lib", f"python{version}")
    unused = shutil.ignore_patterns(*_UNUSED, "site-packages", "dist-packages", "config-*", "*.a")
    shutil.copytree(source / library, home / library, ignore=unused, symlinks=True)
    for shared in source.glob("lib/libpython*.so*"):
        shutil.copy2(shared, home / "lib", follow_symlinks=False)
    (home / "bin").mkdir()
    shutil.copy2(source / "bin" / f"python{version}", home / "bin")
    (home / "bin" / "python3").symlink_to(f"python{version}")
    (home / "etc").mkdir()
    shutil.copy(YANDEX_KEYS, home / "etc")


def _pack(home: Path, archive: Path) -> str:
    """Writes the folder as an archive; the same content makes the same bytes. Returns their SHA-256."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if entry.name.split("/")[-1] in ("__pycache__", "RECORD", "direct_url.json", "uv_cache.json"):
            return None  # they differ from build to build
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        tar.add(home, ".", filter=plain)
    with archive.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()
