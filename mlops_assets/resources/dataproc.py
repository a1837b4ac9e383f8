"""Spark on Yandex Data Proc (Yandex Managed Service for Data Processing): a cluster for one job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any, Final

import dagster as dg
import grpc
from pydantic import PrivateAttr
from yandex.cloud.dataproc.v1 import cluster_pb2, cluster_service_pb2, job_pb2, job_service_pb2
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest

from mlops_assets.resources.dataproc_requests import DataprocCluster
from mlops_assets.resources.ephemeral import CODE_LOCATION, RUN, Cluster, ClusterError, Phase, Status
from mlops_assets.resources.yandex import LOST, TIMEOUT_SECONDS, YandexCloud, YandexError, once

DELETE_POLL_SECONDS: Final = 1.0
UNANSWERED_LOOKS: Final = 10
LOG_PAGES: Final = 50
"""Of a megabyte each, at one look."""

_JOBS: Final = {
    job_pb2.Job.PROVISIONING: Phase.STARTING,
    job_pb2.Job.PENDING: Phase.STARTING,
    job_pb2.Job.RUNNING: Phase.RUNNING,
    job_pb2.Job.CANCELLING: Phase.RUNNING,
    job_pb2.Job.DONE: Phase.SUCCEEDED,
}


class DataprocSpark(DataprocCluster):
    """A Data Proc cluster for each job. The driver runs on its master, and its output is the job's log."""

    _cloud: YandexCloud | None = PrivateAttr(default=None)
    _creations: dict[str, str] = PrivateAttr(default_factory=dict)
    _jobs: dict[str, str] = PrivateAttr(default_factory=dict)
    _last: Status = PrivateAttr(default=Status(Phase.STARTING))
    _unanswered: int = PrivateAttr(default=0)

    def create(self, labels: Mapping[str, str], command: Sequence[str]) -> str:
        """See EphemeralSpark."""
        request = self.cluster_request(labels)
        try:
            with self._api.calling("creating a cluster"):
                operation = self._api.clusters.Create(request, timeout=TIMEOUT_SECONDS, metadata=once())
        except YandexError as error:
            if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return next(str(cluster.id) for cluster in self._listed() if cluster.name == request.name)
        made = cluster_service_pb2.CreateClusterMetadata()
        operation.metadata.Unpack(made)
        cluster: str = made.cluster_id
        self._creations[cluster] = operation.id
        return cluster

    def reconcile(self, cluster: str, command: Sequence[str]) -> Status:
        """See EphemeralSpark. An API that does not answer for a while costs no job that runs."""
        try:
            self._last, self._unanswered = self._look(cluster, command), 0
        except YandexError as error:
            self._unanswered += 1
            if error.code not in LOST or self._unanswered > UNANSWERED_LOOKS:
                raise
            dg.get_dagster_logger().warning(f"look {self._unanswered} of at most {UNANSWERED_LOOKS}: {error}")
        return self._last

    def _look(self, cluster: str, command: Sequence[str]) -> Status:
        if failure := self._failed_creation(cluster):
            return Status(Phase.FAILED, failure)
        try:
            with self._api.calling("looking at the cluster"):
                request = cluster_service_pb2.GetClusterRequest(cluster_id=cluster)
                status = self._api.clusters.Get(request, timeout=TIMEOUT_SECONDS).status
        except YandexError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return Status(Phase.FAILED, f"cluster {cluster} is gone: somebody deleted it")
        name = cluster_pb2.Cluster.Status.Name(status)
        if status in (cluster_pb2.Cluster.ERROR, cluster_pb2.Cluster.STOPPING, cluster_pb2.Cluster.STOPPED):
            seen = f"yc dataproc cluster list-operations {cluster}"
            return Status(Phase.FAILED, f"cluster {cluster} is in status {name}; `{seen}`, and its log group, say why")
        if status != cluster_pb2.Cluster.RUNNING:
            return Status(Phase.STARTING, f"the cluster is {name}")
        return self._job_status(cluster, command)

    def log(self, cluster: str, position: Any) -> tuple[str, Any]:
        """See EphemeralSpark. A position is the token of a page, and how many of its characters are known."""
        if cluster not in self._jobs:
            return "", position
        token, known = position or ("", 0)
        text = ""
        with self._api.calling("reading the job's log"):
            for _ in range(LOG_PAGES):
                request = job_service_pb2.ListJobLogRequest(
                    cluster_id=cluster, job_id=self._jobs[cluster], page_token=token
                )
                page = self._api.jobs.ListLog(request, timeout=TIMEOUT_SECONDS)
                text += page.content[known:]
                if not page.next_page_token or page.next_page_token == token:
                    known = len(page.content)  # the last page so far: it may grow
                    break
                token, known = page.next_page_token, 0
        return text, (token, known)

    def delete(self, cluster: str) -> None:
        """See EphemeralSpark."""
        request = cluster_service_pb2.DeleteClusterRequest(cluster_id=cluster)
        try:
            with self._api.calling(f"deleting cluster {cluster}"):
                operation = self._api.clusters.Delete(request, timeout=TIMEOUT_SECONDS)
                until = time.monotonic() + self.delete_seconds
                while not operation.done and time.monotonic() < until:
                    time.sleep(DELETE_POLL_SECONDS)
                    wanted = GetOperationRequest(operation_id=operation.id)
                    operation = self._api.operations.Get(wanted, timeout=TIMEOUT_SECONDS)
        except YandexError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return
            raise
        if operation.HasField("error"):
            raise ClusterError(f"cluster {cluster} was not deleted: {operation.error.message}")

    def clusters(self) -> list[Cluster]:
        """See EphemeralSpark."""
        return [
            Cluster(each.id, each.labels.get(RUN, ""), each.created_at.ToDatetime(UTC))
            for each in self._listed()
            if each.labels.get(CODE_LOCATION) == self.code_location and each.status != cluster_pb2.Cluster.STOPPING
        ]

    @property
    def _api(self) -> YandexCloud:
        if self._cloud is None:
            self._cloud = YandexCloud(self.endpoint, self.ca_file, self.key_file)
        return self._cloud

    def _listed(self) -> list[Any]:
        request = cluster_service_pb2.ListClustersRequest(folder_id=self.folder, page_size=100)
        with self._api.calling("listing clusters"):
            return [each for page in self._api.pages(self._api.clusters.List, request) for each in page.clusters]

    def _failed_creation(self, cluster: str) -> str:
        if cluster not in self._creations:
            return ""
        with self._api.calling("looking at the creation"):
            request = GetOperationRequest(operation_id=self._creations[cluster])
            operation = self._api.operations.Get(request, timeout=TIMEOUT_SECONDS)
        if operation.done:
            del self._creations[cluster]
        return f"the cluster was not created: {operation.error.message}" if operation.HasField("error") else ""

    def _job_status(self, cluster: str, command: Sequence[str]) -> Status:
        job = self._job(cluster, command)
        if job is None:
            return Status(Phase.STARTING, "the job was submitted")
        name = job_pb2.Job.Status.Name(job.status)
        phase = _JOBS.get(job.status, Phase.FAILED)
        if phase is not Phase.FAILED:
            return Status(phase, f"the job is {name}")
        again = f"yc dataproc job log {job.id} --cluster-id {cluster}"
        return Status(phase, f"the job ended as {name}; its log says why (`{again}` while the cluster exists)")

    def _job(self, cluster: str, command: Sequence[str]) -> Any:
        """The cluster's one job, found by its name; None when it has just been submitted."""
        name = command[0].rsplit(".", 1)[-1].replace("_", "-")
        with self._api.calling("looking at the job"):
            if cluster in self._jobs:
                wanted = job_service_pb2.GetJobRequest(cluster_id=cluster, job_id=self._jobs[cluster])
                return self._api.jobs.Get(wanted, timeout=TIMEOUT_SECONDS)
            request = job_service_pb2.ListJobsRequest(cluster_id=cluster, page_size=100)
            for page in self._api.pages(self._api.jobs.List, request):
                for job in page.jobs:
                    if job.name == name:
                        self._jobs[cluster] = job.id
                        return job
        with self._api.calling("submitting the job"):
            submission = self.job_request(cluster, name, command)
            operation = self._api.jobs.Create(submission, timeout=TIMEOUT_SECONDS, metadata=once())
        made = job_service_pb2.CreateJobMetadata()
        operation.metadata.Unpack(made)
        self._jobs[cluster] = made.job_id
        return None
