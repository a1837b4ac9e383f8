"""deploy/helm/values.yaml: its instance is the embedded one's, and the chart, where it is at hand, takes the values."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.ref import InstanceRef

from mlops_assets_tests.deploy.compose import DEPLOY, ROOT, complaints, load

VALUES = load(DEPLOY / "helm/values.yaml")
CHART = os.environ.get("DAGSTER_CHART")

needs_chart = pytest.mark.skipif(CHART is None, reason="DAGSTER_CHART names no folder with Dagster's Helm chart")


def merged(defaults: Any, values: Any) -> Any:
    """As Helm lays a values file over the chart's own."""
    if not (isinstance(defaults, dict) and isinstance(values, dict)):
        return values
    return {**defaults, **{key: merged(defaults.get(key), value) for key, value in values.items()}}


def snake(values: Any) -> Any:
    """The chart's names of settings as Dagster's: maxRetries is max_retries."""
    if not isinstance(values, dict):
        return values
    return {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key): snake(each) for key, each in values.items()}


def test_the_instance_has_the_settings_of_the_embedded_one() -> None:
    concurrency = snake(VALUES["concurrency"])
    assert concurrency.pop("enabled")
    coordinator = VALUES["dagsterDaemon"]["runCoordinator"]
    assert (coordinator["enabled"], coordinator["type"]) == (True, "CustomRunCoordinator")
    added = dict(VALUES["additionalInstanceConfig"])
    del added["local_artifact_storage"]
    found = {
        "telemetry": VALUES["telemetry"],
        "run_coordinator": coordinator["config"]["customRunCoordinator"],
        "concurrency": concurrency,
        "run_monitoring": snake(VALUES["dagsterDaemon"]["runMonitoring"]),
        "run_retries": snake(VALUES["dagsterDaemon"]["runRetries"]),
        **added,
    }
    assert found == load(DEPLOY / "dagster.yaml")


def test_the_charts_version_is_dagsters() -> None:
    pinned = version("dagster")
    assert pinned in (DEPLOY / "helm/values.yaml").read_text()
    assert re.findall(r"dagster/dagster --version (\S+)", (ROOT / "docs/operations.md").read_text()) == [pinned]


def test_secrets_are_only_named() -> None:
    text = (DEPLOY / "helm/values.yaml").read_text()
    assert not re.search(r"(?i)(password|secret_access_key|token):\s*\S", text)
    assert VALUES["generatePostgresqlPasswordSecret"] is False


@needs_chart
def test_the_chart_accepts_the_values(tmp_path: Path) -> None:
    chart = Path(str(CHART))
    schema, values = tmp_path / "schema.json", tmp_path / "values.json"
    # Kubernetes' own definitions are on another server: what the chart refers to there is let through.
    text = (chart / "values.schema.json").read_text()
    schema.write_text(re.sub(r'"\$ref": "https?://[^"]*"', '"title": ""', text))
    values.write_text(json.dumps(merged(load(chart / "values.yaml"), VALUES)))
    assert complaints("--schemafile", str(schema), str(values)) is None


@needs_chart
@pytest.mark.skipif(shutil.which("helm") is None, reason="no helm")
def test_the_chart_makes_an_instance_that_dagster_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["helm", "template", "dagster", str(CHART), "-f", str(DEPLOY / "helm/values.yaml")]
    command += ["--skip-schema-validation"]  # it would fetch Kubernetes' definitions; the test above is that validation
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    documents = [each for each in yaml.safe_load_all(made) if each]
    (text,) = (each["data"]["dagster.yaml"] for each in documents if "dagster.yaml" in each.get("data", {}))
    instance, embedded = yaml.safe_load(text), load(DEPLOY / "dagster.yaml")
    for name, settings in embedded.items():
        assert settings.items() <= instance[name].items(), name
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "unused")
    (tmp_path / "dagster.yaml").write_text(text)
    ref = InstanceRef.from_dir(str(tmp_path))
    classes = [data.class_name for data in (ref.run_launcher_data, ref.run_coordinator_data) if data]
    assert classes == ["K8sRunLauncher", "RunQueues"]
    deployments = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
    accounts = {each["serviceAccountName"] for each in deployments}
    assert accounts == {"dagster"}
