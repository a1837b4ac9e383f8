"""Spark, there for one job at a time: created, given an application and its days, and always deleted."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pyspark
from dagster_pyspark import PySparkResource
from pydantic import Field
from pyspark.sql import SparkSession

from mlops_assets.lake.manifest import Manifest, MissingPartitionError
from mlops_assets.lake.store import Lake
from mlops_assets.resources import s3a
from mlops_assets.spark import both, predictions, training_set
from mlops_assets.spark.days import OnDay

LOGGING: Final = Path(__file__).with_name("spark_log.properties")
APPLICATIONS: Final[dict[str, Any]] = {"training_set": training_set, "both": both, "predictions": predictions}
"""`both` makes training sets, and its cluster may then be kept for the predictions."""


@dataclass(frozen=True)
class Usage:
    """What the job for some days took. `days` are those that it committed, `rows` theirs in all.

    `seconds` go from submitting the job to its end, the start of an ephemeral cluster included; `cluster_seconds` from
    asking for the cluster until it was gone; `cost` is estimated from them where a price is set, else None. Of a
    cluster that is kept for the predictions, the time up to then is the training set's, the wait and the rest theirs.
    """

    where: str
    days: tuple[str, ...]
    rows: int
    seconds: float
    cluster_seconds: float
    cost: float | None


OnUsage = Callable[[Usage], None]


class Spark(dg.ConfigurableResource[None]):
    """Runs the Spark applications. A form of it says how a cluster comes and goes, and how a job gets onto it."""

    @abstractmethod
    def cluster(self) -> AbstractContextManager[Any]:
        """Creates a cluster and always deletes it, however the block ends, or the creation."""

    @abstractmethod
    def submit(
        self, cluster: Any, application: str, lake: str, days: Sequence[str], on_day: OnDay, options: Mapping[str, str]
    ) -> None:
        """Runs one of APPLICATIONS on the cluster, to its end."""

    def where(self) -> str:
        """Where the jobs run, in a few words for people."""
        return type(self).__name__

    def cost(self, cluster_seconds: float) -> float | None:
        """The estimated cost of a cluster for that long, None where there is no price."""
        return None

    def unpaid_seconds(self) -> float:
        """For how long a cluster was kept for the next job and has not been reported yet; once."""
        return 0.0

    def training_set(
        self,
        lake: str,
        days: Sequence[str],
        on_day: OnDay,
        on_usage: OnUsage | None = None,
        *,
        then_predictions: bool = False,
    ) -> None:
        """Makes the training sets of the days of the lake with this root.

        `on_day` gets each day's manifest as soon as it is known to be committed, at once if the day is there already.
        `on_usage` is called once if a cluster was needed, when it is gone, also if the job failed. Raises
        FailedDaysError when some days failed. With `then_predictions` the cluster may be kept for those of the same
        run, where that is cheaper than a second one.
        """
        self._run("both" if then_predictions else "training_set", lake, days, on_day, on_usage, {})

    def predictions(
        self, lake: str, days: Sequence[str], model: str, on_day: OnDay, on_usage: OnUsage | None = None
    ) -> None:
        """Scores the clicks of the days with the model of a folder, likewise."""
        self._run("predictions", lake, days, on_day, on_usage, {"model": model})

    def _run(
        self,
        application: str,
        lake: str,
        days: Sequence[str],
        on_day: OnDay,
        on_usage: OnUsage | None,
        options: Mapping[str, str],
    ) -> None:
        todo = []
        for day in days:
            done = None
            with suppress(MissingPartitionError):  # the application says it, after the other days
                done = APPLICATIONS[application].finished(Lake(lake), day, **options)
            if done:
                on_day(done)
            else:
                todo.append(day)
        if not todo:  # no cluster is needed
            return
        rows: dict[str, int] = {}

        def on_computed(manifest: Manifest) -> None:
            rows[manifest.date] = manifest.rows
            on_day(manifest)

        began, seconds = time.monotonic() - self.unpaid_seconds(), 0.0
        try:
            with self.cluster() as cluster:
                submitted = time.monotonic()
                try:
                    self.submit(cluster, application, lake, todo, on_computed, options)
                finally:
                    seconds = time.monotonic() - submitted
        finally:
            existed = time.monotonic() - began
            if on_usage:
                on_usage(
                    Usage(
                        where=self.where(),
                        days=tuple(rows),
                        rows=sum(rows.values()),
                        seconds=round(seconds, 1),
                        cluster_seconds=round(existed, 1),
                        cost=self.cost(existed),
                    )
                )


class LocalSpark(Spark):
    """A Spark session within this process, by dagster-pyspark: threads of one JVM, and Python workers.

    With a master like local-cluster[2,1,1024] (two executors of one core and 1024 MiB) the executors are JVMs of their
    own, as on a cluster.
    """

    master: str = Field(default="local[*,2]", description="Spark master; local[*,2]: all cores, and a second attempt")
    memory: str = Field(default="2g", description="heap of the JVM; the Python workers' memory comes on top")
    s3: bool = Field(default=False, description="whether the lake is on S3")

    def where(self) -> str:
        """See Spark."""
        return f"Spark {self.master} within the run"

    @contextmanager
    def cluster(self) -> Iterator[SparkSession]:
        """The session; it leaves nothing in the working directory."""
        with tempfile.TemporaryDirectory(prefix="mlops-assets-spark-") as scratch:
            environment = {
                "PYSPARK_PYTHON": sys.executable,  # the workers' Python must have this project too
                "SPARK_HOME": _home().name,  # always the same: the process keeps its first JVM
                "SPARK_LOCAL_IP": "127.0.0.1",
            }
            settings = {
                "spark.app.name": "mlops-assets",
                "spark.master": self.master,
                "spark.driver.memory": self.memory,
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={LOGGING.as_uri()}",
                "spark.local.dir": scratch,
                "spark.sql.warehouse.dir": f"{scratch}/warehouse",
                "spark.sql.session.timeZone": "UTC",
                **(s3a.settings() if self.s3 else {}),
            }
            with _variables(environment):
                resource = PySparkResource(spark_config=settings)
                resource.setup_for_execution(dg.build_init_resource_context())
                try:
                    yield resource.spark_session
                finally:
                    resource.spark_session.stop()  # dagster-pyspark leaves it running

    def submit(
        self, cluster: Any, application: str, lake: str, days: Sequence[str], on_day: OnDay, options: Mapping[str, str]
    ) -> None:
        """Runs the application in this process."""
        APPLICATIONS[application].run(cluster, lake, days, on_day, **options)


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    """This process' SPARK_HOME. A local cluster writes a folder `work` into it: not into the installed package."""
    home = tempfile.TemporaryDirectory(prefix="mlops-assets-spark-home-")
    for entry in Path(pyspark.__file__).parent.iterdir():
        if entry.name != "work":
            Path(home.name, entry.name).symlink_to(entry)
    return home


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
