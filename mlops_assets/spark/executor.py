"""What an executor pod runs: Spark's executor, as Spark's scheduler on Kubernetes describes it in the environment.

    python -m mlops_assets.spark.executor executor

It gives every executor the one argument `executor`, and leaves the rest to the image.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

BACKEND: Final = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
ARGUMENTS: Final = {
    "driver-url": "SPARK_DRIVER_URL",
    "executor-id": "SPARK_EXECUTOR_ID",
    "cores": "SPARK_EXECUTOR_CORES",
    "app-id": "SPARK_APPLICATION_ID",
    "hostname": "SPARK_EXECUTOR_POD_IP",
    "resourceProfileId": "SPARK_RESOURCE_PROFILE_ID",
    "podName": "SPARK_EXECUTOR_POD_NAME",
}
JAVA_OPTION: Final = "SPARK_JAVA_OPT_"


def command(environment: Mapping[str, str], jars: Path) -> list[str]:
    """The arguments of `java`. Raises SystemExit naming variables that only Spark's scheduler sets."""
    missing = [name for name in (*ARGUMENTS.values(), "SPARK_EXECUTOR_MEMORY") if name not in environment]
    if missing:
        raise SystemExit(f"this is started by Spark's scheduler on Kubernetes, which sets {', '.join(missing)}")
    numbered = {int(name.removeprefix(JAVA_OPTION)): name for name in environment if name.startswith(JAVA_OPTION)}
    memory = environment["SPARK_EXECUTOR_MEMORY"]
    classes = ":".join([environment.get("SPARK_CONF_DIR", ""), f"{jars}/*"]).lstrip(":")
    return [
        *(environment[numbered[number]] for number in sorted(numbered)),
        f"-Xms{memory}",
        f"-Xmx{memory}",
        *("-cp", classes, BACKEND),
        *(word for name, variable in ARGUMENTS.items() for word in (f"--{name}", environment[variable])),
    ]


def main() -> None:
    """Becomes the executor."""
    java, spark = shutil.which("java"), find_spec("pyspark")
    if sys.argv[1:] != ["executor"] or java is None or spark is None or spark.origin is None:
        raise SystemExit("usage, in this project's image for Spark: python -m mlops_assets.spark.executor executor")
    os.execv(java, [java, *command(os.environ, Path(spark.origin).parent / "jars")])  # noqa: S606 - it is to be replaced


if __name__ == "__main__":
    main()
