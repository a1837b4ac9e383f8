"""Spark clusters that live for one run: created for its days, watched, and deleted however it ends."""

from __future__ import annotations

import itertools
import sys
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import dagster as dg
from pydantic import Field, PrivateAttr

from mlops_assets.lake.store import Lake
from mlops_assets.resources.spark import APPLICATIONS, Spark
from mlops_assets.spark.days import FailedDaysError, OnDay
from mlops_assets.spark.predictions import MODEL_FILES, upload

CODE_LOCATION: Final = "code-location"
RUN: Final = "dagster-run"
"""The labels of every cluster."""

DELETE_ATTEMPTS: Final = 5
DELETE_SECONDS: Final = 5.0
"""Between two attempts. What is left after the last one is the reaper's, see automation/reap_clusters.py."""

MODELS: Final = "_models"
"""Where in the lake the model of a job lies as long as that job runs."""


class ClusterError(RuntimeError):
    """A cluster could not be had, its job failed, or it did not go. The message says why and what to do."""


class Phase(StrEnum):
    """Where a cluster's one job stands."""

    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """A phase and the cloud's reason: why it FAILED, or what it waits for."""

    phase: Phase
    reason: str = ""


@dataclass(frozen=True)
class Cluster:
    """A cluster that exists, or is being created or deleted. `run_id` is the Dagster run it was made for."""

    id: str
    run_id: str
    created: datetime


def common_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields that all forms share, as far as their variables are set. Raises ValueError."""
    found: dict[str, Any] = {}
    if name := environment.get("MLOPS_CODE_LOCATION"):
        found["code_location"] = name
    for field in ("deadline_minutes", "price_per_hour"):
        variable = f"MLOPS_SPARK_{field.upper()}"
        if text := environment.get(variable):
            try:
                found[field] = float(text)
            except ValueError:
                raise ValueError(f"{variable} is {text!r}; it must be a number") from None
    return found


class EphemeralSpark(Spark):
    """A form of Spark whose clusters somebody else runs. The methods below `create` are all that a cloud has to bring.

    Each of them uses timeouts and bounded retries of its own, and raises ClusterError. Outside a Dagster run the
    clusters carry a run id of their own, which no other process has.
    """

    code_location: str = Field(default="mlops-assets", description="label that tells this deployment's clusters apart")
    deadline_minutes: float = Field(default=180, gt=0, description="from asking for the cluster to the job's end")
    poll_seconds: float = Field(default=10, gt=0, description="between two looks at the job")
    price_per_hour: float | None = Field(default=None, description="of the whole cluster, for the estimate of the cost")
    _run_id: str = PrivateAttr(default_factory=lambda: f"no-run-{uuid.uuid4().hex}")
    _creating: bool = PrivateAttr(default=False)

    @abstractmethod
    def create(self, labels: Mapping[str, str], command: Sequence[str]) -> str:
        """Asks for a cluster with these labels that will run the command; returns its id without waiting for it.

        The command is a Python module of this project and its arguments, as after `python -m`.
        """

    @abstractmethod
    def reconcile(self, cluster: str, command: Sequence[str]) -> Status:
        """Looks at the cluster, takes the next step that is due (starting the job once), and says where it stands."""

    @abstractmethod
    def log(self, cluster: str, position: Any) -> tuple[str, Any]:
        """The driver's log after `position` (None: from its beginning), and the position after that."""

    @abstractmethod
    def delete(self, cluster: str) -> None:
        """Has the cluster deleted; one that is gone or going is no error."""

    @abstractmethod
    def clusters(self) -> list[Cluster]:
        """All clusters of this code location that exist, whoever made them; one that is being deleted need not be."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Takes the id of the run that clusters will be made for."""
        if context.run:
            self._run_id = context.run.run_id

    def cost(self, cluster_seconds: float) -> float | None:
        """See Spark."""
        return None if self.price_per_hour is None else round(self.price_per_hour * cluster_seconds / 3600, 4)

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Nothing yet: the cluster comes and goes with its job."""
        yield

    def submit(
        self, cluster: Any, application: str, lake: str, days: Sequence[str], on_day: OnDay, options: Mapping[str, str]
    ) -> None:
        """Creates a cluster for the application, watches it to its end, and deletes whatever exists for this run.

        Only manifests count: days that have theirs then are passed to `on_day`, whatever became of the job or of this
        process, and FailedDaysError names the others. Raises ClusterError when no cluster could be had or its cloud is
        lost, unless all days are there.
        """
        store, arguments, uploaded = Lake(lake), {"lake": lake, "days": ",".join(days), **options}, list[str]()
        status, lost, errors = Status(Phase.FAILED), None, dict[str, Exception]()
        try:
            if model := options.get("model"):  # a folder of this machine
                folder = f"{MODELS}/{self._run_id}/{uuid.uuid4().hex}"
                uploaded = [f"{folder}/{name}" for name in MODEL_FILES]  # known before they exist
                upload(store.storage, Path(model), folder)
                arguments["model"] = store.storage.uri(folder)
            flags = itertools.chain(*((f"--{name}", value) for name, value in arguments.items()))
            status = self._watch([APPLICATIONS[application].__name__, *flags])
        except ClusterError as error:
            lost = error
        finally:  # also of a run that is terminated: what was paid for is kept
            self._delete_own()  # first: a job that still runs could be in the middle of a commit
            _discard(store, uploaded)
            for day in days:
                try:
                    manifest = APPLICATIONS[application].finished(store, day, **options)
                except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the other days
                    errors[day] = error
                    continue
                if manifest:
                    on_day(manifest)
                else:
                    reason = f"the job {status.phase}, this day not committed. {status.reason}"
                    errors[day] = ClusterError(reason.rstrip())
        if errors:
            raise lost or FailedDaysError(application, errors)

    def _watch(self, command: Sequence[str]) -> Status:
        deadline = time.monotonic() + 60 * self.deadline_minutes
        self._creating = True  # if this is interrupted, there may be a cluster whose id nobody was told
        cluster = self.create(self.labels(), command)
        self._creating = False
        position, phase = None, None
        while True:
            status = self.reconcile(cluster, command)
            position = self._bring_log(cluster, position)
            if status.phase is not phase:
                phase = status.phase
                dg.get_dagster_logger().info(f"cluster {cluster}: {phase}. {status.reason}")
            if phase in (Phase.SUCCEEDED, Phase.FAILED):
                return status
            if time.monotonic() > deadline:
                late = f"still {phase} after the deadline of {self.deadline_minutes:g} minutes. {status.reason}"
                return Status(Phase.FAILED, late)
            time.sleep(self.poll_seconds)

    def _bring_log(self, cluster: str, position: Any) -> Any:
        """Writes the new part of the driver's log into Dagster's compute log."""
        try:
            text, position = self.log(cluster, position)
        except ClusterError as error:  # the job matters more than its log
            dg.get_dagster_logger().warning(f"no log of cluster {cluster}: {error}")
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
        return position

    def labels(self) -> dict[str, str]:
        """What marks this run's cluster: lower case and at most 63 letters, which every cloud takes."""
        return {CODE_LOCATION: self.code_location, RUN: self._run_id}

    def _delete_own(self) -> None:
        """By label, not by id: a create that was interrupted may have made a cluster whose id nobody was told.

        Such a cluster may also be listed only a moment later, so one more look is taken then.
        """
        looks = 2 if self._creating else 1
        for attempt in range(DELETE_ATTEMPTS):
            if attempt:
                time.sleep(DELETE_SECONDS)
            try:
                own = self._own()
                for cluster in own:
                    self.delete(cluster)
                if own and self._own():
                    continue
            except ClusterError as error:
                dg.get_dagster_logger().warning(f"deleting the clusters of run {self._run_id}: {error}")
                continue
            looks = 0 if own else looks - 1
            if not looks:
                self._creating = False
                return
        # No exception: it would hide the job's own outcome.
        dg.get_dagster_logger().error(f"clusters of run {self._run_id} may be left; the reaper deletes them")

    def _own(self) -> list[str]:
        return [cluster.id for cluster in self.clusters() if cluster.run_id == self._run_id]


def _discard(store: Lake, keys: Sequence[str]) -> None:
    try:
        store.storage.delete(keys)
    except OSError as error:  # a few megabytes; no reason to lose the job's outcome
        dg.get_dagster_logger().warning(f"the model of a job is left in the lake, at {keys[0]}: {error}")
