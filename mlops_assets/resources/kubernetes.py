"""The fleet as a Kubernetes Deployment: rolled by digest behind a canary, watched, and undone when it goes wrong.

What a roll does is kept in annotations of the Deployment: `ROLLING` while it is under way, so that a killed run's work
can be finished by whoever comes next, and `LAST` how the last one ended. Manifests: k8s/.
"""

import json
from typing import Final

import dagster as dg
from kubernetes import client
from pydantic import PrivateAttr

from mlops_assets.resources import kubernetes_roll
from mlops_assets.resources.deployments import METRICS_PORT, Deployments
from mlops_assets.resources.images import VERSION, ImageError, StoreAwayError
from mlops_assets.resources.inference import (
    FleetError,
    FleetStatus,
    InferenceFleet,
    Rollout,
    Unjudged,
    Worker,
)
from mlops_assets.resources.kubernetes_api import GLANCE_SECONDS, PATIENCE_SECONDS, api_client
from mlops_assets.resources.kubernetes_roll import LAST, ROLLING, OvertakenError, Roll, RollError
from mlops_assets.resources.pods import digest_in, image_of, is_complete, is_ready, restarts
from mlops_assets.resources.registry import Registry

LEASE_SECONDS: Final = 180.0
"""A roll whose marker is not renewed for so long is that of a killed run: longer than one waits for the API server."""


class KubernetesFleet(InferenceFleet):
    """The Deployments `deployment` (the fleet) and `deployment`-canary, made by the manifests in k8s/.

    Credentials are the pod's own inside a cluster, else those of `kubeconfig`, by default kubectl's (KUBECONFIG).
    `replicas` is what the fleet starts with; then the HPA decides. A canary answers for `canary_seconds` before the
    fleet is rolled; 0 rolls without one. `unjudged` says what follows on a canary that too little traffic, or metrics
    that can't be read, tell nothing about.
    """

    registry: dg.ResourceDependency[Registry]
    namespace: str = "inference"
    deployment: str = "inference"
    replicas: int = 3
    canary_seconds: float = 60.0
    unjudged: Unjudged = "stop"
    lease_seconds: float = LEASE_SECONDS
    kubeconfig: str | None = None

    _api: client.ApiClient | None = PrivateAttr(default=None)

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        """What runs now, as the API server says."""
        deployments = self._deployments(PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
        found = deployments.read(self.deployment)
        annotations = found.metadata.annotations or {}
        workers = tuple(
            Worker(
                name=pod.metadata.name,
                digest=digest_in(pod.spec.containers[0].image) or "",
                ready=is_ready(pod),
                restarts=restarts(pod),
                metrics_url=f"/api/v1/namespaces/{self.namespace}/pods/{pod.metadata.name}:{METRICS_PORT}/proxy/metrics",
            )
            for pod in deployments.pods()
        )
        return FleetStatus(
            digest=digest_in(image_of(found)),
            replicas=found.spec.replicas,
            workers=workers,
            rolling=ROLLING in annotations,
            last_rollout=Rollout(**json.loads(annotations[LAST])) if LAST in annotations else None,
        )

    def roll(self, digest: str, deadline_seconds: float, unjudged: Unjudged | None = None) -> Rollout:
        """See InferenceFleet. The deadline includes the canary; going back is given as long again.

        If this caller is interrupted, it puts the old image back first; if it is killed, the next `roll` or `recover`
        does. Another roll that is under way is waited for, as long as the deadline, and then refused with FleetError.
        """
        deployments = self._deployments()
        target = self.registry.reference(digest)
        roll = kubernetes_roll.begin(deployments, target, deadline_seconds, self.lease_seconds)
        try:
            with kubernetes_roll.going_back(roll):
                try:
                    version = self.registry.require(digest).get(VERSION, "unknown")
                except ImageError as error:
                    return roll.ended("undone", str(error), isinstance(error, StoreAwayError))
                return self._roll(roll, f"model {version}, {target}", deadline_seconds, unjudged or self.unjudged)
        except RollError as failure:
            try:
                return roll.ended("undone", f"{failure}{roll.undo(deadline_seconds)}", failure.transient)
            except OvertakenError as overtaken:
                return roll.ended("overtaken", f"{overtaken}, after: {failure}", transient=True)
        except OvertakenError as overtaken:
            return roll.ended("overtaken", str(overtaken), transient=True)

    def _roll(self, roll: Roll, cause: str, deadline_seconds: float, unjudged: Unjudged) -> Rollout:
        replicas, deadline = roll.found.spec.replicas, roll.began + deadline_seconds
        if roll.before == roll.marker.target and is_complete(roll.found):
            return roll.ended("unchanged")
        said = ""
        if self.canary_seconds and replicas and roll.before != roll.marker.target and roll.has_something_to_lose():
            said = roll.try_canary(self.canary_seconds, deadline, unjudged)
        roll.roll_fleet(cause, None if replicas else self.replicas, deadline)
        return roll.ended("rolled", said)

    def recover(self) -> Rollout | None:
        """See InferenceFleet."""
        return kubernetes_roll.recover(self._deployments(GLANCE_SECONDS), self.lease_seconds)

    def stop(self) -> None:
        """No pods, and no HPA that brings them back, until the next `roll`."""
        deployments = self._deployments()
        for name in (deployments.name, deployments.canary):
            deployments.change(name, lambda _: {"spec": {"replicas": 0}})

    def _deployments(self, patience_seconds: float = PATIENCE_SECONDS) -> Deployments:
        if self._api is None:
            self._api = api_client(self.kubeconfig, FleetError)
        return Deployments(self._api, self.namespace, self.deployment, patience_seconds)
