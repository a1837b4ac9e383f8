"""Spark on a real Kubernetes: its image, its namespace, and an S3 server that the pods and this machine both reach."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml
from botocore.exceptions import BotoCoreError

from mlops_assets.cli.servers import find_s3_server, make_bucket
from mlops_assets.lake import s3
from mlops_assets.resources.programs import ProgramError
from mlops_assets.resources.spark_kubernetes import KubernetesSpark
from mlops_assets_tests.cluster import rig
from mlops_assets_tests.cluster.rig import OVERLAY, ROOT, run

NAMESPACE: Final = "spark"
SECRET: Final = "s3-credentials"
BUCKET: Final = "lake"


def what_is_missing() -> str | None:
    """Why the tests of Spark on a cluster cannot run here, None if they can."""
    try:
        find_s3_server()
    except ProgramError as error:
        return str(error)
    return rig.what_is_missing()


@dataclass
class SparkRig:
    """The namespace `spark` as k8s/spark makes it, with an S3 server of the test's own."""

    scratch: Path

    def __post_init__(self) -> None:
        self.images = rig.Rig(self.scratch)
        self.keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24)}

    def build_all(self) -> None:
        """The images of Spark and of the S3 server."""
        self.images.build("spark:e2e", ROOT, "--target", "spark")
        with TemporaryDirectory() as folder:
            shutil.copy(find_s3_server(), Path(folder, "versitygw"))
            self.images.build("s3:e2e", Path(folder), "-f", str(OVERLAY / "s3.Dockerfile"))

    def deploy(self) -> None:
        """Applies k8s/spark and the S3 server, and makes the bucket."""
        run(["kubectl", "apply", "-k", str(ROOT / "k8s" / "spark")])
        literals = [f"--from-literal={name}={value}" for name, value in self.keys.items()]
        self.kubectl("create", "secret", "generic", SECRET, *literals)
        manifests = (OVERLAY / "s3.yaml").read_text().replace("127.0.0.1:5000", self.images.registry_host)
        self.kubectl("apply", "-f", "-", text=manifests)
        self.kubectl("rollout", "status", "deployment/s3", "--timeout=120s")
        deadline = time.monotonic() + 60
        while True:
            try:
                make_bucket(self.variables, BUCKET)
                return
            except BotoCoreError:  # a node's port opens a moment after its pod is ready
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def remove(self) -> None:
        """Deletes the namespace and all that is in it."""
        run(["kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true"], seconds=180)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """kubectl's output, in the namespace of Spark."""
        return run(["kubectl", "-n", NAMESPACE, *arguments], text=text)

    @cached_property
    def variables(self) -> dict[str, str]:
        """Those by which this machine and the pods reach the S3 server, at a node's port."""
        nodes = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        addresses = {each["type"]: each["address"] for each in nodes[0]["status"]["addresses"]}
        endpoint = f"http://{addresses['InternalIP']}:30707"
        return {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": "us-east-1", **self.keys}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process with those variables."""
        before = dict(os.environ)
        os.environ.update(self.variables)
        s3.client.cache_clear()
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            s3.client.cache_clear()

    def spark(self, **fields: Any) -> KubernetesSpark:
        """The resource, with the rights that k8s/spark gives the service account `dagster`, and no others."""
        chosen: dict[str, Any] = {
            "image": f"{self.images.registry_host}/spark:e2e",
            "namespace": NAMESPACE,
            "secret": SECRET,
            "cpu_request": 0.1,
            "heap_mib": 512,
            "python_mib": 768,
            "poll_seconds": 0.5,
            "deadline_minutes": 5,
            "variables": {name: self.variables[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION")},
            "kubeconfig": str(self.kubeconfig),
            **fields,
        }
        return KubernetesSpark(**chosen)

    @cached_property
    def kubeconfig(self) -> Path:
        """A kubeconfig of the service account `dagster`."""
        file = self.scratch / "dagster.kubeconfig"
        admin = yaml.safe_load(run(["kubectl", "config", "view", "--raw", "--minify", "--flatten"]))
        token = self.kubectl("create", "token", "dagster", "--duration=2h").strip()
        admin["users"] = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(admin))
        return file

    def pods(self, role: str | None = None) -> list[str]:
        """The names of Spark's pods that exist, in whatever state, all or of one role."""
        selector = f"spark-role={role}" if role else "spark-role"
        found = self.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}")
        return found.split()

    def wait_for_pods(self, role: str, phase: str = "Running", seconds: float = 90) -> list[str]:
        """Their names as soon as there are some in that phase."""
        deadline = time.monotonic() + seconds
        while True:
            arguments = ("-l", f"spark-role={role}", f"--field-selector=status.phase={phase}")
            names = self.kubectl("get", "pods", *arguments, "-o", "jsonpath={.items[*].metadata.name}").split()
            if names:
                return names
            assert time.monotonic() < deadline, f"no {role} is {phase}: {self.kubectl('get', 'pods')}"
            time.sleep(0.2)
