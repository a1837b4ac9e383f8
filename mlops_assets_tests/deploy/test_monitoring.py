"""The alerts and the dashboard: they parse, they fire when they should, and they ask for metrics that exist."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.automation.metrics import Vitals
from mlops_assets.automation.outbox import Outbox
from mlops_assets.automation.tell_people import STATE
from mlops_assets.inference.metrics import Metrics
from mlops_assets.resources import canary
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS
from mlops_assets.resources.lake import LakeResource
from mlops_assets_tests.deploy.compose import DEPLOY, ROOT, load, services
from mlops_assets_tests.deploy.manifests import kubectl, kustomize, with_component

ALERTS = DEPLOY / "prometheus/alerts.yaml"
TESTS = [DEPLOY / "prometheus" / name for name in ("alerts_test.yaml", "alerts_day_test.yaml")]
RULES = [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]
BY_NAME = {rule["alert"]: rule for rule in RULES if "alert" in rule}
DASHBOARD = json.loads((DEPLOY / "grafana/mlops-assets.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
QUERIES = [target["expr"] for target in TARGETS if "expr" in target]
OURS = re.compile(r"\b(?:inference_|rekey_|process_|mlops_(?!assets_))[\w:]+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: install the package prometheus")
amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="no amtool: install the package prometheus-alertmanager"
)


def check(*arguments: object) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def known_metrics() -> set[str]:
    """What a worker and the monitor really show, and what the rules make of it."""
    shown = list(text_string_to_metric_families(Metrics("a-version", "an-algorithm").text().decode()))
    shown += text_string_to_metric_families(Metrics("", "", "rekey").text().decode())
    with dg.DagsterInstance.ephemeral() as instance, TemporaryDirectory() as root:
        instance.daemon_cursor_storage.set_cursor_values({STATE: Outbox().encode()})
        shown += Vitals(instance, LakeResource(root=root), due_hours=9).collect()
    found = {family.name + suffix for family in shown for suffix in SUFFIXES[family.type]}
    return found | {rule["record"] for rule in RULES if "record" in rule}


@promtool
def test_prometheus_takes_its_configuration() -> None:
    check("check", "config", DEPLOY / "prometheus/prometheus.yaml")


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    check("test", "rules", *TESTS)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = [case for file in TESTS for test in load(file)["tests"] for case in test["alert_rule_test"]]
    fires, does_not = (
        {case["alertname"] for case in cases if bool(case["exp_alerts"]) == seen} for seen in (True, False)
    )
    assert fires == BY_NAME.keys()
    assert does_not == BY_NAME.keys() - {"Watchdog"}


@pytest.mark.parametrize("name", BY_NAME)
def test_an_alert_keeps_namespaces_apart(name: str) -> None:
    """No aggregate over all, no join across: staging must not hide, or be blamed for, what happens in production."""
    expression = BY_NAME[name]["expr"]
    aggregates = re.findall(r"\b(?:sum|min|max|avg|count|group)\b(?! *_over)\s*(by\s*\([^)]*\))?", expression)
    assert all("namespace" in by for by in aggregates), expression
    matched = re.findall(r"\b(?:on|group_left)\s*\(([^)]*)\)", expression)
    nowhere = "absent(" in expression  # no worker anywhere
    assert all("namespace" in labels for labels in matched if labels or not (nowhere or "group_left" in expression))


@pytest.mark.parametrize("name", BY_NAME)
def test_an_alert_leads_to_its_section_of_the_runbook(name: str) -> None:
    file, _, anchor = BY_NAME[name]["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings
    assert BY_NAME[name]["labels"]["severity"] in ("critical", "warning", "none" if name == "Watchdog" else "")


def test_the_metrics_that_are_asked_for_exist() -> None:
    asked = {name for text in [*QUERIES, *(rule["expr"] for rule in RULES)] for name in OURS.findall(text)}
    assert asked >= {"inference_ready", "inference_score:mean1h", "inference_latency_seconds_bucket", "mlops_days"}
    assert asked <= known_metrics()


def test_buckets_that_are_asked_for_exist() -> None:
    shown = Metrics("a-version", "an-algorithm").text().decode()
    for bound in re.findall(r'le=~"([^"]*)"', ALERTS.read_text())[0].split("|"):
        assert f'inference_probability_bucket{{le="{bound}"}}' in shown


def test_alerts_ask_of_models_what_the_canary_asks() -> None:
    expression = BY_NAME["InferenceScoreLevelChanged"]["expr"]
    assert f"{canary.SCORE_RATIO:g} * min" in expression
    assert f"/ {canary.SCORE_RATIO:g}\n" in expression
    shares = next(rule["expr"] for rule in RULES if rule.get("record") == "inference_score:share1h")
    assert "|".join(f"{bound:g}" for bound in canary.SCORE_BOUNDS) in shares
    assert f"< {INPUT_PARTITIONS}" in BY_NAME["InferencePartitionsUnread"]["expr"]


@amtool
def test_alertmanager_takes_its_configuration_and_routes_by_it() -> None:
    file = DEPLOY / "prometheus/alertmanager.yaml"
    for labels, receiver in {"alertname=Watchdog": "dead-man", "alertname=InferenceDown": "people"}.items():
        subprocess.run(["amtool", "check-config", str(file)], capture_output=True, timeout=60, check=True)
        command = [
            "amtool",
            "config",
            "routes",
            "test",
            f"--config.file={file}",
            f"--verify.receivers={receiver}",
            labels,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    named = re.findall(r'alertname =~? "?(.*?)"?\]', file.read_text())
    assert all(any(re.fullmatch(pattern, name) for name in BY_NAME) for pattern in named)


def test_the_prometheusrule_is_made_of_the_alerts() -> None:
    program: dict[str, Any] = runpy.run_path(str(DEPLOY / "prometheus/rules.py"))
    assert program["FILE"].read_text() == program["text"](), "python deploy/prometheus/rules.py"
    assert load(program["FILE"])["spec"] == load(ALERTS)


@kubectl
@pytest.mark.parametrize("overlay", ["overlays/cloud", "overlays/kind", "monitor"])
def test_manifests_apply_where_prometheus_operator_is_missing(overlay: str) -> None:
    assert not [each for each in kustomize(ROOT / "k8s" / overlay) if "monitoring.coreos.com" in each["apiVersion"]]


@kubectl
@pytest.mark.parametrize(
    ("folder", "component", "kinds"),
    [
        ("overlays/cloud", "../../components/prometheus", {"PodMonitor", "PrometheusRule"}),
        ("monitor", "prometheus", {"PodMonitor"}),
    ],
)
def test_the_component_has_the_operators_objects_with_the_label_that_it_selects_by(
    folder: str, component: str, kinds: set[str], tmp_path: Path
) -> None:
    made = with_component(folder, component, tmp_path)
    found = [each for each in made if each["apiVersion"].startswith("monitoring.coreos.com")]
    assert {each["kind"] for each in found} == kinds
    assert all(each["metadata"]["labels"]["release"] == "kube-prometheus-stack" for each in found)
    pods = [each["spec"]["template"] for each in made if each["kind"] == "Deployment"]
    for each in found:
        if each["kind"] == "PodMonitor":
            selected = each["spec"]["selector"]["matchLabels"].items()
            ports = {port["name"] for pod in pods for port in pod["spec"]["containers"][0]["ports"]}
            assert all(selected <= pod["metadata"]["labels"].items() for pod in pods)
            assert {end["port"] for end in each["spec"]["podMetricsEndpoints"]} <= ports
    others = [each for each in made if each not in found]
    assert others == kustomize(ROOT / "k8s" / folder)


def test_the_dashboard_is_what_its_program_makes() -> None:
    program: dict[str, Any] = runpy.run_path(str(DEPLOY / "grafana/dashboard.py"))
    assert program["text"]() == (DEPLOY / "grafana/mlops-assets.json").read_text(), "python deploy/grafana/dashboard.py"


@promtool
def test_the_dashboards_queries_parse(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(QUERIES)]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    check("check", "rules", file)


def test_the_dashboards_data_sources_are_provisioned() -> None:
    provisioned = {each["uid"]: each["type"] for each in load(DEPLOY / "grafana/datasources.yaml")["datasources"]}
    used = [panel["datasource"] for panel in DASHBOARD["panels"] if "datasource" in panel]
    assert used
    assert all(provisioned[each["uid"]] == each["type"] for each in used)
    (provider,) = load(DEPLOY / "grafana/dashboards.yaml")["providers"]
    mounted = {Path(each["target"]).parent for each in services()["grafana"]["configs"]}
    assert Path(provider["options"]["path"]) in mounted
