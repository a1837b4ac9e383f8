"""The Deployments of a fleet and their pods, as the API server of Kubernetes has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from kubernetes import client

from mlops_assets.resources.inference import FleetError
from mlops_assets.resources.kubernetes_api import REQUEST_SECONDS, ask

MANAGER: Final = "mlops-assets-rollout"
"""The owner of what a roll sets, in the field management of Kubernetes."""

METRICS_PORT: Final = 9091
METRICS_PATIENCE: Final = 5.0
CONFLICT: Final = 409
REMEDIES: Final = {404: ": apply the manifests in k8s/ first"}

T = TypeVar("T")


class Deployments:
    """The Deployment `name` and its canary, in one namespace. Raises FleetError."""

    def __init__(self, api: client.ApiClient, namespace: str, name: str, patience_seconds: float) -> None:
        self.namespace, self.name, self.canary = namespace, name, f"{name}-canary"
        self.patience_seconds = patience_seconds
        self._apps, self._core = client.AppsV1Api(api), client.CoreV1Api(api)

    def read(self, name: str) -> Any:
        """A Deployment."""
        return self._ask(
            lambda: self._apps.read_namespaced_deployment(name, self.namespace, _request_timeout=REQUEST_SECONDS),
            f"deployment {name}",
        )

    def change(self, name: str, patch_for: Callable[[Any], dict[str, Any] | None]) -> None:
        """Patches a Deployment as it was read: `patch_for` is asked again when somebody else was quicker.

        None from it changes nothing. Both are repeated through an unwell API server, so a patch whose answer was lost
        is read back first.
        """

        def patched(found: Any) -> bool:
            body = patch_for(found)
            if body is None:
                return True
            metadata = {**body.get("metadata", {}), "resourceVersion": found.metadata.resource_version}
            try:
                self._apps.patch_namespaced_deployment(
                    name,
                    self.namespace,
                    {**body, "metadata": metadata},
                    field_manager=MANAGER,
                    _request_timeout=REQUEST_SECONDS,
                )
            except client.ApiException as error:
                if error.status != CONFLICT:
                    raise
                return False
            return True

        while not self._ask(lambda: patched(self.read(name)), f"deployment {name}"):
            pass

    def pods(self, image: str | None = None) -> list[Any]:
        """The pods of fleet and canary that are not ending; of one image only, if it is given."""
        selector = f"app.kubernetes.io/name={self.name}"
        found = self._ask(
            lambda: self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_SECONDS
            ),
            "pods",
        )
        alive = [pod for pod in found.items if pod.metadata.deletion_timestamp is None]
        return [pod for pod in alive if image is None or pod.spec.containers[0].image == image]

    def metrics(self, pod: str) -> str:
        """What a pod shows Prometheus. A pod may end at any moment, so this does not insist."""
        response = self._ask(
            lambda: self._core.connect_get_namespaced_pod_proxy_with_path(
                f"{pod}:{METRICS_PORT}",
                self.namespace,
                "metrics",
                _request_timeout=REQUEST_SECONDS,
                _preload_content=False,
            ),
            f"pods/{pod}/proxy",
            METRICS_PATIENCE,
        )
        text: str = response.data.decode()
        return text

    def _ask(self, call: Callable[[], T], what: str, patience_seconds: float | None = None) -> T:
        seconds = self.patience_seconds if patience_seconds is None else patience_seconds
        return ask(call, f"{what} in {self.namespace}", FleetError, REMEDIES, seconds)


def with_image(image: str, replicas: int | None = None) -> dict[str, Any]:
    """The patch that gives a Deployment another image, and with `replicas` a number of pods."""
    container = {"name": "inference", "image": image}
    spec: dict[str, Any] = {"template": {"spec": {"containers": [container]}}}
    return {"spec": spec if replicas is None else {**spec, "replicas": replicas}}


def with_annotations(annotations: dict[str, str | None]) -> dict[str, Any]:
    """The patch that sets these annotations, and takes away those that are None."""
    return {"metadata": {"annotations": annotations}}
