"""Programs of this machine, and Java libraries from Maven Central, fetched once by the Ivy that pyspark carries."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

FETCH_SECONDS: Final = 600


class ProgramError(RuntimeError):
    """A program is missing, failed, or did not answer in time; the message says why and what to do."""


def cache_folder() -> Path:
    """Where downloads are kept: MLOPS_CACHE, or `~/.cache/mlops-assets`."""
    return Path(os.environ.get("MLOPS_CACHE") or Path.home() / ".cache" / "mlops-assets")


def java(program: str = "java") -> str:
    """The path of a program of the JDK, under JAVA_HOME or on PATH. Raises ProgramError without one."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which(program, path=f"{home}/bin" if home else None) or shutil.which(program)
    if path is None:
        raise ProgramError(f"no {program}: Java 17 or newer must be on PATH (`make setup` installs it)")
    return path


def run(command: Sequence[str], seconds: float, failure: str, **options: Any) -> None:
    """Runs a program to its end, with subprocess' options. Raises ProgramError with the last lines it wrote."""
    # Output goes to a file: a server that the program leaves behind would hold a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=seconds, check=False, **options
            )
        except subprocess.TimeoutExpired:
            raise ProgramError(f"{failure}: no answer within {seconds:.0f} s") from None
        if done.returncode != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise ProgramError(f"{failure}:\n" + "\n".join(lines[-10:]))


def jars(name: str, modules: Sequence[str], without: Sequence[str] = ()) -> Path:
    """The folder of the jars of `modules` and of all they need, fetched at the first call.

    A module is `organisation:name:revision`, as Maven writes it; `without` names `organisation:name` to leave out.
    `name`, which should tell the revisions, is the folder's within the cache. Raises ProgramError where there is no
    Java, or Maven Central can't be reached.
    """
    cache = cache_folder()
    folder = cache / name
    if folder.is_dir():
        return folder
    spark = find_spec("pyspark")
    if spark is None or spark.origin is None:
        raise ProgramError(f"the jars of {name} are fetched with pyspark's Ivy: install the extra `spark`")
    ivy = next((Path(spark.origin).parent / "jars").glob("ivy-*.jar"))
    excluded = "".join('<exclude org="{}" name="{}"/>'.format(*module.split(":")) for module in without)
    wanted = "".join(
        '<dependency org="{}" name="{}" rev="{}" conf="*->default">'.format(*module.split(":"))
        + f"{excluded}</dependency>"
        for module in modules
    )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        module = Path(scratch) / "ivy.xml"
        module.write_text(
            f'<ivy-module version="2.0"><info organisation="mlops" module="jars"/>'
            f"<dependencies>{wanted}</dependencies></ivy-module>"
        )
        command = [java(), "-cp", str(ivy), "org.apache.ivy.Main", "-ivy", str(module), "-cache", f"{scratch}/ivy"]
        command += ["-types", "jar", "bundle", "-retrieve", f"{scratch}/jars/[artifact]-[revision].[ext]"]
        run(command, FETCH_SECONDS, f"the jars of {name} could not be fetched from Maven Central")
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            (Path(scratch) / "jars").rename(folder)
    return folder
