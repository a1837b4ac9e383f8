"""A whole system on a real Kubernetes: images built and pushed, a Kafka, the fleet, load, and a count of the answers.

What it needs comes from the environment: KUBECONFIG; `kubectl` on PATH; E2E_REGISTRY, a registry that this machine and
the nodes reach by the same name (127.0.0.1:5000); PYTHON_IMAGE, the base of the images (python:3.11-slim); IMAGE_BUILD,
a program that is called with NAME FOLDER [OPTIONS of `docker build`], builds and pushes (else docker itself is used).
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import requests
import yaml

from mlops_assets.clicks.features import RunningCounts, features
from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.modelling.sample import Sample
from mlops_assets.modelling.training import Candidate, train_candidate
from mlops_assets.resources.images import CONFIG_TYPE, canonical
from mlops_assets.resources.kafka import kafka_jars
from mlops_assets.resources.kubernetes import KubernetesFleet
from mlops_assets.resources.registry import Registry

ROOT: Final = Path(__file__).parents[2]
OVERLAY: Final = ROOT / "k8s" / "overlays" / "e2e"
FIRST: Final = ROOT / "k8s" / "first" / "e2e"
NAMESPACE: Final = "inference"
BUILD_SECONDS: Final = 1200
COMMAND_SECONDS: Final = 180


def what_is_missing() -> str | None:
    """Why the tests on a cluster cannot run here, None if they can."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG is not set: no Kubernetes to test on"
    if shutil.which("kubectl") is None:
        return "no kubectl on PATH"
    if not os.environ.get("IMAGE_BUILD") and shutil.which("docker") is None:
        return "neither IMAGE_BUILD nor docker: no way to build images"
    return None


def run(command: Sequence[str], seconds: float = COMMAND_SECONDS, text: str | None = None) -> str:
    """A program's output. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def train(days: Sequence[int], clicks: int) -> Candidate:
    """A real candidate, trained on generated days of November 2017."""
    parts, labels, ips = [], [], []
    for day in days:
        batch = Clicks.concat(list(generate_day(datetime.date(2017, 11, day), clicks, seed=7)))
        parts.append(features(batch, RunningCounts().count(batch)))
        labels.append(batch.label)
        ips.append(batch.ip)
    label = np.concatenate([label for label in labels if label is not None])
    window = Sample(np.concatenate(parts), label, np.concatenate(ips))
    names = [f"2017-11-{day:02d}" for day in days]
    return train_candidate(window, day="2017-11-10", trained_on=names)


@dataclass
class Rig:
    """The system under test. `deploy` once, then `fleet.roll`, `load` and `check` as often as one likes."""

    scratch: Path
    registry_host: str = field(default_factory=lambda: os.environ.get("E2E_REGISTRY", "127.0.0.1:5000"))
    produced: int = 0

    @property
    def registry(self) -> Registry:
        """Where the images are."""
        return Registry(repository=f"{self.registry_host}/inference")

    def fleet(self, canary_seconds: float, **fields: Any) -> KubernetesFleet:
        """The fleet, commanded with the rights that k8s/ gives the service account `rollout`, and no others."""
        file = self.scratch / "rollout.kubeconfig"
        if not file.exists():
            self._write_kubeconfig(file)
        settings = {"registry": self.registry, "kubeconfig": str(file), **fields}
        return KubernetesFleet(namespace=NAMESPACE, canary_seconds=canary_seconds, **settings)

    def build(self, name: str, folder: Path, *options: str) -> str:
        """Builds and pushes an image; its name."""
        tag = f"{self.registry_host}/{name}"
        options = ("--build-arg", f"PYTHON_IMAGE={os.environ.get('PYTHON_IMAGE', 'python:3.11-slim')}", *options)
        if program := os.environ.get("IMAGE_BUILD"):
            run([*shlex.split(program), tag, str(folder), *options], BUILD_SECONDS)
        else:
            run(["docker", "build", "-q", "-t", tag, *options, str(folder)], BUILD_SECONDS)
            run(["docker", "push", "-q", tag], BUILD_SECONDS)
        return tag

    def build_all(self) -> None:
        """The runtime and the Kafka."""
        self.build("inference:runtime", ROOT, "--target", "inference")
        self.build("kafka:e2e", kafka_jars(), "-f", str(OVERLAY / "kafka.Dockerfile"))

    def publish(self, candidate: Candidate) -> str:
        """A candidate's image; its digest."""
        folder = self.scratch / candidate.version
        candidate.write(folder)
        return self.registry.publish(folder, {"mlops-assets.trained-on": ",".join(candidate.description["trained_on"])})

    def publish_broken(self, candidate: Candidate, tag: str, program: str) -> str:
        """An image whose model is good, but which runs another Python program instead of the worker; its digest."""
        base = self.registry._base()
        config = {**base.config, "config": {**base.config["config"], "Entrypoint": ["python", "-c", program]}}
        manifest = json.loads(self.registry._get_manifest("runtime"))
        manifest["config"] = self.registry._put_blob(canonical(config), CONFIG_TYPE)
        self.registry._put_manifest(canonical(manifest), tag)
        folder = self.scratch / candidate.version
        candidate.write(folder)
        return Registry(repository=self.registry.repository, runtime=tag).publish(folder, {"broken": tag})

    def forget_layer(self, digest: str) -> None:
        """Deletes an image's model layer from the registry, so that no node can pull it."""
        layer = self.registry._manifest(digest)["layers"][-1]["digest"]
        requests.delete(f"http://{self.registry_host}/v2/inference/blobs/{layer}", timeout=10).raise_for_status()

    def kubectl(self, *arguments: str, text: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """kubectl's output, in the namespace of the fleet."""
        return run(["kubectl", "-n", NAMESPACE, *arguments], seconds, text)

    def get(self, *what: str) -> dict[str, Any]:
        """An object, or a list of them, as Kubernetes has it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def deploy(self) -> None:
        """Installs the overlay and waits for Kafka, with its topics; the fleet itself has no model yet."""
        manifests = run(["kubectl", "kustomize", str(FIRST)]).replace("127.0.0.1:5000", self.registry_host)
        self.kubectl("create", "-f", "-", text=manifests)
        self.kubectl("rollout", "status", "deployment/kafka", "--timeout=150s")
        self.wait(self.start_load(0, 1))

    def remove(self) -> None:
        """Deletes the namespace and all that is in it."""
        run(["kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true"], seconds=180)

    def _write_kubeconfig(self, file: Path) -> None:
        admin = yaml.safe_load(run(["kubectl", "config", "view", "--raw", "--minify", "--flatten"]))
        token = self.kubectl("create", "token", "rollout", "--duration=2h").strip()
        admin["users"] = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(admin))

    def start_load(self, clicks: int, rate: float) -> str:
        """A pod that produces that many further clicks; its name."""
        name = f"load-{self.produced}-{time.time_ns() // 10**6 % 10**7}"
        self._start_pod(name, "load.py", {"FIRST": self.produced, "CLICKS": clicks, "RATE": rate})
        self.produced += clicks
        return name

    def check(self, seconds: float) -> dict[str, Any]:
        """What was answered of all the clicks produced so far, once all are, or after `seconds`."""
        name = f"check-{time.time_ns() // 10**6 % 10**7}"
        self._start_pod(name, "check.py", {"CLICKS": self.produced, "SECONDS": seconds})
        return self.wait(name, seconds + 60)

    def wait(self, pod: str, seconds: float = 300) -> dict[str, Any]:
        """Waits until a pod has ended; the JSON of its last line. Raises RuntimeError with its log if it failed."""
        deadline = time.monotonic() + seconds
        while (phase := self.get("pod", pod)["status"]["phase"]) not in ("Succeeded", "Failed"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        log = self.kubectl("logs", pod) if phase != "Pending" else "it never started"
        if phase != "Succeeded":
            raise RuntimeError(f"pod {pod} is {phase}: {log[-2000:]}")
        self.kubectl("delete", "pod", pod, "--wait=false")
        result: dict[str, Any] = json.loads(log.splitlines()[-1])
        return result

    def _start_pod(self, name: str, script: str, environment: dict[str, Any]) -> None:
        variables = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", **{k: str(v) for k, v in environment.items()}}
        container = {
            "name": "main",
            "image": f"{self.registry_host}/inference:runtime",
            "imagePullPolicy": "Always",
            "command": ["python", f"/scripts/{script}"],
            "env": [{"name": key, "value": value} for key, value in variables.items()],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}],
        }
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "scripts", "configMap": {"name": "load"}}],
            "containers": [container],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.kubectl("apply", "-f", "-", text=json.dumps(pod))
