"""The fleet as a Kubernetes Deployment: rolled by digest behind a canary, watched, and undone when it goes wrong.

What a roll does is kept in annotations of the Deployment: `ROLLING` while it is under way, so that a killed run's work
can be undone by whoever comes next, and `LAST` how the last one ended. Manifests: k8s/.
"""

import contextlib
import json
import time
from typing import Any, Final

import dagster as dg
from kubernetes import client
from pydantic import PrivateAttr

from mlops_assets.resources import canary
from mlops_assets.resources.images import VERSION, ImageError
from mlops_assets.resources.inference import FleetError, FleetStatus, InferenceFleet, Rollout, Verdict, Worker
from mlops_assets.resources.kubernetes_api import REQUEST_SECONDS, api_client, asked
from mlops_assets.resources.pods import digest_in, image_of, is_complete, is_ready, restarts, state_of, statuses
from mlops_assets.resources.registry import Registry

ROLLING: Final = "mlops-assets/rolling"
LAST: Final = "mlops-assets/last-rollout"
CHANGE_CAUSE: Final = "kubernetes.io/change-cause"

POLL_SECONDS: Final = 0.5
METRICS_PORT: Final = 9091
RESTARTS_PER_ROLL: Final = 2
HOPELESS: Final = ("ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")


class RollError(Exception):
    """A roll cannot go on; the text is the reason that is recorded."""


class KubernetesFleet(InferenceFleet):
    """The Deployments `deployment` (the fleet) and `deployment`-canary, made by the manifests in k8s/.

    Credentials are the pod's own inside a cluster, else those of `kubeconfig`, by default kubectl's (KUBECONFIG).
    `replicas` is what the fleet starts with; then the HPA decides. A canary answers for `canary_seconds` before the
    fleet is rolled; 0 rolls without one.
    """

    registry: dg.ResourceDependency[Registry]
    namespace: str = "inference"
    deployment: str = "inference"
    replicas: int = 3
    canary_seconds: float = 60.0
    kubeconfig: str | None = None

    _api: client.ApiClient | None = PrivateAttr(default=None)

    def status(self) -> FleetStatus:
        """What runs now, as the API server says."""
        found = self._read(self.deployment)
        annotations = found.metadata.annotations or {}
        workers = tuple(
            Worker(
                name=pod.metadata.name,
                digest=digest_in(pod.spec.containers[0].image) or "",
                ready=is_ready(pod),
                restarts=restarts(pod),
                metrics_url=f"/api/v1/namespaces/{self.namespace}/pods/{pod.metadata.name}:{METRICS_PORT}/proxy/metrics",
            )
            for pod in self._pods()
        )
        return FleetStatus(
            digest=digest_in(image_of(found)),
            replicas=found.spec.replicas,
            workers=workers,
            rolling=ROLLING in annotations,
            last_rollout=Rollout(**json.loads(annotations[LAST])) if LAST in annotations else None,
        )

    def roll(self, digest: str, deadline_seconds: float) -> Rollout:
        """See InferenceFleet. The deadline includes the canary; going back is given as long again.

        If this caller is interrupted, it puts the old image back first; if it is killed, the next `roll` or `recover`
        does.
        """
        began = time.monotonic()
        found = self._read(self.deployment)
        if ROLLING in (found.metadata.annotations or {}):
            self._undo_killed_roll(found)
            found = self._read(self.deployment)
        before, target = image_of(found), self.registry.reference(digest)

        def ended(verdict: Verdict, reason: str = "") -> Rollout:
            rollout = Rollout(verdict, digest, digest_in(before), reason, round(time.monotonic() - began, 3))
            self._annotate({ROLLING: None, LAST: json.dumps(rollout.as_dict())})
            return rollout

        try:
            version = self.registry.describe(digest).get(VERSION, "unknown")
        except ImageError as error:
            return ended("undone", str(error))
        if before == target and is_complete(found):
            return ended("unchanged")
        marker = {"from": before, "to": target, "until": time.time() + 2 * deadline_seconds}
        self._annotate({ROLLING: json.dumps(marker), CHANGE_CAUSE: f"model {version}, {target}"})
        try:
            deadline = time.monotonic() + deadline_seconds
            if digest_in(before) and before != target and found.spec.replicas and self.canary_seconds:
                self._try_canary(target, deadline)
            self._set_image(self.deployment, target, replicas=None if found.spec.replicas else self.replicas)
            self._wait(self.deployment, target, deadline)
        except RollError as failure:
            return ended("undone", str(failure) + self._undo(before, deadline_seconds))
        except BaseException as interruption:
            self._undo(before, 0)
            ended("undone", f"the run was interrupted: {type(interruption).__name__}")
            raise
        return ended("rolled")

    def recover(self) -> Rollout | None:
        """See InferenceFleet. A roll's time is twice its deadline: the roll and the way back."""
        found = self._read(self.deployment)
        marker = json.loads((found.metadata.annotations or {}).get(ROLLING, "null"))
        return self._undo_killed_roll(found) if marker and time.time() > marker["until"] else None

    def stop(self) -> None:
        """No pods, and no HPA that brings them back, until the next `roll`."""
        self._patch(self.deployment, {"spec": {"replicas": 0}})
        self._patch(self._canary, {"spec": {"replicas": 0}})

    def _undo_killed_roll(self, found: Any) -> Rollout:
        marker = json.loads(found.metadata.annotations[ROLLING])
        digest, previous = digest_in(marker["to"]) or marker["to"], digest_in(marker["from"])
        rollout = Rollout("undone", digest, previous, "the run was killed during the roll", 0.0)
        self._undo(marker["from"], 0)
        self._annotate({ROLLING: None, LAST: json.dumps(rollout.as_dict())})
        return rollout

    def _undo(self, image: str, deadline_seconds: float) -> str:
        """Puts the old image back; what must be added to the reason if it does not become ready in time either."""
        self._patch(self._canary, {"spec": {"replicas": 0}})
        if image_of(self._read(self.deployment)) != image:
            self._annotate({CHANGE_CAUSE: f"back to {image}"})
            self._set_image(self.deployment, image)
        try:
            if deadline_seconds and digest_in(image):
                self._wait(self.deployment, image, time.monotonic() + deadline_seconds)
        except RollError as failure:
            return f"; and the old image does not come back: {failure}"
        return ""

    def _try_canary(self, image: str, deadline: float) -> None:
        """One pod of the new image answers beside the fleet. Raises RollError if it fails or does worse."""
        try:
            self._set_image(self._canary, image, replicas=1)
            self._wait(self._canary, image, deadline)
            begun, end = self._counts(image), time.monotonic() + self.canary_seconds
            while time.monotonic() < min(end, deadline):
                self._raise_if_hopeless(image)
                time.sleep(POLL_SECONDS)
            if time.monotonic() > deadline:
                raise RollError("the canary had no time to prove itself before the deadline")
            now = self._counts(image)
            windows = {name: now[name][1] - counts for name, (_, counts) in begun.items() if name in now}
            new, old = (canary.total(windows[n] for n in windows if now[n][0] is is_new) for is_new in (True, False))
            if new is None:
                raise RollError("the canary went away while it was watched")
            if old is not None and (reason := canary.why_worse(new, old)):
                raise RollError(f"the canary is worse: {reason}")
        finally:
            self._patch(self._canary, {"spec": {"replicas": 0}})

    def _counts(self, new_image: str) -> dict[str, tuple[bool, canary.Counts]]:
        """By container (a restarted one counts anew): whether it runs the new image, and what it counted."""
        result = {}
        for pod in self._pods():
            with contextlib.suppress(FleetError, ValueError):  # a pod may end at any moment
                name = f"{pod.metadata.name}/{restarts(pod)}"
                result[name] = (pod.spec.containers[0].image == new_image, canary.Counts.read(self._metrics(pod)))
        return result

    def _wait(self, name: str, image: str, deadline: float) -> None:
        """Returns when all pods of the Deployment run the image and are ready, and no other is left."""
        while not is_complete(self._read(name)):
            self._raise_if_hopeless(image)
            if time.monotonic() > deadline:
                states = [f"{p.metadata.name}: {state_of(p)}" for p in self._pods(image) if not is_ready(p)]
                raise RollError("not ready before the deadline: " + ("; ".join(states) or "no pod was created"))
            time.sleep(POLL_SECONDS)

    def _raise_if_hopeless(self, image: str) -> None:
        for pod in self._pods(image):
            waiting = any(s.state.waiting and s.state.waiting.reason in HOPELESS for s in statuses(pod))
            if waiting or restarts(pod) >= RESTARTS_PER_ROLL:
                raise RollError(f"{pod.metadata.name}: {state_of(pod)}")

    @property
    def _canary(self) -> str:
        return f"{self.deployment}-canary"

    def _pods(self, image: str | None = None) -> list[Any]:
        """The pods of fleet and canary that are not ending; of one image only, if it is given."""
        selector = f"app.kubernetes.io/name={self.deployment}"
        with self._asked("pods"):
            pods = client.CoreV1Api(self._client()).list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
            )
        alive = [pod for pod in pods.items if pod.metadata.deletion_timestamp is None]
        return [pod for pod in alive if image is None or pod.spec.containers[0].image == image]

    def _metrics(self, pod: Any) -> str:
        with self._asked(f"pods/{pod.metadata.name}/proxy"):
            response = client.CoreV1Api(self._client()).connect_get_namespaced_pod_proxy_with_path(
                f"{pod.metadata.name}:{METRICS_PORT}",
                self.namespace,
                "metrics",
                _request_timeout=REQUEST_SECONDS,
                _preload_content=False,
            )
            text: str = response.data.decode()
            return text

    def _set_image(self, name: str, image: str, replicas: int | None = None) -> None:
        container = {"name": "inference", "image": image}
        spec: dict[str, Any] = {"template": {"spec": {"containers": [container]}}}
        self._patch(name, {"spec": spec if replicas is None else {**spec, "replicas": replicas}})

    def _annotate(self, annotations: dict[str, str | None]) -> None:
        self._patch(self.deployment, {"metadata": {"annotations": annotations}})

    def _patch(self, name: str, body: dict[str, Any]) -> None:
        with self._asked(f"deployment {name}"):
            client.AppsV1Api(self._client()).patch_namespaced_deployment(
                name, self.namespace, body, _request_timeout=REQUEST_SECONDS
            )

    def _read(self, name: str) -> Any:
        with self._asked(f"deployment {name}"):
            return client.AppsV1Api(self._client()).read_namespaced_deployment(
                name, self.namespace, _request_timeout=REQUEST_SECONDS
            )

    def _client(self) -> client.ApiClient:
        if self._api is None:
            self._api = api_client(self.kubeconfig, FleetError)
        return self._api

    def _asked(self, what: str) -> contextlib.AbstractContextManager[None]:
        return asked(f"{what} in {self.namespace}", FleetError, {404: ": apply the manifests in k8s/ first"})
