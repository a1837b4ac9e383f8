"""An API server with the Deployments and pods of a fleet, whose controller works at once and whose answers can fail.

Faithful in what a roll relies on: merge patches, a `resourceVersion` that guards them (409), generations.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from mlops_assets.inference.metrics import Metrics

NAMES = ("inference", "inference-canary")
Json = dict[str, Any]
Failure = int | str
"""A status instead of the answer; "before" or "after": the connection is cut before or after the work was done."""


class FakeKubernetes(ThreadingHTTPServer):
    """`behaviour` says by image what becomes of its pods: "ready" (else), "crash", "pull", "running" (never ready)."""

    daemon_threads = True

    def __init__(self, image: str, replicas: int = 3) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.versions, self.lock = itertools.count(1), threading.RLock()
        self.behaviour: dict[str, str] = {}
        self.restarts: dict[str, int] = {}
        """By pod."""
        self.traffic: dict[str, int] = {}
        """By image: how many clicks each of its pods answers between two looks; without, its metrics can't be read."""
        self.looked: set[str] = set()
        self.kept: dict[str, str] = {}
        """Further pods, which the controller leaves as they are, and their images."""
        self.plan: Callable[[str, str], Failure | None] = lambda method, path: None
        self.before_patch: Callable[[str, Json], None] = lambda name, body: None
        self.requests: list[tuple[str, str]] = []
        self.pods: dict[str, Json] = {}
        self.deployments = {name: self._deployment(name, image, replicas * (name == NAMES[0])) for name in NAMES}

    def _deployment(self, name: str, image: str, replicas: int) -> Json:
        template = {"metadata": {}, "spec": {"containers": [{"name": "inference", "image": image}]}}
        metadata = {"name": name, "generation": 1, "resourceVersion": str(next(self.versions)), "annotations": {}}
        return {"metadata": metadata, "spec": {"replicas": replicas, "selector": {}, "template": template}}

    def image(self, name: str = NAMES[0]) -> str:
        return str(self.deployments[name]["spec"]["template"]["spec"]["containers"][0]["image"])

    def replicas(self, name: str = NAMES[0]) -> int:
        return int(self.deployments[name]["spec"]["replicas"])

    def annotations(self, name: str = NAMES[0]) -> dict[str, str]:
        found: dict[str, str] = self.deployments[name]["metadata"]["annotations"]
        return found

    def listed(self) -> list[Json]:
        """The pods, after the controller has done its work."""
        kept = [self._pod(*each) for each in self.kept.items()]
        return [*kept, *(pod for name in NAMES for pod in self._pods(name))]

    def patch(self, name: str, body: Json) -> Json | None:
        """The patched Deployment, None where its resourceVersion is another."""
        with self.lock:
            found = self.deployments[name]
            metadata = body.get("metadata", {})
            if (
                metadata.get("resourceVersion", found["metadata"]["resourceVersion"])
                != found["metadata"]["resourceVersion"]
            ):
                return None
            for key, value in metadata.get("annotations", {}).items():
                found["metadata"]["annotations"][key] = value
                if value is None:
                    del found["metadata"]["annotations"][key]
            before = (self.image(name), self.replicas(name))
            spec = body.get("spec", {})
            if "replicas" in spec:
                found["spec"]["replicas"] = spec["replicas"]
            for container in spec.get("template", {}).get("spec", {}).get("containers", []):
                found["spec"]["template"]["spec"]["containers"] = [container]
            found["metadata"]["generation"] += (self.image(name), self.replicas(name)) != before
            found["metadata"]["resourceVersion"] = str(next(self.versions))
            return found

    def read(self, name: str) -> Json:
        with self.lock:
            found, pods = self.deployments[name], self._pods(name)
            good = sum(self._is_ready(pod) for pod in pods)
            counts = {"replicas": len(pods), "updatedReplicas": len(pods), "availableReplicas": good}
            return {**found, "status": {"observedGeneration": found["metadata"]["generation"], **counts}}

    def _is_ready(self, pod: Json) -> bool:
        return self.behaviour.get(pod["spec"]["containers"][0]["image"], "ready") == "ready"

    def _pods(self, name: str) -> list[Json]:
        image, number = self.image(name), self.replicas(name)
        return [self._pod(f"{name}-{image[-4:]}-{i}", image) for i in range(number)]

    def _pod(self, name: str, image: str) -> Json:
        kind = self.behaviour.get(image, "ready")
        ready = kind == "ready"
        state: Json = {"running": {}}
        if kind == "pull":
            state = {"waiting": {"reason": "ImagePullBackOff", "message": "dial tcp: connection refused"}}
        if kind == "crash":
            self.restarts[name] = self.restarts.get(name, 0) + 1
        status = {
            "name": "inference",
            "image": image,
            "imageID": image,
            "ready": ready,
            "restartCount": self.restarts.get(name, 0),
            "state": state,
            "lastState": {"terminated": {"exitCode": 1, "message": "no broker"}} if self.restarts.get(name) else {},
        }
        conditions = [{"type": "Ready", "status": str(ready)}]
        return {
            "metadata": {"name": name, "uid": name},
            "spec": {"containers": [{"name": "inference", "image": image}]},
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]},
        }


def metrics(clicks: int) -> str:
    """What a worker shows that has answered so many clicks."""
    made = Metrics("v1", "lr")
    made.clicks.inc(clicks)
    made.transactions.labels("committed").inc(10)
    made.probability.observe(np.linspace(0, 0.01, clicks))
    made.latency.observe(np.full(clicks, 0.1))
    return made.text().decode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeKubernetes

    def answer(self, status: int, document: Json | str) -> None:
        body = (document if isinstance(document, str) else json.dumps(document)).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "text/plain" if isinstance(document, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        failure = self.server.plan(self.command, path)
        if failure == "before":
            self.close_connection = True
        elif isinstance(failure, int):
            self.answer(failure, {"message": "the API server is unwell"})
        else:
            status, document = self.work(path, json.loads(body or b"{}"))
            if failure == "after":
                self.close_connection = True
            else:
                self.answer(status, document)

    def work(self, path: str, body: Json) -> tuple[int, Json | str]:
        name = path.rpartition("/")[2]
        if path.endswith("/proxy/metrics"):
            pod = path.split("/")[-3].partition(":")[0]
            images = {p["metadata"]["name"]: p["spec"]["containers"][0]["image"] for p in self.server.listed()}
            clicks = self.server.traffic.get(images.get(pod, ""))
            if clicks is None:
                return 404, {"message": "no such pod"}
            text = metrics(clicks * (pod in self.server.looked))
            self.server.looked.add(pod)
            return 200, text
        if name == "pods":
            return 200, {"items": self.server.listed()}
        if self.command == "PATCH":
            self.server.before_patch(name, body)
            patched = self.server.patch(name, body)
            return (200, patched) if patched else (409, {"message": "the object has been modified"})
        return 200, self.server.read(name)

    do_GET = do_PATCH = serve  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def running(image: str, folder: Path) -> Iterator[tuple[FakeKubernetes, str]]:
    """The server, and the kubeconfig that leads to it."""
    with FakeKubernetes(image) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        file = folder / "kubeconfig"
        cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "fake"}}
        user = {"name": "fake", "user": {}}
        config = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "fake"}
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
        try:
            yield server, str(file)
        finally:
            server.shutdown()
            thread.join()
