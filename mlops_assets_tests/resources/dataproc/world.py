"""Data Proc as the tests' Yandex Cloud plays it: clusters and jobs whose states take their time, and faults.

A job's work is the function `play`, which gets the job's arguments and a way to write its log, and says how it ended.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
from yandex.cloud.dataproc.v1 import cluster_pb2, cluster_service_pb2, job_pb2, job_service_pb2
from yandex.cloud.dataproc.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from yandex.cloud.dataproc.v1.job_service_pb2_grpc import JobServiceServicer
from yandex.cloud.operation.operation_pb2 import Operation

Play = Callable[[list[str], Callable[[str], None]], bool]
PAGE_BYTES = 40
TOKEN = "t1.of-the-test"


@dataclass
class World:
    """What there is, and what shall go wrong."""

    play: Play = lambda arguments, say: True
    create_seconds: float = 0.3
    hangs: bool = False
    quota: str = ""  # said at once
    quota_later: str = ""  # said by the operation
    delete_failures: int = 0
    lost_answers: int = 0
    on_create: Callable[[], None] = lambda: None  # when the cluster is there, and nobody was told
    remembers_keys: bool = True
    unavailable: dict[str, int] = field(default_factory=dict)  # calls of a method that fail
    clusters: dict[str, Any] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    events: list[str] = field(default_factory=list)

    def left(self) -> list[str]:
        """The clusters that would go on costing money."""
        return [id for id, each in self.clusters.items() if each.status != cluster_pb2.Cluster.STOPPING]

    def operation(self, metadata: Any, seconds: float, then: Callable[[], str]) -> Any:
        """Begins one that ends after that time with what `then` does; it returns an error or nothing."""
        operation = Operation(id=f"op{next(self.numbers)}")
        operation.metadata.Pack(metadata)
        self.operations[operation.id] = operation

        def end() -> None:
            if error := then():
                operation.error.code, operation.error.message = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], error
            operation.done = True

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        return operation


class Service:
    """What all services share: who may call, and calls that fail."""

    def __init__(self, world: World, account: dict[str, str], public_key: Any) -> None:
        self.world, self.account, self.public_key, self.address = world, account, public_key, ""

    def _enter(self, context: Any, method: str) -> None:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token is invalid")
        if self.world.unavailable.get(method, 0):
            self.world.unavailable[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "upstream connect error")
        self.world.events.append(method)

    def _once(self, context: Any, make: Callable[[], Any]) -> Any:
        """An operation, the same again for the same idempotency key; its answer may be lost."""
        key = dict(context.invocation_metadata()).get("idempotency-key")
        if not (self.world.remembers_keys and key in self.world.keys):
            self.world.keys[str(key)] = make()
        if self.world.lost_answers:
            self.world.lost_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return self.world.keys[str(key)]


class Clusters(Service, ClusterServiceServicer):
    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "cluster.Create")
        if self.world.quota:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.world.quota)
        for value in (*request.labels.keys(), *request.labels.values()):
            if not re.fullmatch(r"[-_./\\@0-9a-z]{0,63}", value):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"label {value}")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", request.name):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"name {request.name}")

        def make() -> Any:
            if any(each.name == request.name for each in self.world.clusters.values()):
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"cluster {request.name} exists")
            cluster = cluster_pb2.Cluster(
                id=f"c9q{next(self.world.numbers)}",
                name=request.name,
                labels=request.labels,
                folder_id=request.folder_id,
            )
            cluster.created_at.GetCurrentTime()
            cluster.status = cluster_pb2.Cluster.CREATING
            self.world.clusters[cluster.id] = cluster
            self.world.requests.append(request)
            self.world.on_create()

            def run() -> str:
                if cluster.status == cluster_pb2.Cluster.CREATING:
                    failed = cluster_pb2.Cluster.ERROR if self.world.quota_later else cluster_pb2.Cluster.RUNNING
                    cluster.status = failed
                return self.world.quota_later

            seconds = 3_600 if self.world.hangs else self.world.create_seconds
            return self.world.operation(cluster_service_pb2.CreateClusterMetadata(cluster_id=cluster.id), seconds, run)

        return self._once(context, make)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "cluster.Get")
        return self._found(request.cluster_id, context)

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "cluster.List")
        ids = [id for id, each in self.world.clusters.items() if each.folder_id == request.folder_id]
        start, end = int(request.page_token or 0), int(request.page_token or 0) + min(request.page_size, 2)
        return cluster_service_pb2.ListClustersResponse(
            clusters=[self.world.clusters[id] for id in ids[start:end]],
            next_page_token=str(end) if end < len(ids) else "",
        )

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "cluster.Delete")
        cluster = self._found(request.cluster_id, context)
        cluster.status = cluster_pb2.Cluster.STOPPING

        def gone() -> str:
            if self.world.delete_failures:
                self.world.delete_failures -= 1
                cluster.status = cluster_pb2.Cluster.ERROR
                return "Internal error: a host does not answer"
            del self.world.clusters[cluster.id]
            return ""

        return self.world.operation(cluster_service_pb2.DeleteClusterMetadata(cluster_id=cluster.id), 0.2, gone)

    def _found(self, id: str, context: Any) -> Any:
        if id not in self.world.clusters:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Cluster {id} not found")
        return self.world.clusters[id]


class Jobs(Service, JobServiceServicer):
    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "job.Create")
        if self.world.clusters[request.cluster_id].status != cluster_pb2.Cluster.RUNNING:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Cluster is not running")

        def make() -> Any:
            job = job_pb2.Job(id=f"job{next(self.world.numbers)}", cluster_id=request.cluster_id, name=request.name)
            job.pyspark_job.CopyFrom(request.pyspark_job)
            job.status = job_pb2.Job.PROVISIONING
            self.world.jobs[job.id], self.world.logs[job.id] = job, ""
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
            made = job_service_pb2.CreateJobMetadata(cluster_id=job.cluster_id, job_id=job.id)
            return self.world.operation(made, 0.1, lambda: "")

        return self._once(context, make)

    def _run(self, job: Any) -> None:
        for state in (job_pb2.Job.PENDING, job_pb2.Job.RUNNING):
            time.sleep(0.2)
            job.status = state

        def say(text: str) -> None:
            self.world.logs[job.id] += text

        job.status = job_pb2.Job.DONE if self.world.play(list(job.pyspark_job.args), say) else job_pb2.Job.ERROR

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "job.Get")
        return self.world.jobs[request.job_id]

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "job.List")
        found = [each for each in self.world.jobs.values() if each.cluster_id == request.cluster_id]
        return job_service_pb2.ListJobsResponse(jobs=found)

    def ListLog(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "job.ListLog")
        start, log = int(request.page_token or 0), self.world.logs[request.job_id]
        end = start + PAGE_BYTES
        token = str(end) if end < len(log) else ""
        return job_service_pb2.ListJobLogResponse(content=log[start:end], next_page_token=token)
