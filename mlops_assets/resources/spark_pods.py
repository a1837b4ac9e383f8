"""The pods of a Spark application on Kubernetes: what they are made of, and what their state means."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mlops_assets.resources.ephemeral import Phase, Status
from mlops_assets.resources.pods import state_of, statuses

CLUSTER: Final = "spark-cluster"
"""The label that driver and executors share; its value is the driver pod's name."""

ROLE: Final = "spark-role"
"""`driver`, or `executor`, as Spark itself labels them."""

TEMPLATE: Final = "mlops-assets/executor"
"""The driver's annotation that holds the executors' pod template; the driver reads it as a file."""

KEPT: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict"
"""A node is not emptied to save money as long as a driver runs on it: its whole job would be lost."""

HOPELESS: Final = ("ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")
FOLDER: Final = "/etc/spark-executor"
DRIVER_PORT: Final = 7078
BLOCK_PORT: Final = 7079
GRACE_SECONDS: Final = 10
"""In which a driver that is to go deletes what it staged."""

API: Final = "https://kubernetes.default.svc"


def driver(
    name: str,
    labels: Mapping[str, str],
    command: Sequence[str],
    settings: Mapping[str, str],
    placement: Mapping[str, Any],
    *,
    image: str,
    account: str,
    cores: float,
    memory_mib: int,
    environment: Mapping[str, str],
    secret: str | None,
    seconds: int,
) -> dict[str, Any]:
    """The pod that runs the application as `python -m command`, makes its executors, and takes them along as it goes.

    `settings` are Spark's, beyond those that follow from the pod; `placement` is what both kinds of pod have in their
    spec beside that: nodeSelector, tolerations. After `seconds` Kubernetes ends either kind, whoever watches.
    """
    labels, pull = {**labels, CLUSTER: name}, "IfNotPresent" if "@" in image else "Always"  # a tag may move
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    secrets = [{"secretRef": {"name": secret}}] if secret else []
    shared = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": seconds,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "enableServiceLinks": False,
        "serviceAccountName": account,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **placement,
    }
    contained = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    scratch, mount = {"name": "tmp", "emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - its own
    container = {
        "envFrom": secrets,
        "securityContext": contained,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    executor = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": labels},
        "spec": {
            **shared,
            "automountServiceAccountToken": False,
            "volumes": [scratch],
            "containers": [{"name": "executor", "env": variables, "volumeMounts": [mount], **container}],
        },
    }
    settings = {
        **settings,
        "spark.master": f"k8s://{API}",
        "spark.driver.host": "$(POD_IP)",
        "spark.driver.port": str(DRIVER_PORT),
        "spark.driver.blockManager.port": str(BLOCK_PORT),
        "spark.kubernetes.driver.pod.name": name,  # so that the executors are this pod's own, and go with it
        "spark.kubernetes.namespace": "$(NAMESPACE)",
        "spark.kubernetes.container.image": image,
        "spark.kubernetes.container.image.pullPolicy": pull,
        "spark.kubernetes.authenticate.executor.serviceAccountName": account,
        "spark.kubernetes.executor.podTemplateFile": f"{FOLDER}/template.json",
        "spark.kubernetes.executor.podTemplateContainerName": "executor",
        "spark.kubernetes.executor.podNamePrefix": name,
        # It makes pods only; what it does not make it need not have the right to delete.
        "spark.kubernetes.executor.disableConfigMap": "true",
        "spark.kubernetes.driver.service.deleteOnTermination": "false",
        "spark.kubernetes.driver.ownPersistentVolumeClaim": "false",
    }
    options = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    fields = {"POD_IP": "status.podIP", "NAMESPACE": "metadata.namespace"}
    template = {"path": "template.json", "fieldRef": {"fieldPath": f"metadata.annotations['{TEMPLATE}']"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**labels, ROLE: "driver"},
            "annotations": {TEMPLATE: json.dumps(executor), KEPT: "false"},
        },
        "spec": {
            **shared,
            "volumes": [scratch, {"name": "executor", "downwardAPI": {"items": [template]}}],
            "containers": [
                {
                    "name": "driver",
                    "image": image,
                    "imagePullPolicy": pull,
                    "command": ["python", "-m", *command],
                    "env": [
                        *({"name": k, "valueFrom": {"fieldRef": {"fieldPath": path}}} for k, path in fields.items()),
                        {"name": "PYSPARK_SUBMIT_ARGS", "value": shlex.join([*options, "pyspark-shell"])},
                        *variables,
                    ],
                    "resources": {
                        "requests": {"cpu": str(cores), "memory": f"{memory_mib}Mi"},
                        "limits": {"memory": f"{memory_mib}Mi"},
                    },
                    "volumeMounts": [mount, {"name": "executor", "mountPath": FOLDER, "readOnly": True}],
                    **container,
                }
            ],
        },
    }


def status(driver: Any, executors: Iterable[Any]) -> Status:
    """Where the application of these pods stands. A job that waits says for what, in the words of the scheduler."""
    phase = driver.status.phase
    if phase == "Succeeded":
        return Status(Phase.SUCCEEDED)
    if phase == "Failed":
        return Status(Phase.FAILED, why_failed(driver))
    if any(s.state.waiting and s.state.waiting.reason in HOPELESS for s in statuses(driver)):
        return Status(Phase.FAILED, state_of(driver))
    if phase != "Running":
        return Status(Phase.STARTING, state_of(driver))
    executors = list(executors)
    if executors and all(executor.status.phase == "Pending" for executor in executors):
        return Status(Phase.RUNNING, f"no executor runs yet: {state_of(executors[0])}")
    return Status(Phase.RUNNING)


def why_failed(pod: Any) -> str:
    """Why a pod ended: evicted, out of time, out of memory, or the last line of what it said."""
    if pod.status.reason:  # DeadlineExceeded, Evicted, NodeLost
        return f"{pod.status.reason}: {(pod.status.message or '').strip()}"
    for found in statuses(pod):
        ended = found.state.terminated
        if ended and ended.reason == "OOMKilled":
            return "the driver was OOMKilled: give it more memory, or its days fewer rows a part"
        if ended:
            words = (ended.message or "").strip().splitlines()[-1:] or ["without a word"]
            return f"exit code {ended.exit_code}: {words[0][:300]}"
    return state_of(pod)
