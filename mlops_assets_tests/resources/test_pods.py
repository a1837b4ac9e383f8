"""What is read off Kubernetes' objects; the rolls themselves are tested on a real cluster (cluster/)."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client as k8s

from mlops_assets.resources.pods import digest_in, is_complete, is_ready, restarts, state_of

DIGEST = "sha256:" + "a" * 64


def deployment(wanted: int = 3, generation: int = 7, **status: Any) -> k8s.V1Deployment:
    template = k8s.V1PodTemplateSpec()
    spec = k8s.V1DeploymentSpec(replicas=wanted, selector=k8s.V1LabelSelector(), template=template)
    metadata = k8s.V1ObjectMeta(name="inference", generation=generation)
    return k8s.V1Deployment(metadata=metadata, spec=spec, status=k8s.V1DeploymentStatus(**status))


def pod(restart_count: int = 0, conditions: list[k8s.V1PodCondition] | None = None, **state: Any) -> k8s.V1Pod:
    last = k8s.V1ContainerState(terminated=state.pop("last", None))
    container = k8s.V1ContainerStatus(
        name="inference",
        image="i",
        image_id="i",
        ready=False,
        restart_count=restart_count,
        state=k8s.V1ContainerState(**state),
        last_state=last,
    )
    return k8s.V1Pod(status=k8s.V1PodStatus(container_statuses=[container], conditions=conditions))


@pytest.mark.parametrize(
    ("status", "complete"),
    [
        ({"observed_generation": 7, "replicas": 3, "updated_replicas": 3, "available_replicas": 3}, True),
        ({"observed_generation": 6, "replicas": 3, "updated_replicas": 3, "available_replicas": 3}, False),
        ({"observed_generation": 7, "replicas": 4, "updated_replicas": 3, "available_replicas": 4}, False),
        ({"observed_generation": 7, "replicas": 3, "updated_replicas": 3, "available_replicas": 2}, False),
        ({"observed_generation": 7, "replicas": 3, "updated_replicas": 3, "available_replicas": None}, False),
        ({}, False),
    ],
)
def test_a_roll_is_complete_when_only_new_pods_are_left_and_all_are_available(
    status: dict[str, Any], complete: bool
) -> None:
    assert is_complete(deployment(**status)) is complete


def test_no_pods_are_complete_when_none_are_wanted() -> None:
    assert is_complete(deployment(wanted=0, observed_generation=7))


def test_a_digest_is_told_from_a_tag() -> None:
    assert digest_in(f"127.0.0.1:5000/inference@{DIGEST}") == DIGEST
    assert digest_in("127.0.0.1:5000/inference:runtime") is None


def test_why_a_pod_is_not_ready_is_said_in_its_own_words() -> None:
    ended = k8s.V1ContainerStateTerminated(exit_code=2, message="starting\nno Kafka at kafka:9092\n")
    back_off = k8s.V1ContainerStateWaiting(reason="CrashLoopBackOff", message="back-off")
    crashing = pod(restart_count=2, waiting=back_off, last=ended)
    assert (restarts(crashing), is_ready(crashing)) == (2, False)
    assert state_of(crashing) == "ended 3 times, exit code 2: no Kafka at kafka:9092"
    pulling = pod(waiting=k8s.V1ContainerStateWaiting(reason="ImagePullBackOff", message="not found"))
    assert state_of(pulling) == "ImagePullBackOff: not found"
    full = k8s.V1PodCondition(type="PodScheduled", status="False", message="0/3 nodes: insufficient cpu")
    assert state_of(k8s.V1Pod(status=k8s.V1PodStatus(conditions=[full]))) == "0/3 nodes: insufficient cpu"
    assert state_of(pod(running=k8s.V1ContainerStateRunning())) == "running, but not ready"


def test_a_ready_pod_is_ready() -> None:
    assert is_ready(pod(conditions=[k8s.V1PodCondition(type="Ready", status="True")]))
