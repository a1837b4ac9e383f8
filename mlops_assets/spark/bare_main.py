"""The main file of a job on a cluster that brings Spark and nothing of this project.

    spark-submit --deploy-mode client bare_main.py ARCHIVE [NAME=VALUE ...] MODULE ARGUMENT...

The cluster's own Python, 3.8 or newer, starts it on the master. It unpacks the environment there (executors get theirs
from Spark, by `spark.yarn.dist.archives`), sets the variables, and becomes `python -m MODULE ARGUMENT...` of that
environment: the process that Spark started is then the driver, and its output is the job's.
"""

import os
import shutil
import subprocess
import sys
import tempfile

FETCH_SECONDS = 900


def fetch(address: str, folder: str) -> str:
    """The archive as a local file. Hadoop's program reads the cloud's storage with the cluster's own credentials."""
    if "://" not in address:
        return address
    target = os.path.join(folder, "environment.tar.gz")  # noqa: PTH118 - as plain as an old Python needs it
    subprocess.run(["hadoop", "fs", "-get", address, target], check=True, timeout=FETCH_SECONDS)
    return target


def main(archive: str, *command: str) -> None:
    """Never returns."""
    folder = tempfile.mkdtemp(prefix="mlops-assets-")  # goes with the cluster
    shutil.unpack_archive(fetch(archive, folder), os.path.join(folder, "environment"), "gztar")  # noqa: PTH118
    os.chdir(folder)  # the environment is ./environment, as in an executor's folder
    rest = list(command)
    while "=" in rest[0]:
        name, _, value = rest.pop(0).partition("=")
        os.environ[name] = value
    python = os.path.join("environment", "bin", "python3")  # noqa: PTH118
    os.execv(python, [python, "-m", *rest])  # noqa: S606 - this very command


if __name__ == "__main__":
    main(*sys.argv[1:])
