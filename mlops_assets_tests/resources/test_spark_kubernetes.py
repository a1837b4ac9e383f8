"""Spark on an API server of Kubernetes that is unwell for two minutes; in good weather it is tested in cluster/."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.resources import kubernetes_api
from mlops_assets.resources.ephemeral import ClusterError, Phase
from mlops_assets.resources.spark_kubernetes import KubernetesSpark
from mlops_assets_tests.resources.test_kubernetes import Clock

Failure = int | str


class Pods(ThreadingHTTPServer):
    """The pods of a namespace. `plan` says what goes wrong: a status, or the connection is cut before or after."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods: dict[str, Any] = {}
        self.created: list[str] = []
        self.plan: Callable[[str], Failure | None] = lambda method: None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Pods

    def serve(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        failure = self.server.plan(self.command)
        if failure == "before":
            self.close_connection = True
            return
        status, document = (failure, {}) if isinstance(failure, int) else self.work(body)
        if failure == "after":
            self.close_connection = True
            return
        content = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def work(self, body: Any) -> tuple[int, Any]:
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.command == "POST":
            if body["metadata"]["name"] in self.server.pods:
                return 409, {}
            self.server.created.append(body["metadata"]["name"])
            self.server.pods[body["metadata"]["name"]] = {**body, "status": {"phase": "Succeeded"}}
            return 201, body
        if self.command == "DELETE":
            if name == "pods":
                self.server.pods.clear()
                return 200, {}
            return (200, {}) if self.server.pods.pop(name, None) else (404, {})
        return 200, {"items": list(self.server.pods.values())}

    do_GET = do_POST = do_DELETE = serve  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def pods() -> Iterator[Pods]:
    with Pods() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def spark(pods: Pods, tmp_path: Path) -> KubernetesSpark:
    cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{pods.server_port}"}}
    context = {"name": "fake", "context": {"cluster": "fake", "user": "fake"}}
    user = {"name": "fake", "user": {}}
    config = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "fake"}
    (tmp_path / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    return KubernetesSpark(image="spark:1", kubeconfig=str(tmp_path / "kubeconfig"))


@pytest.mark.parametrize("failure", [500, 429, 503, "before", "after"])
def test_two_minutes_of_trouble_lose_no_cluster_and_make_no_second(
    pods: Pods, spark: KubernetesSpark, monkeypatch: pytest.MonkeyPatch, failure: Failure
) -> None:
    clock, ends = Clock(), itertools.count(1_120, 10**6)
    monkeypatch.setattr(kubernetes_api, "time", clock)
    until = [next(ends)]
    pods.plan = lambda method: failure if clock.seconds < until[0] else None
    cluster = spark.create(spark.labels(), ["timeit"])
    assert pods.created == [cluster]
    until[0] = int(clock.seconds) + 120
    assert spark.reconcile(cluster, ["timeit"]).phase == Phase.SUCCEEDED
    until[0] = int(clock.seconds) + 120
    assert [each.id for each in spark.clusters()] == [cluster]
    until[0] = int(clock.seconds) + 120
    spark.delete(cluster)
    assert pods.pods == {}


def test_a_refusal_is_said_at_once(pods: Pods, spark: KubernetesSpark, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(kubernetes_api, "time", clock)
    pods.plan = lambda method: 403
    with pytest.raises(ClusterError, match="apply k8s/spark first"):
        spark.create(spark.labels(), ["timeit"])
    assert clock.seconds == 1_000
