"""What Kubernetes' objects say about a Deployment and its pods."""

from __future__ import annotations

from typing import Any


def image_of(deployment: Any) -> str:
    """The image in a Deployment's template."""
    image: str = deployment.spec.template.spec.containers[0].image
    return image


def digest_in(image: str) -> str | None:
    """The digest that an image is named by, None if it is named by a tag."""
    return image.partition("@")[2] or None


def is_complete(deployment: Any) -> bool:
    """Whether all pods are of the newest template and available, and no other pod is left."""
    status, wanted = deployment.status, deployment.spec.replicas
    if (status.observed_generation or 0) < deployment.metadata.generation:
        return False
    counts = {status.updated_replicas or 0, status.available_replicas or 0, status.replicas or 0}
    return counts == {wanted}


def statuses(pod: Any) -> list[Any]:
    """The pod's container statuses, none before it is scheduled."""
    return pod.status.container_statuses or []


def restarts(pod: Any) -> int:
    """How often the pod's containers were started again."""
    return sum(status.restart_count for status in statuses(pod))


def is_ready(pod: Any) -> bool:
    """The pod's condition Ready."""
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])


def is_running(pod: Any) -> bool:
    """Whether a container of the pod runs, or has run and ended."""
    return any(s.state.running or s.state.terminated or s.last_state.terminated for s in statuses(pod))


def waits_for(pod: Any) -> set[str]:
    """Kubernetes' names for why containers of the pod wait, like ImagePullBackOff."""
    return {status.state.waiting.reason for status in statuses(pod) if status.state.waiting}


def state_of(pod: Any) -> str:
    """Why the pod is not ready, in the words of the node, the scheduler or the worker's last lines."""
    for status in statuses(pod):
        ended = status.last_state.terminated or status.state.terminated
        if ended:
            words = (ended.message or "").strip().splitlines()[-1:] or ["without a word"]
            return f"ended {status.restart_count + 1} times, exit code {ended.exit_code}: {words[0][:300]}"
        if status.state.waiting:
            return f"{status.state.waiting.reason}: {(status.state.waiting.message or '')[:300]}"
    problems = [c.message for c in pod.status.conditions or [] if c.status != "True" and c.message]
    return problems[0][:300] if problems else "running, but not ready"
