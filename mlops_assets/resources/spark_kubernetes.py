"""Spark on Kubernetes, by Spark's own scheduler: a driver pod for a job, and executor pods that belong to it.

The driver runs in client mode inside its pod, so Dagster needs no Java, no Spark operator and no right but to make,
watch and delete pods. The driver pod is the cluster: what it made goes with it. Manifests: k8s/spark.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self

from kubernetes import client
from pydantic import Field, PrivateAttr

from mlops_assets.resources import spark_pods
from mlops_assets.resources.ephemeral import (
    CODE_LOCATION,
    RUN,
    Cluster,
    ClusterError,
    EphemeralSpark,
    Phase,
    Status,
    common_settings,
)
from mlops_assets.resources.kubernetes_api import GLANCE_SECONDS, PATIENCE_SECONDS, REQUEST_SECONDS, api_client, ask

GONE_SECONDS: Final = 60
"""In which all pods of a deleted cluster have to be gone."""

SPARE_SECONDS: Final = 60
"""After the deadline, when Kubernetes itself ends the pods: a second belt."""

LOG_BYTES: Final = 4 << 20
"""Of the driver's log, at one look."""

CONFLICT: Final = 409
GONE: Final = 404

SKEW_SECONDS: Final = 60
"""By how much the clocks of this machine and of a node may differ."""

REQUIRED: Final = {"MLOPS_SPARK_IMAGE": "this project's image for Spark, like ghcr.io/owner/spark@sha256:..."}
PARSED: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "executors": (int, "a whole number"),
    "cores": (int, "a whole number"),
    "cpu_request": (float, "a number"),
    "heap_mib": (int, "a whole number"),
    "python_mib": (int, "a whole number"),
    "node_selector": (json.loads, 'JSON like {"pool": "spark"}'),
    "tolerations": (json.loads, 'JSON like [{"key": "spot", "operator": "Exists"}]'),
}
PASSED_ON: Final = ("AWS_REGION", "AWS_ENDPOINT_URL_S3")


class KubernetesSpark(EphemeralSpark):
    """A driver pod and `executors` executor pods in a namespace.

    Credentials are the pod's own inside a cluster, else those of `kubeconfig`, by default kubectl's (KUBECONFIG). A
    pod's memory is `heap_mib` for the JVM and `python_mib` for what is outside of it, the Python workers above all.
    """

    image: str = Field(description="the image of driver and executors: Dockerfile, target spark")
    namespace: str = "spark"
    service_account: str = "spark"
    executors: int = Field(default=2, ge=1)
    cores: int = Field(default=1, ge=1, description="of an executor: so many tasks at once")
    cpu_request: float | None = Field(default=None, gt=0, description="of an executor, if less than its cores")
    heap_mib: int = Field(default=1024, ge=512)
    python_mib: int = Field(default=1024, ge=256, description="400 for each core is little; a part takes 300 and more")
    secret: str | None = Field(default=None, description="a Secret whose keys are variables: the credentials of S3")
    variables: dict[str, str] = Field(default={}, description="further variables of driver and executors")
    node_selector: dict[str, str] = Field(default={}, description="of driver and executors")
    tolerations: list[dict[str, Any]] = Field(default=[], description="of driver and executors")
    kubeconfig: str | None = None

    _api: client.CoreV1Api | None = PrivateAttr(default=None)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The form that MLOPS_SPARK_* variables describe. Raises ValueError naming what is missing or wrong."""
        missing = [f"{name} ({meaning})" for name, meaning in REQUIRED.items() if not environment.get(name)]
        if missing:
            raise ValueError(f"MLOPS_SPARK is kubernetes, which also needs {' and '.join(missing)}")
        found: dict[str, Any] = {"variables": {n: environment[n] for n in PASSED_ON if environment.get(n)}}
        for name in ("image", "namespace", "service_account", "secret"):
            if text := environment.get(f"MLOPS_SPARK_{name.upper()}"):
                found[name] = text
        for name, (parse, meaning) in PARSED.items():
            variable = f"MLOPS_SPARK_{name.upper()}"
            if text := environment.get(variable):
                try:
                    found[name] = parse(text)
                except ValueError:
                    raise ValueError(f"{variable} is {text!r}; it must be {meaning}") from None
        return cls(**found, **common_settings(environment))

    def where(self) -> str:
        """See Spark."""
        return f"Kubernetes, namespace {self.namespace}: a driver and {self.executors} executors of {self.cores} cores"

    def create(self, labels: Mapping[str, str], command: Sequence[str]) -> str:
        """See EphemeralSpark. The cluster's id is the driver pod's name."""
        name = f"spark-{uuid.uuid4().hex[:12]}"
        settings = {
            "spark.driver.memory": f"{self.heap_mib}m",
            "spark.executor.instances": str(self.executors),
            "spark.executor.cores": str(self.cores),
            "spark.executor.memory": f"{self.heap_mib}m",
            "spark.executor.memoryOverhead": f"{self.python_mib}m",
            "spark.kubernetes.executor.request.cores": str(self.cpu_request or self.cores),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            **{f"spark.kubernetes.executor.label.{key}": value for key, value in labels.items()},
            f"spark.kubernetes.executor.label.{spark_pods.CLUSTER}": name,
        }
        placement = {"nodeSelector": self.node_selector or None, "tolerations": self.tolerations or None}
        pod = spark_pods.driver(
            name,
            labels,
            command,
            settings,
            {key: value for key, value in placement.items() if value},
            image=self.image,
            account=self.service_account,
            cores=self.cpu_request or 1,
            memory_mib=self.heap_mib + self.python_mib,
            environment=self.variables,
            secret=self.secret,
            seconds=math.ceil(60 * self.deadline_minutes) + SPARE_SECONDS,
        )
        self._ask(lambda api: created(api.create_namespaced_pod, self.namespace, pod), "a driver pod")
        return name

    def reconcile(self, cluster: str, command: Sequence[str]) -> Status:
        """See EphemeralSpark. The driver starts by itself; nothing is ever due."""
        pods = self._pods(f"{spark_pods.CLUSTER}={cluster}")
        drivers = [pod for pod in pods if pod.metadata.name == cluster]
        if not drivers:
            return Status(Phase.FAILED, "the driver pod is gone: somebody deleted it, or its node was lost")
        return spark_pods.status(drivers[0], [pod for pod in pods if pod.metadata.name != cluster])

    def log(self, cluster: str, position: Any) -> tuple[str, Any]:
        """See EphemeralSpark. A position is the time of the last line, as Kubernetes writes it."""
        since = {}
        if position:
            passed = (datetime.now(UTC) - datetime.fromisoformat(position)).total_seconds()
            since = {"since_seconds": max(1, math.ceil(passed) + SKEW_SECONDS)}
        try:
            answer = self._ask(
                lambda api: api.read_namespaced_pod_log(
                    cluster,
                    self.namespace,
                    timestamps=True,
                    limit_bytes=LOG_BYTES,
                    _request_timeout=REQUEST_SECONDS,
                    _preload_content=False,
                    **since,
                ),
                f"the log of {cluster}",
                GLANCE_SECONDS,  # the next look brings it
            )
        except ClusterError as error:
            if isinstance(error.__cause__, client.ApiException) and error.__cause__.status in (400, 404):
                return "", position  # not started yet, or gone
            raise
        lines = [line.partition(" ") for line in answer.data.decode(errors="replace").splitlines()]
        new = [(stamp, text) for stamp, _, text in lines if not position or stamp > position]
        return "".join(f"{text}\n" for _, text in new), new[-1][0] if new else position

    def delete(self, cluster: str) -> None:
        """See EphemeralSpark. Returns when all its pods are gone. Raises ClusterError if one stays."""
        selector, what = f"{spark_pods.CLUSTER}={cluster}", f"deleting {cluster}"
        options = {"namespace": self.namespace, "propagation_policy": "Foreground", "_request_timeout": REQUEST_SECONDS}
        self._ask(lambda api: deleted(api.delete_namespaced_pod, cluster, **options), what)
        # Executors that Kubernetes would only find to be orphans later, the driver having been deleted by force.
        self._ask(lambda api: api.delete_collection_namespaced_pod(label_selector=selector, **options), what)
        deadline = time.monotonic() + GONE_SECONDS
        while pods := self._pods(selector):
            if time.monotonic() > deadline:
                names = ", ".join(pod.metadata.name for pod in pods)
                raise ClusterError(f"pods of {cluster} are still there after {GONE_SECONDS} s: {names}")
            time.sleep(0.5)

    def clusters(self) -> list[Cluster]:
        """See EphemeralSpark. One that is being deleted is listed too, until its last pod is gone."""
        found: dict[str, Cluster] = {}
        for pod in self._pods(f"{CODE_LOCATION}={self.code_location},{spark_pods.CLUSTER}"):
            labels = pod.metadata.labels
            name = labels[spark_pods.CLUSTER]
            found[name] = Cluster(name, labels.get(RUN, ""), pod.metadata.creation_timestamp)
        return list(found.values())

    def _pods(self, selector: str) -> list[Any]:
        found = self._ask(
            lambda api: api.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
            ),
            "pods",
        )
        return list(found.items)

    def _ask(
        self, call: Callable[[client.CoreV1Api], Any], what: str, patience_seconds: float = PATIENCE_SECONDS
    ) -> Any:
        if self._api is None:
            self._api = client.CoreV1Api(api_client(self.kubeconfig, ClusterError))
        api, remedies = self._api, dict.fromkeys((403, 404), ": apply k8s/spark first")
        return ask(lambda: call(api), f"{what} in {self.namespace}", ClusterError, remedies, patience_seconds)


def created(create: Callable[..., Any], *arguments: Any) -> None:
    """Makes an object whose name was never used: one that is there already is what an earlier try has made."""
    try:
        create(*arguments, _request_timeout=REQUEST_SECONDS)
    except client.ApiException as error:
        if error.status != CONFLICT:
            raise


def deleted(delete: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Deletes an object; one that is gone is no error."""
    try:
        delete(*arguments, **options)
    except client.ApiException as error:
        if error.status != GONE:
            raise
