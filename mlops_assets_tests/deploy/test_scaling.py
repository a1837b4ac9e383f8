"""Scaling by the clicks that wait, for clusters with KEDA."""

from __future__ import annotations

from pathlib import Path

from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS
from mlops_assets_tests.deploy.compose import ROOT
from mlops_assets_tests.deploy.manifests import kubectl, kustomize, with_component

KEDA = "keda.sh/v1alpha1"


@kubectl
def test_kedas_component_scales_the_same_pods_by_the_lag_of_their_group(tmp_path: Path) -> None:
    plain = kustomize(ROOT / "k8s/overlays/cloud")
    made = with_component("overlays/cloud", "../../components/keda", tmp_path)
    (hpa,) = [each for each in plain if each["kind"] == "HorizontalPodAutoscaler"]
    assert [each for each in made if each["apiVersion"] != KEDA] == [each for each in plain if each is not hpa]

    by_kind = {each["kind"]: each for each in made if each["apiVersion"] == KEDA}
    scaled, secret = by_kind["ScaledObject"]["spec"], by_kind["TriggerAuthentication"]
    (deployment,) = [
        each
        for each in plain
        if each["kind"] == "Deployment" and each["metadata"]["name"] == scaled["scaleTargetRef"]["name"]
    ]
    pod = deployment["spec"]["template"]["spec"]
    assert scaled["scaleTargetRef"]["envSourceContainerName"] == pod["containers"][0]["name"]
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicaCount"] == hpa["spec"]["minReplicas"]
    assert scaled["maxReplicaCount"] == INPUT_PARTITIONS
    # The alerts know the autoscaler by this name, and going down is as costly whatever scales.
    autoscaler = scaled["advanced"]["horizontalPodAutoscalerConfig"]
    assert autoscaler == {"name": hpa["metadata"]["name"], "behavior": hpa["spec"]["behavior"]}

    (trigger,) = scaled["triggers"]
    (settings,) = [each["data"] for each in plain if each["kind"] == "ConfigMap" and "GROUP_ID" in each["data"]]
    named = {trigger["metadata"][f"{field}FromEnv"] for field in ("bootstrapServers", "consumerGroup", "topic")}
    assert named == {"KAFKA_BOOTSTRAP_SERVERS", "GROUP_ID", "INPUT_TOPIC"}
    assert named <= settings.keys()
    assert trigger["authenticationRef"]["name"] == secret["metadata"]["name"]
    given = {each["parameter"]: (each["name"], each["key"]) for each in secret["spec"]["secretTargetRef"]}
    held = pod["volumes"][0]["secret"]["secretName"]
    files = {name: Path(settings[f"KAFKA_{name}_FILE"]).name for name in ("PASSWORD", "CA")}
    assert given == {
        "username": (held, "username"),
        "password": (held, files["PASSWORD"]),
        "ca": (held, files["CA"]),
    }
