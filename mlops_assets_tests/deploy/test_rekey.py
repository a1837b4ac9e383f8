"""The re-keying step on Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlops_assets_tests.deploy.manifests import kubectl, with_component

OTHERS = "../../components/prometheus, ../../components/keda"


def names(made: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in made if each["kind"] == kind}


@kubectl
def test_the_step_and_the_fleet_are_told_the_same_topic(tmp_path: Path) -> None:
    made = with_component("overlays/cloud", f"{OTHERS}, ../../components/rekey", tmp_path)
    deployments = names(made, "Deployment")
    (settings,) = [each for each in made if each["kind"] == "ConfigMap" and "GROUP_ID" in each["data"]]
    assert settings["data"]["REKEY_TOPIC"] == "input.by-ip"
    for name in ("rekey", "inference", "inference-canary"):
        (container,) = deployments[name]["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    step = deployments["rekey"]["spec"]
    assert (step["replicas"], step["strategy"]["type"]) == (1, "Recreate")
    assert step["template"]["spec"]["containers"][0]["command"] == ["python", "-m", "mlops_assets.inference.rekey"]


@kubectl
def test_the_step_is_scraped_and_the_fleet_scaled_by_the_topic_that_it_reads(tmp_path: Path) -> None:
    made = with_component("overlays/cloud", f"{OTHERS}, ../../components/rekey", tmp_path)
    (expression,) = names(made, "PodMonitor")["inference"]["spec"]["selector"]["matchExpressions"]
    label = names(made, "Deployment")["rekey"]["spec"]["template"]["metadata"]["labels"][expression["key"]]
    assert label in expression["values"]
    assert names(made, "ScaledObject")["inference"]["spec"]["triggers"][0]["metadata"]["topicFromEnv"] == "REKEY_TOPIC"
