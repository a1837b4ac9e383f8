"""Spark clusters that live for one run: created for its days, watched, and deleted however it ends."""

from __future__ import annotations

import itertools
import json
import sys
import threading
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

from mlops_assets.lake.storage import Storage
from mlops_assets.lake.store import Lake
from mlops_assets.resources.spark import APPLICATIONS, Spark
from mlops_assets.spark.both import NO_MORE, REQUEST, WAITING
from mlops_assets.spark.days import FailedDaysError, OnDay
from mlops_assets.spark.predictions import MODEL_FILES, upload

CODE_LOCATION: Final = "code-location"
RUN: Final = "dagster-run"
"""The labels of every cluster."""

DELETE_ATTEMPTS: Final = 5
DELETE_SECONDS: Final = 5.0
"""Between two attempts. What is left after the last one is the reaper's, see automation/reap_clusters.py."""

JOBS: Final = "_jobs"
"""Where in the lake a job has a folder as long as it runs: for its model, and for what it is told."""

JOB_FILES: Final = (*MODEL_FILES, WAITING, REQUEST)


HOLD_MINUTES: Final = 10.0
"""For which the clouds' clusters are kept: as long as their start takes, so waiting in vain costs no more than that."""


class ClusterError(RuntimeError):
    """A cluster could not be had, its job failed, or it did not go. The message says why and what to do."""


class Phase(StrEnum):
    """Where a cluster's one job stands. WAITING, which no cloud knows: it runs, and waits as spark/both.py does."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
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


@dataclass
class Job:
    """A job on a cluster of its own, as far as it was watched. `folder` is its key in the lake; times are monotonic."""

    storage: Storage
    folder: str
    deadline: float
    command: Sequence[str] = ()
    cluster: str = ""
    phase: Phase | None = None
    position: Any = None
    may_wait: bool = False
    limit: threading.Timer | None = None


def common_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields that all forms share, as far as their variables are set. Raises ValueError."""
    found: dict[str, Any] = {}
    if name := environment.get("MLOPS_CODE_LOCATION"):
        found["code_location"] = name
    for field in ("deadline_minutes", "price_per_hour", "hold_minutes"):
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
    hold_minutes: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="to keep a training set's cluster for the predictions of the same run; 0: never",
    )
    _run_id: str = PrivateAttr(default_factory=lambda: f"no-run-{uuid.uuid4().hex}")
    _creating: bool = PrivateAttr(default=False)
    _kept: Job | None = PrivateAttr(default=None)
    _held_since: float | None = PrivateAttr(default=None)

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

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Ends what the run kept and did not use. With the in-process executor a run's steps share this resource."""
        if self._held():
            self._end()

    def unpaid_seconds(self) -> float:
        """See Spark."""
        since, self._held_since = self._held_since, None
        return 0.0 if since is None else min(time.monotonic() - since, 60 * self.hold_minutes)

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

        A job that does `both` is watched until it waits. Its cluster stays then, for the next predictions of this run,
        for `hold_minutes` at most, and no longer than the run.

        Only manifests count: days that have theirs then are passed to `on_day`, whatever became of the job or of this
        process, and FailedDaysError names the others. Raises ClusterError when no cluster could be had or its cloud is
        lost, unless all days are there.
        """
        store, module = Lake(lake), APPLICATIONS[application]
        status, lost, errors = Status(Phase.FAILED), None, dict[str, Exception]()
        try:
            model = options.get("model")
            job = self._handed(days, model) if model and self._held() else None
            status = self._watch(job or self._started(store, application, days, model))
        except ClusterError as error:
            lost = error
        finally:  # also of a run that is terminated: what was paid for is kept
            if status.phase is not Phase.WAITING:
                self._end()  # first: a job that still runs could be in the middle of a commit
            for day in days:
                try:
                    manifest = module.finished(store, day, **options)
                except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the other days
                    errors[day] = error
                    continue
                if manifest:
                    on_day(manifest)
                else:
                    reason = f"the job {status.phase}, this day not committed. {status.reason}"
                    errors[day] = ClusterError(reason.rstrip())
        if errors:
            raise lost or FailedDaysError(module.DATASET, errors)

    def _started(self, store: Lake, application: str, days: Sequence[str], model: str | None) -> Job:
        """A job on a new cluster; what was kept is ended first. `model` is a folder of this machine."""
        if self._held():
            self._end()
        folder = f"{JOBS}/{self._run_id}/{uuid.uuid4().hex}"
        self._kept = job = Job(store.storage, folder, time.monotonic() + 60 * self.deadline_minutes)
        arguments = {"lake": store.root, "days": ",".join(days)}
        if model:
            upload(job.storage, Path(model), folder)
            arguments["model"] = job.storage.uri(folder)
        if application == "both":
            job.may_wait = bool(self.hold_minutes)
            application = "both" if job.may_wait else "training_set"
        if job.may_wait:
            arguments |= {"folder": folder, "minutes": f"{self.hold_minutes:g}"}
        flags = itertools.chain(*((f"--{name}", value) for name, value in arguments.items()))
        job.command = [APPLICATIONS[application].__name__, *flags]
        self._creating = True  # if this is interrupted, there may be a cluster whose id nobody was told
        job.cluster = self.create(self.labels(), job.command)
        self._creating = False
        return job

    def _held(self) -> Job | None:
        """The job that was kept, if it still is. From now on its time limit ends it no more."""
        if self._kept and self._kept.limit:
            self._kept.limit.cancel()
            self._kept.limit.join()  # it may be at it just now
        return self._kept

    def _handed(self, days: Sequence[str], model: str) -> Job | None:
        """The job that was kept, with the predictions as its task; None if it can't take them.

        It must have at least half of the deadline left: what fits on a new cluster must not fail on this one.
        """
        job = self._kept
        if job is None:
            return None
        try:
            fit = job.deadline - time.monotonic() >= 30 * self.deadline_minutes
            if fit and self.reconcile(job.cluster, job.command).phase is Phase.RUNNING:
                upload(job.storage, Path(model), job.folder)
                request = {"days": list(days), "model": job.storage.uri(job.folder)}
                if job.storage.put_if(f"{job.folder}/{REQUEST}", json.dumps(request).encode(), None):
                    job.may_wait = False
                    return job
        except ClusterError as error:
            dg.get_dagster_logger().warning(f"cluster {job.cluster}, which was kept: {error}")
        dg.get_dagster_logger().info(f"cluster {job.cluster}, which was kept, takes no predictions any more")
        return None

    def _watch(self, job: Job) -> Status:
        """Returns when the job has ended, waits, or is past its deadline."""
        while True:
            status = self.reconcile(job.cluster, job.command)
            job.position = self._bring_log(job.cluster, job.position)
            if job.may_wait and status.phase is Phase.RUNNING and self._waits(job):
                status = Status(Phase.WAITING, f"It is kept for the predictions, {self.hold_minutes:g} minutes at most")
            if status.phase is not job.phase:
                job.phase = status.phase
                dg.get_dagster_logger().info(f"cluster {job.cluster}: {job.phase}. {status.reason}")
            if job.phase in (Phase.SUCCEEDED, Phase.FAILED):
                return status
            if job.phase is Phase.WAITING:
                self._held_since = time.monotonic()
                # The application ends by itself too, but on Data Proc the cluster would stay.
                job.limit = threading.Timer(60 * self.hold_minutes, self._end)
                job.limit.daemon = True
                job.limit.start()
                return status
            if time.monotonic() > job.deadline:
                late = f"still {job.phase} after the deadline of {self.deadline_minutes:g} minutes. {status.reason}"
                return Status(Phase.FAILED, late)
            time.sleep(self.poll_seconds)

    def _waits(self, job: Job) -> bool:
        try:
            return job.storage.get(f"{job.folder}/{WAITING}") is not None
        except OSError as error:
            dg.get_dagster_logger().warning(f"whether the job on {job.cluster} waits is not known: {error}")
            return False

    def _end(self) -> None:
        """Deletes all clusters of this run, and what is in the lake for the job."""
        job = self._kept
        if job and job.limit:
            job.limit.cancel()
        if job and job.may_wait:
            try:  # the job then ends by itself, should its cluster refuse to go
                job.storage.put_if(f"{job.folder}/{REQUEST}", NO_MORE, None)
            except OSError as error:
                dg.get_dagster_logger().warning(f"the job on {job.cluster} was not told to end: {error}")
        self._delete_own()
        if job:
            _discard(job)
        self._kept = None

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


def _discard(job: Job) -> None:
    keys = [f"{job.folder}/{name}" for name in JOB_FILES]  # of which some may not exist
    try:
        job.storage.delete(keys)
    except OSError as error:  # a few megabytes; no reason to lose the job's outcome
        dg.get_dagster_logger().warning(f"files of a job are left in the lake, at {job.folder}: {error}")
