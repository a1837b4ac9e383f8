"""Rolls on a real Kubernetes: under load, of bad images, by runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import yaml

from mlops_assets.modelling.training import Candidate
from mlops_assets.resources.inference import Rollout
from mlops_assets.resources.kubernetes_roll import ROLLING
from mlops_assets.resources.registry import Registry
from mlops_assets_tests.cluster.rig import NAMESPACE, OVERLAY, ROOT, Rig, run, train
from mlops_assets_tests.integration.faulty_proxy import Fault, proxy
from mlops_assets_tests.resources.models import write_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
DEADLINE = 150.0

CRASHING = "import sys; sys.exit('cannot reach the broker')"
NEVER_READY = """
import http.server
class Probe(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == '/live' else 503)
        self.end_headers()
http.server.HTTPServer(('', 9091), Probe).serve_forever()
"""


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    return [train([6], 40_000), train([6, 7], 40_000)]


@pytest.fixture
def good(rig: Rig, candidates: list[Candidate]) -> str:
    """The digest of a good image that the whole fleet runs."""
    digest = rig.publish(candidates[0])
    rollout = rig.fleet(canary_seconds=0).roll(digest, DEADLINE)
    assert rollout.verdict in ("rolled", "unchanged"), rollout.reason
    return digest


def fleet_is(rig: Rig, digest: str) -> bool:
    status = rig.fleet(0).status()
    return status.digest == digest and {w.digest for w in status.workers if w.ready} == {digest} and not status.rolling


def template(rig: Rig) -> str:
    """Kubernetes' number of the fleet's template: as long as it is the same, no pod of the fleet was replaced."""
    revision: str = rig.get("deployment", "inference")["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
    return revision


def eventually_is(rig: Rig, digest: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not fleet_is(rig, digest):
        assert time.monotonic() < deadline, f"the fleet does not run {digest}: {rig.fleet(0).status()}"
        time.sleep(0.5)


@pytest.mark.parametrize("overlay", ["kind", "e2e", "cloud"])
def test_the_api_server_accepts_the_manifests(rig: Rig, overlay: str) -> None:
    manifests = run(["kubectl", "kustomize", str(ROOT / "k8s" / "first" / overlay)])
    out = rig.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", text=manifests)
    assert "deployment.apps/inference-canary" in out


@pytest.mark.parametrize("options", [[], ["--server-side", "--force-conflicts"]], ids=["plain", "server-side"])
def test_manifests_applied_in_mid_operation_change_neither_image_nor_replicas(
    rig: Rig, good: str, options: list[str]
) -> None:
    rig.kubectl("scale", "deployment/inference-canary", "--replicas=1")  # as during a roll
    names = ("inference", "inference-canary")
    try:
        before = {name: rig.get("deployment", name)["spec"] for name in names}
        manifests = run(["kubectl", "kustomize", str(OVERLAY)]).replace("127.0.0.1:5000", rig.registry_host)
        changed = manifests.replace("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 31")
        rig.kubectl("apply", *options, "-f", "-", text=changed)
        after = {name: rig.get("deployment", name)["spec"] for name in names}
        for name in names:
            assert after[name]["replicas"] == before[name]["replicas"]
            old, new = (each[name]["template"]["spec"] for each in (before, after))
            assert new["containers"][0]["image"] == old["containers"][0]["image"]
            assert new["terminationGracePeriodSeconds"] == 31
    finally:
        rig.kubectl("scale", "deployment/inference-canary", "--replicas=0")
        rig.kubectl("apply", *options, "-f", "-", text=manifests)
    eventually_is(rig, good)


@pytest.mark.parametrize(
    ("may", "what"),
    [
        (True, ["patch", "deployment/inference"]),
        (True, ["patch", "deployment/inference-canary"]),
        (False, ["patch", "deployment/kafka"]),
        (False, ["delete", "deployment/inference"]),
        (False, ["create", "deployments"]),
        (False, ["create", "pods"]),
        (False, ["delete", "pods"]),
        (False, ["get", "secrets"]),
        (False, ["create", "pods", "--subresource=exec"]),
    ],
)
def test_the_rollout_has_just_the_rights_it_needs(rig: Rig, may: bool, what: list[str]) -> None:
    answer = subprocess.run(
        ["kubectl", "auth", "can-i", *what, "-n", NAMESPACE, f"--as=system:serviceaccount:{NAMESPACE}:rollout"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.stdout.strip() == ("yes" if may else "no")


def test_a_roll_under_load_with_a_pod_killed_loses_and_doubles_nothing(
    rig: Rig, good: str, candidates: list[Candidate]
) -> None:
    load = rig.start_load(300_000, 6_000)
    better = rig.publish(candidates[1])
    victim = rig.fleet(0).status().workers[0].name
    killer = subprocess.Popen(
        ["kubectl", "-n", NAMESPACE, "delete", "pod", victim, "--grace-period=0", "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rollout = rig.fleet(canary_seconds=10).roll(better, DEADLINE)
    killer.wait(60)
    assert (rollout.verdict, rollout.previous, rollout.reason) == ("rolled", good, "")
    assert fleet_is(rig, better)
    assert rig.wait(load)["failed"] == 0
    report = rig.check(90)
    found = {name: report[name] for name in ("answered_once", "missing", "doubled", "dead_letters", "wrong")}
    assert found == {"answered_once": rig.produced, "missing": 0, "doubled": 0, "dead_letters": 0, "wrong": 0}
    assert set(report["models"]) == {c.version for c in candidates}
    assert rig.fleet(0).roll(better, DEADLINE).verdict == "unchanged"


@pytest.mark.parametrize("canary_seconds", [0, 10])
@pytest.mark.parametrize(
    ("name", "program", "deadline", "reason"),
    [
        ("crashing", CRASHING, DEADLINE, "cannot reach the broker"),
        ("never-ready", NEVER_READY, 15, "not ready before the deadline"),
    ],
)
def test_a_bad_image_is_undone(
    rig: Rig,
    good: str,
    candidates: list[Candidate],
    name: str,
    program: str,
    deadline: float,
    reason: str,
    canary_seconds: float,
) -> None:
    bad = rig.publish_broken(candidates[1], name, program)
    before = template(rig)
    rollout = rig.fleet(canary_seconds).roll(bad, deadline)
    assert (rollout.verdict, rollout.previous, rollout.transient) == ("undone", good, False)
    assert reason in rollout.reason
    assert rig.fleet(0).status().last_rollout == rollout
    eventually_is(rig, good)
    if canary_seconds:
        assert template(rig) == before


class ElsewhereRegistry(Registry):
    """The registry as this machine has it, where the nodes look for it in vain."""

    def reference(self, digest: str) -> str:
        return f"127.0.0.1:5999/inference@{digest}"


def test_an_image_that_the_nodes_cannot_pull_is_undone_and_not_blamed(
    rig: Rig, good: str, candidates: list[Candidate]
) -> None:
    digest = rig.publish(train([6], 30_000))
    away = ElsewhereRegistry(repository=rig.registry.repository)
    rollout = rig.fleet(canary_seconds=10, registry=away).roll(digest, DEADLINE)
    assert (rollout.verdict, rollout.transient) == ("undone", True)
    assert "ImagePullBackOff" in rollout.reason
    eventually_is(rig, good)


def test_an_image_with_a_part_missing_touches_nothing(rig: Rig, good: str) -> None:
    digest, before = rig.publish(train([7], 30_000)), template(rig)
    rig.forget_layer(digest)
    rollout = rig.fleet(canary_seconds=10).roll(digest, DEADLINE)
    assert (rollout.verdict, rollout.transient) == ("undone", False)
    assert "there is no blobs/sha256:" in rollout.reason
    assert template(rig) == before


def test_an_unknown_image_touches_nothing(rig: Rig, good: str) -> None:
    before = template(rig)
    rollout = rig.fleet(10).roll("sha256:" + "0" * 64, DEADLINE)
    assert rollout.verdict == "undone"
    assert "there is no manifests/sha256:0" in rollout.reason
    assert template(rig) == before


def test_a_model_with_other_scores_is_withdrawn_after_the_canary(
    rig: Rig, good: str, candidates: list[Candidate], tmp_path: Path
) -> None:
    digest = rig.registry.publish(write_model(tmp_path, "saturated", weight=1.0), {})
    before = template(rig)
    load = rig.start_load(120_000, 4_000)
    rollout = rig.fleet(canary_seconds=15).roll(digest, DEADLINE)
    assert rollout.verdict == "undone"
    assert "its mean score is" in rollout.reason
    eventually_is(rig, good)
    assert template(rig) == before
    rig.wait(load)
    assert rig.check(60)["missing"] == 0


def test_a_second_roll_waits_for_the_first_and_an_overtaken_one_says_so(
    rig: Rig, good: str, candidates: list[Candidate]
) -> None:
    bad, other = rig.publish_broken(candidates[1], "never-ready", NEVER_READY), rig.publish(candidates[1])
    for lease, verdict in ((180.0, "undone"), (0.0, "overtaken")):
        results: list[Rollout] = []
        first = Thread(target=lambda: results.append(rig.fleet(0, lease_seconds=lease).roll(bad, 15)))  # noqa: B023
        first.start()
        deadline = time.monotonic() + 30
        while rig.fleet(0).status().digest != bad:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        rollout = rig.fleet(0).roll(other, DEADLINE)
        first.join(60)
        assert (rollout.verdict, rollout.previous, results[0].verdict) == ("rolled", good, verdict)
        assert fleet_is(rig, other)
        assert rig.fleet(0).status().last_rollout == rollout
        assert rig.fleet(0).roll(good, DEADLINE).verdict == "rolled"


def test_a_run_killed_after_its_last_step_is_not_undone(rig: Rig, good: str, candidates: list[Candidate]) -> None:
    before, new = template(rig), rig.publish(candidates[1])
    reference = rig.registry.reference
    marker = {"from": reference(new), "to": reference(good), "by": "a killed run", "until": time.time() - 1}
    rig.kubectl("annotate", "deployment/inference", f"{ROLLING}={json.dumps(marker)}")
    recovered = rig.fleet(0).recover()
    assert recovered is not None
    assert (recovered.verdict, recovered.digest) == ("rolled", good)
    assert template(rig) == before
    assert fleet_is(rig, good)


@pytest.mark.parametrize("fault", [500, 429, "lose the answer"])
def test_two_minutes_without_a_sane_api_server_change_no_roll(
    rig: Rig, good: str, candidates: list[Candidate], fault: Fault
) -> None:
    direct = rig.fleet(0)
    config = yaml.safe_load(Path(str(direct.kubeconfig)).read_text())
    better = rig.publish(candidates[1])
    with proxy(config["clusters"][0]["cluster"]["server"]) as unwell:
        config["clusters"][0]["cluster"] = {"server": unwell.url}
        file = rig.scratch / "unwell.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        begun: list[float] = []

        def plan(method: str, path: str) -> Fault | None:
            if method == "PATCH" and not begun:
                begun.append(time.monotonic())
            return fault if begun and time.monotonic() < begun[0] + 120 else None

        unwell.plan = plan
        rollout = rig.fleet(0, kubeconfig=str(file)).roll(better, 400)
    assert (rollout.verdict, rollout.previous) == ("rolled", good)
    assert time.monotonic() > begun[0] + 120, "the roll ended before the server was well again: this showed nothing"
    assert fleet_is(rig, better)


def test_a_canary_without_traffic_is_unjudged(rig: Rig, good: str, candidates: list[Candidate]) -> None:
    before, better = template(rig), rig.publish(candidates[1])
    rollout = rig.fleet(canary_seconds=5).roll(better, DEADLINE)
    assert (rollout.verdict, rollout.transient) == ("undone", True)
    assert "could not be judged: it answered 0 clicks and the fleet 0" in rollout.reason
    assert template(rig) == before
    rollout = rig.fleet(canary_seconds=5).roll(better, DEADLINE, "proceed")
    assert rollout.verdict == "rolled"
    assert "could not be judged" in rollout.reason


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_the_old_image(
    rig: Rig, good: str, candidates: list[Candidate], how: signal.Signals
) -> None:
    bad = rig.publish_broken(candidates[1], "never-ready", NEVER_READY)
    fleet = rig.fleet(0)
    program = (
        "import pathlib, sys; from mlops_assets_tests.cluster.rig import Rig;"
        "Rig(pathlib.Path(sys.argv[1])).fleet(0, lease_seconds=15).roll(sys.argv[2], 60)"
    )
    run_of_dagster = subprocess.Popen([sys.executable, "-c", program, str(rig.scratch), bad], cwd=ROOT)
    deadline = time.monotonic() + 40
    while fleet.status().digest != bad:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(run_of_dagster.pid, how)
    run_of_dagster.wait(30)
    if how == signal.SIGKILL:
        assert fleet.recover() is None  # it might still be at work
        time.sleep(16)
        undone = fleet.recover()
        assert undone is not None
        assert undone.reason == "the run was killed during the roll"
    last = fleet.status().last_rollout
    assert last is not None
    assert (last.verdict, last.digest, last.previous) == ("undone", bad, good)
    eventually_is(rig, good)
