"""The alerts and the dashboard: they parse, they fire when they should, and they ask for metrics that exist."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.inference.metrics import Metrics
from mlops_assets.resources import canary
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS
from mlops_assets_tests.deploy.compose import DEPLOY, ROOT, load, services

ALERTS = DEPLOY / "prometheus/alerts.yaml"
RULES = [rule for group in load(ALERTS)["groups"] for rule in group["rules"]]
BY_NAME = {rule["alert"]: rule for rule in RULES if "alert" in rule}
DASHBOARD = json.loads((DEPLOY / "grafana/mlops-assets.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
QUERIES = [target["expr"] for target in TARGETS if "expr" in target]
OURS = re.compile(r"\b(?:inference_|process_)[\w:]+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: install the package prometheus")


def check(*arguments: object) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def known_metrics() -> set[str]:
    """What a worker really shows, and what the rules make of it."""
    shown = text_string_to_metric_families(Metrics("a-version", "an-algorithm").text().decode())
    found = {family.name + suffix for family in shown for suffix in SUFFIXES[family.type]}
    return found | {rule["record"] for rule in RULES if "record" in rule}


@promtool
def test_prometheus_takes_its_configuration() -> None:
    check("check", "config", DEPLOY / "prometheus/prometheus.yaml")


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    check("test", "rules", DEPLOY / "prometheus/alerts_test.yaml")


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = [case for test in load(DEPLOY / "prometheus/alerts_test.yaml")["tests"] for case in test["alert_rule_test"]]
    for expected in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == expected} == BY_NAME.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_an_alert_leads_to_its_section_of_the_runbook(name: str) -> None:
    file, _, anchor = BY_NAME[name]["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings
    assert BY_NAME[name]["labels"]["severity"] in ("critical", "warning")


def test_the_metrics_that_are_asked_for_exist() -> None:
    asked = {name for text in [*QUERIES, *(rule["expr"] for rule in RULES)] for name in OURS.findall(text)}
    assert asked >= {"inference_ready", "inference_score:mean1h", "inference_latency_seconds_bucket"}
    assert asked <= known_metrics()


def test_buckets_that_are_asked_for_exist() -> None:
    shown = Metrics("a-version", "an-algorithm").text().decode()
    for bound in re.findall(r'le=~"([^"]*)"', ALERTS.read_text())[0].split("|"):
        assert f'inference_probability_bucket{{le="{bound}"}}' in shown


def test_alerts_ask_of_models_what_the_canary_asks() -> None:
    assert f"> {canary.SCORE_RATIO:g} * min" in BY_NAME["InferenceScoreLevelChanged"]["expr"]
    shares = next(rule["expr"] for rule in RULES if rule.get("record") == "inference_score:share1h")
    assert "|".join(f"{bound:g}" for bound in canary.SCORE_BOUNDS) in shares
    assert f"< {INPUT_PARTITIONS}" in BY_NAME["InferencePartitionsUnread"]["expr"]


def test_the_rules_become_a_prometheusrule_by_the_command_of_the_runbook() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    command = re.search(r"^\(cat .*?alerts\.yaml\)", text, re.MULTILINE | re.DOTALL)
    assert command
    made = subprocess.run(["sh", "-c", command[0]], capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
    rule = yaml.safe_load(made.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == load(ALERTS)


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
