"""What the state of a Spark application's pods is said to mean, and what the driver pod asks for."""

import json
import shlex
from typing import Any

import pytest
from kubernetes import client

from mlops_assets.resources import spark_pods
from mlops_assets.resources.ephemeral import Phase, Status


def pod(phase: str, reason: str | None = None, message: str | None = None, **container: Any) -> Any:
    """A pod as the API gives it; `container` is its one container's state, none before it is scheduled."""
    state = client.V1ContainerState(**container)
    found = client.V1ContainerStatus(
        name="driver",
        image="",
        image_id="",
        ready=False,
        restart_count=0,
        state=state,
        last_state=client.V1ContainerState(),
    )
    return client.V1Pod(
        status=client.V1PodStatus(
            phase=phase, reason=reason, message=message, container_statuses=[found] if container else None
        )
    )


def ended(exit_code: int, reason: str = "Error", message: str | None = None) -> dict[str, Any]:
    return {"terminated": client.V1ContainerStateTerminated(exit_code=exit_code, reason=reason, message=message)}


def waiting(reason: str) -> dict[str, Any]:
    return {"waiting": client.V1ContainerStateWaiting(reason=reason, message="as the node says")}


def unschedulable(text: str) -> Any:
    found = pod("Pending")
    found.status.conditions = [
        client.V1PodCondition(type="PodScheduled", status="False", reason="Unschedulable", message=text)
    ]
    return found


EVICTED = pod("Failed", "Evicted", "The node was low on resource: memory. ", **ended(137))
LATE = pod("Failed", "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
FULL = unschedulable("0/3 nodes are available: 3 Insufficient cpu.")
RUNNING = pod("Running", running=client.V1ContainerStateRunning())


@pytest.mark.parametrize(
    ("driver", "executors", "expected"),
    [
        (pod("Succeeded", **ended(0)), [], Status(Phase.SUCCEEDED)),
        (EVICTED, [], Status(Phase.FAILED, "Evicted: The node was low on resource: memory.")),
        (
            LATE,
            [],
            Status(Phase.FAILED, "DeadlineExceeded: Pod was active on the node longer than the specified deadline"),
        ),
        (
            pod("Failed", **ended(1, message="Traceback\n  ...\nLookupError: no raw_clicks\n")),
            [],
            Status(Phase.FAILED, "exit code 1: LookupError: no raw_clicks"),
        ),
        (pod("Failed", **ended(143)), [], Status(Phase.FAILED, "exit code 143: without a word")),
        (
            pod("Failed", **ended(137, "OOMKilled")),
            [],
            Status(Phase.FAILED, "the driver was OOMKilled: give it more memory, or its days fewer rows a part"),
        ),
        (
            pod("Pending", **waiting("ImagePullBackOff")),
            [],
            Status(Phase.FAILED, "ImagePullBackOff: as the node says"),
        ),
        (
            pod("Pending", **waiting("ContainerCreating")),
            [],
            Status(Phase.STARTING, "ContainerCreating: as the node says"),
        ),
        (FULL, [], Status(Phase.STARTING, "0/3 nodes are available: 3 Insufficient cpu.")),
        (
            RUNNING,
            [FULL, FULL],
            Status(Phase.RUNNING, "no executor runs yet: 0/3 nodes are available: 3 Insufficient cpu."),
        ),
        (RUNNING, [FULL, RUNNING], Status(Phase.RUNNING)),
        (RUNNING, [], Status(Phase.RUNNING)),
    ],
)
def test_a_state_is_said_with_its_reason(driver: Any, executors: list[Any], expected: Status) -> None:
    assert spark_pods.status(driver, executors) == expected


def driver(image: str = "ghcr.io/team/spark@sha256:0") -> dict[str, Any]:
    return spark_pods.driver(
        "spark-1",
        {"dagster-run": "r"},
        ["mlops_assets.spark.training_set", "--lake", "s3://a bucket/lake"],
        {"spark.executor.instances": "2"},
        {"nodeSelector": {"pool": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
        image=image,
        account="spark",
        cores=0.5,
        memory_mib=2048,
        environment={"AWS_REGION": "eu-central-1"},
        secret="s3-credentials",
        seconds=120,
    )


def test_driver_and_executors_are_placed_limited_and_contained_alike() -> None:
    made = driver()
    template = json.loads(made["metadata"]["annotations"][spark_pods.TEMPLATE])
    for each in (made, template):
        spec, (container,) = each["spec"], each["spec"]["containers"]
        assert spec["nodeSelector"] == {"pool": "spot"}
        assert spec["tolerations"] == [{"key": "spot", "operator": "Exists"}]
        assert (spec["activeDeadlineSeconds"], spec["securityContext"]["runAsNonRoot"]) == (120, True)
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
        assert {"name": "AWS_REGION", "value": "eu-central-1"} in container["env"]
        assert each["metadata"]["labels"].items() >= {"dagster-run": "r", spark_pods.CLUSTER: "spark-1"}.items()
    assert template["spec"]["automountServiceAccountToken"] is False


def test_the_executors_belong_to_the_driver_pod_and_run_its_image() -> None:
    (container,) = driver()["spec"]["containers"]
    assert container["command"][-1] == "s3://a bucket/lake"
    (arguments,) = (each["value"] for each in container["env"] if each["name"] == "PYSPARK_SUBMIT_ARGS")
    *words, last = shlex.split(arguments)
    settings = dict(word.split("=", 1) for word in words[1::2])
    assert last == "pyspark-shell"
    assert settings["spark.kubernetes.driver.pod.name"] == "spark-1"
    assert settings["spark.kubernetes.container.image"] == container["image"]
    assert settings["spark.executor.instances"] == "2"


@pytest.mark.parametrize(
    ("image", "policy"), [("ghcr.io/team/spark@sha256:0", "IfNotPresent"), ("ghcr.io/team/spark:main", "Always")]
)
def test_a_tag_is_pulled_anew_for_it_may_have_moved(image: str, policy: str) -> None:
    assert driver(image)["spec"]["containers"][0]["imagePullPolicy"] == policy
