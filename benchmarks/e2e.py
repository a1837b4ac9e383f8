"""From promoted model to running pods on a real Kubernetes, with load on: the figures, and whether a click was lost.

Builds the images, deploys the manifests with a Kafka beside them, and then lets the sensor and the rollout job do what
they do in production: a first model, a better one while pods are killed, and one whose image is broken. The environment
says where the cluster and the registry are: see mlops_assets_tests/cluster/rig.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from mlops_assets.assets.deployed_image import record_image
from mlops_assets.assets.inference_deployment import inference_deployment
from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.automation import rollout
from mlops_assets.modelling.ledger import Entry
from mlops_assets.modelling.training import Candidate
from mlops_assets.resources.images import MANIFEST_TYPE
from mlops_assets.resources.lake import LakeResource
from mlops_assets_tests.cluster.rig import NAMESPACE, Rig, train, what_is_missing

MIB: Final = 2**20
CANARY_SECONDS: Final = 15.0
CRASHING: Final = "import sys; sys.exit('a broken image')"


class Production:
    """The sensor and the rollout job on a Dagster instance, with the real registry and the real fleet."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.lake = LakeResource(root=str(rig.scratch / "lake"))
        self.fleet = rig.fleet(CANARY_SECONDS)
        resources = {"lake": self.lake, "images": rig.registry, "fleet": self.fleet}
        self.definitions = dg.Definitions(
            assets=[inference_deployment],
            jobs=[rollout.rollout],
            sensors=[rollout.champion_changed],
            resources=resources,
        )
        self.cursor: str | None = None

    def promote(self, candidate: Candidate, digest: str, day: str) -> None:
        """What `promoted_model` and `deployed_image` do with a verdict: a record of the decision, one of the image."""
        entry = Entry(
            day=day,
            kind="verdict",
            decided_by="e2e",
            reason="better",
            model_version=candidate.version,
            run_id="e2e",
            promoted=True,
            champion_after=candidate.version,
        )
        self.lake.lake().append_record(LEDGER, entry.key, entry.as_dict())
        record_image(self.lake.lake(), candidate.version, digest)

    def tick(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult | None:
        """One tick of the sensor, and the run that it requests, if any."""
        resources = {"lake": self.lake, "fleet": self.fleet}
        with dg.build_sensor_context(
            instance=instance, cursor=self.cursor, resources=resources, definitions=self.definitions
        ) as context:
            answer = rollout.champion_changed.evaluate_tick(context)
        self.cursor = answer.cursor or self.cursor
        if not answer.run_requests:
            return None
        job = self.definitions.resolve_job_def("rollout")
        config = answer.run_requests[0].run_config
        return job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)


class Replicas(threading.Thread):
    """Notes how many pods the HPA wants, whenever that changes."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(daemon=True)
        self.rig, self.seen, self.done = rig, list[int](), threading.Event()

    def run(self) -> None:
        while not self.done.wait(1):
            wanted = self.rig.get("deployment", "inference")["spec"].get("replicas", 0)
            if not self.seen or self.seen[-1] != wanted:
                self.seen.append(wanted)


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> float:
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise SystemExit(f"e2e: {what} did not happen within {seconds:.0f} s")
        time.sleep(0.5)
    return time.monotonic() - begun


def rss_mib(rig: Rig) -> float:
    """The largest resident set among the fleet's workers."""
    found = []
    for worker in rig.fleet(0).status().workers:
        text = rig.kubectl("get", "--raw", worker.metrics_url)
        families = {family.name: family for family in text_string_to_metric_families(text)}
        found.append(families["process_resident_memory_bytes"].samples[0].value / MIB)
    return max(found)


def seconds_to_ready(rig: Rig) -> float:
    """The longest time from a container's start to its pod's readiness; the API server notes whole seconds."""
    longest = 0.0
    for pod in rig.get("pods", "-l", "app.kubernetes.io/name=inference")["items"]:
        ready = next((c for c in pod["status"]["conditions"] if c["type"] == "Ready" and c["status"] == "True"), None)
        started = pod["status"]["containerStatuses"][0]["state"].get("running", {}).get("startedAt")
        if ready and started:
            times = [datetime.fromisoformat(text) for text in (started, ready["lastTransitionTime"])]
            longest = max(longest, (times[1] - times[0]).total_seconds())
    return longest


def image_mib(rig: Rig, reference: str) -> float:
    """What a node pulls for an image."""
    manifest = json.loads(
        rig.registry._request("GET", f"manifests/{reference}", headers={"Accept": MANIFEST_TYPE}).content
    )
    return float(sum(layer["size"] for layer in manifest["layers"]) / MIB)


def append(rig: Rig, candidate: Candidate) -> tuple[str, float, int]:
    """Publishes a model; its digest, the seconds that took, and the bytes beyond the model's own two files."""
    begun = time.monotonic()
    digest = rig.publish(candidate)
    seconds = round(time.monotonic() - begun, 3)
    manifest = rig.registry._manifest(digest)
    pushed = manifest["layers"][-1]["size"] + manifest["config"]["size"] + len(json.dumps(manifest))
    own = sum(file.stat().st_size for file in (rig.scratch / candidate.version).iterdir())
    return digest, seconds, pushed - own


def end_to_end(rig: Rig, rate: int, seconds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The whole story; its figures. Ends with SystemExit where a step does not come true."""
    figures: dict[str, Any] = {"runtime_image_mib": round(image_mib(rig, "runtime"), 1)}
    first, better = train([6], 60_000), train([6, 7], 60_000)
    production, replicas = Production(rig), Replicas(rig)
    with dg.DagsterInstance.local_temp(str(rig.scratch)) as instance:
        production.promote(first, append(rig, first)[0], "2017-11-08")
        log("rolling the first model")
        result = production.tick(instance)
        if result is None or not result.success:
            raise SystemExit("e2e: the first model was not rolled")
        wait_for("three pods", lambda: rig.fleet(0).status().ready >= 3, 90)
        replicas.start()
        time.sleep(5)
        figures |= {"rss_idle_mib": round(rss_mib(rig), 1), "ready_s": seconds_to_ready(rig)}

        log(f"load: {rate:,} clicks a second for {seconds} s")
        load = rig.start_load(rate * seconds, rate)
        wait_for("more than three pods", lambda: max(replicas.seen) > 3, seconds + 60)
        rig.wait(load, seconds + 240)
        figures["rss_loaded_mib"] = round(rss_mib(rig), 1)
        log(f"the HPA went to {max(replicas.seen)} pods; waiting for it to come back")
        wait_for("three pods again", lambda: replicas.seen[-1] == 3, 300)

        log("promoting a better model with load on, and killing pods")
        load = rig.start_load(rate // 10 * 120, rate // 10)
        time.sleep(5)
        begun = time.monotonic()
        digest, figures["append_s"], figures["append_bytes_beyond_model"] = append(rig, better)
        production.promote(better, digest, "2017-11-09")
        for victim in [worker.name for worker in rig.fleet(0).status().workers][:2]:
            rig.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
        result = production.tick(instance)
        figures["promote_to_all_serving_s"] = round(time.monotonic() - begun, 1)
        status = rig.fleet(0).status()
        if result is None or not result.success or status.digest != digest or status.last_rollout is None:
            raise SystemExit(f"e2e: the better model was not rolled: {status.last_rollout}")
        figures["roll_s"] = round(status.last_rollout.seconds - CANARY_SECONDS, 1)
        if production.tick(instance) is not None:
            raise SystemExit("e2e: the sensor asked for the same roll again")
        figures["ready_s"] = max(figures["ready_s"], seconds_to_ready(rig))

        log("rolling a broken image with load on")
        broken = rig.publish_broken(better, "broken", CRASHING)
        job = production.definitions.resolve_job_def("rollout")
        undone = job.execute_in_process(
            run_config=rollout.rollout_config(broken, "e2e"), instance=instance, raise_on_error=False
        )
        status = rig.fleet(0).status()
        if undone.success or status.digest != digest or status.ready < 3 or status.last_rollout is None:
            raise SystemExit(f"e2e: the broken image was not undone: {status}")
        figures |= {"undone_s": status.last_rollout.seconds, "undone_because": status.last_rollout.reason}
    rig.wait(load, 240)
    log("counting the answers")
    report = rig.check(120)
    replicas.done.set()
    names = ("clicks", "answered_once", "missing", "doubled", "dead_letters", "wrong")
    return (
        figures | {"hpa_moves": len(replicas.seen) - 1, "hpa": replicas.seen} | {name: report[name] for name in names}
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.e2e", description=__doc__)
    parser.add_argument("--rate", type=int, default=30_000, help="clicks a second while the HPA is watched")
    parser.add_argument("--seconds", type=int, default=45, help="how long")
    parser.add_argument("--keep", action="store_true", help=f"leave the namespace {NAMESPACE} as it is at the end")
    arguments = parser.parse_args()
    if reason := what_is_missing():
        print(f"SKIPPED: {reason}; the end-to-end test on a cluster is left out")
        sys.exit(0)
    logging.disable(logging.ERROR)  # Dagster would tell every event of every run
    console = Console()
    with tempfile.TemporaryDirectory(prefix="e2e-") as scratch:
        rig = Rig(Path(scratch))
        console.print("building the images")
        rig.build_all()
        rig.remove()
        try:
            rig.deploy()
            figures = end_to_end(rig, arguments.rate, arguments.seconds, console.print)
        finally:
            if not arguments.keep:
                rig.remove()
    table = Table("figure", "value", title="From promoted model to running pods")
    for name, value in figures.items():
        table.add_row(name, str(value))
    console.print(table)
    output = Path(".bench/e2e.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["answered_once"] != figures["clicks"] or figures["doubled"]:
        raise SystemExit("e2e: not every click was answered exactly once")


if __name__ == "__main__":
    main()
