"""Spark on Amazon EMR: a cluster that is made with its one job, and ends with it even if nobody is left to end it."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import dagster as dg
from botocore.exceptions import BotoCoreError, ClientError
from dagster_aws.emr.types import EMR_CLUSTER_TERMINATED_STATES, EmrClusterState, EmrStepState
from pydantic import PrivateAttr

from mlops_assets.lake.storage import open_storage
from mlops_assets.resources.emr_requests import EmrCluster, client
from mlops_assets.resources.ephemeral import CODE_LOCATION, RUN, Cluster, ClusterError, Phase, Status

UNANSWERED_LOOKS: Final = 10
LISTED_PAGES: Final = 40
"""Of 50 clusters each."""

LOGS: Final = ("stdout", "stderr")
_ENDED: Final = [state.value for state in EMR_CLUSTER_TERMINATED_STATES]
_LIVE: Final = [state.value for state in EmrClusterState if state.value not in _ENDED]
_FAILED: Final = [state.value for state in (EmrStepState.Failed, EmrStepState.Cancelled, EmrStepState.Interrupted)]
_GONE: Final = ("InvalidRequestException", "ValidationException")
_THROTTLED: Final = ("ThrottlingException", "Throttling")

_REMEDIES: Final = {
    "VALIDATION_ERROR": "check roles, subnet, instance types and the account's limits, see docs/clouds.md",
    "BOOTSTRAP_FAILURE": "see the nodes' logs below the log address",
    "INSTANCE_FLEET_TIMEOUT": "no instances could be had in time: another MLOPS_SPARK_NODE_TYPE, subnet or hour",
    "INSTANCE_FAILURE": "an instance failed or was taken back; run it again",
    "STEP_FAILURE": "the job's own log says why",
}


class EmrSpark(EmrCluster):
    """A transient EMR cluster for each job. The driver runs on its master; its output is the step's.

    EMR brings the step's output to S3 every five minutes and when the cluster ends.
    """

    _status: dict[str, Status] = PrivateAttr(default_factory=dict)
    _steps: dict[str, str] = PrivateAttr(default_factory=dict)
    _unanswered: int = PrivateAttr(default=0)

    def create(self, labels: Mapping[str, str], command: Sequence[str]) -> str:
        """See EphemeralSpark. The job is the cluster's one step, and begins by itself."""
        with _calling("creating a cluster"):
            answer = client().run_job_flow(**self.cluster_request(labels, command))
        cluster: str = answer["JobFlowId"]
        if answer["ResponseMetadata"].get("RetryAttempts"):  # the first call may have made one, its answer lost
            for twin in self.clusters():
                if twin.run_id == labels[RUN] and twin.id != cluster:
                    self.delete(twin.id)
        return cluster

    def reconcile(self, cluster: str, command: Sequence[str]) -> Status:
        """See EphemeralSpark. An API that does not answer for a while costs no job that runs."""
        try:
            self._status[cluster], self._unanswered = self._look(cluster), 0
        except ClusterError as error:
            self._unanswered += 1
            if not _passes(error) or self._unanswered > UNANSWERED_LOOKS:
                raise
            dg.get_dagster_logger().warning(f"look {self._unanswered} of at most {UNANSWERED_LOOKS}: {error}")
        return self._status.get(cluster, Status(Phase.STARTING))

    def _look(self, cluster: str) -> Status:
        with _calling("looking at the cluster"):
            (step,) = client().list_steps(ClusterId=cluster)["Steps"]
            # Asked second: it holds the reason of a step that was cancelled.
            status = client().describe_cluster(ClusterId=cluster)["Cluster"]["Status"]
            if status["State"] in _ENDED:  # the step may have ended well between the two questions
                (step,) = client().list_steps(ClusterId=cluster)["Steps"]
        self._steps[cluster] = step["Id"]
        reason, state = _reason(status), step["Status"]["State"]
        if state == EmrStepState.Completed.value:
            return Status(Phase.SUCCEEDED)
        if state in _FAILED:
            failure = step["Status"].get("FailureDetails") or {}
            parts = [f"the step is {state}", *(failure.get(name) for name in ("Reason", "Message", "LogFile")), reason]
            return Status(Phase.FAILED, ". ".join(part for part in parts if part))
        if status["State"] in _ENDED:
            return Status(Phase.FAILED, f"the cluster is {status['State']}. {reason}".rstrip())
        if state != EmrStepState.Pending.value and status["State"] == EmrClusterState.Running.value:
            return Status(Phase.RUNNING, reason)
        return Status(Phase.STARTING, f"the cluster is {status['State']}. {reason}".rstrip())

    def log(self, cluster: str, position: Any) -> tuple[str, Any]:
        """See EphemeralSpark. A position says how many characters of each file are known.

        After a failure it waits, `log_seconds` at most, until the cluster has ended and its log is whole.
        """
        step = self._steps.get(cluster)
        if step is None:
            return "", position
        known = dict(position or {})
        text = self._new(cluster, step, known)
        phase = self._status[cluster].phase if cluster in self._status else Phase.STARTING
        if phase is Phase.FAILED:
            until = time.monotonic() + self.log_seconds
            while not self._has_ended(cluster) and time.monotonic() < until:
                time.sleep(self.poll_seconds)
            text += self._new(cluster, step, known)
        if phase in (Phase.SUCCEEDED, Phase.FAILED):
            text += f"The whole log is or will be at {self.log_uri}/{cluster}/steps/{step}/\n"
        return text, known

    def delete(self, cluster: str) -> None:
        """See EphemeralSpark."""
        try:
            with _calling(f"deleting cluster {cluster}"):
                client().terminate_job_flows(JobFlowIds=[cluster])
        except ClusterError as error:
            cause = error.__cause__
            if not (isinstance(cause, ClientError) and cause.response["Error"]["Code"] in _GONE):
                raise
            if self._exists(cluster):
                raise

    def clusters(self) -> list[Cluster]:
        """See EphemeralSpark. Only those whose name says that they are ours are asked for their tags."""
        found = []
        with _calling("listing clusters"):
            pages = client().get_paginator("list_clusters").paginate(ClusterStates=list(_LIVE))
            for number, page in enumerate(pages):
                if number == LISTED_PAGES:
                    raise ClusterError(f"EMR lists more than {LISTED_PAGES} pages of live clusters")
                for each in page["Clusters"]:
                    if each["Name"].startswith(f"{self.code_location} "):
                        described = client().describe_cluster(ClusterId=each["Id"])["Cluster"]
                        tags = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
                        created = described["Status"]["Timeline"]["CreationDateTime"]
                        if tags.get(CODE_LOCATION) == self.code_location and described["Status"]["State"] in _LIVE:
                            found.append(Cluster(each["Id"], tags.get(RUN, ""), created))
        return found

    def _new(self, cluster: str, step: str, known: dict[str, int]) -> str:
        text = ""
        for name in LOGS:
            try:
                found = open_storage(self.log_uri).get(f"{cluster}/steps/{step}/{name}.gz")
            except OSError as error:
                raise ClusterError(f"the step's log can't be read: {error}") from error
            if found:
                whole = gzip.decompress(found[0]).decode(errors="replace")
                text += whole[known.get(name, 0) :]
                known[name] = len(whole)
        return text

    def _has_ended(self, cluster: str) -> bool:
        with _calling("looking at the cluster"):
            state = client().describe_cluster(ClusterId=cluster)["Cluster"]["Status"]["State"]
        return state in ("TERMINATED", "TERMINATED_WITH_ERRORS")

    def _exists(self, cluster: str) -> bool:
        return cluster in [each.id for each in self.clusters()]


def _reason(status: Mapping[str, Any]) -> str:
    """EMR's reason for a cluster's state, and what to do about it."""
    change = status.get("StateChangeReason") or {}
    code, message = change.get("Code") or "", change.get("Message") or ""
    details = "; ".join(str(each) for each in status.get("ErrorDetails") or ())
    return ": ".join(part for part in (code, message, details, _REMEDIES.get(code, "")) if part)


def _passes(error: ClusterError) -> bool:
    """Whether another look later may not meet it. botocore has repeated the call already."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return True
    code, status = cause.response["Error"]["Code"], cause.response["ResponseMetadata"]["HTTPStatusCode"]
    return code in _THROTTLED or status >= 500


@contextmanager
def _calling(what: str) -> Iterator[None]:
    """Says as ClusterError what fails in the block."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise ClusterError(f"EMR, {what}: {error}") from error
