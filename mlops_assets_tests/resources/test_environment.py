"""The forms of the outside world that the environment's variables choose."""

from pathlib import Path

import pytest

from mlops_assets.resources.environment import embedded, real
from mlops_assets.resources.inference import LocalFleet
from mlops_assets.resources.kubernetes import KubernetesFleet
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets.resources.registry import Registry
from mlops_assets.resources.spark_kubernetes import KubernetesSpark

STORES = {"MLOPS_LAKE": "s3://bucket/lake", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}


@pytest.mark.parametrize("missing", STORES)
def test_a_missing_variable_is_named_with_what_it_should_say(tmp_path: Path, missing: str) -> None:
    variables = {name: value for name, value in STORES.items() if name != missing}
    with pytest.raises(ValueError, match=rf"{missing} \(.* like .*\)$"):
        real(tmp_path, variables)


def test_an_address_that_is_none_is_refused_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'s3:///lake'.*must be like s3://bucket/prefix"):
        real(tmp_path, {**STORES, "MLOPS_LAKE": "s3:///lake"})


def test_the_real_environment_names_the_same_systems(tmp_path: Path) -> None:
    systems = real(tmp_path, STORES)
    assert systems.keys() == embedded(tmp_path).keys()
    assert (systems["lake"].root, systems["mlflow"].tracking_uri) == tuple(STORES.values())
    assert systems["spark"].s3
    assert isinstance(systems["images"], OciLayout)
    assert isinstance(systems["fleet"], LocalFleet)


def test_images_go_to_a_registry_and_the_fleet_to_kubernetes_where_they_are_named(tmp_path: Path) -> None:
    registry = {**STORES, "MLOPS_REGISTRY": "registry:5000/team/inference"}
    systems = real(tmp_path, registry)
    assert isinstance(systems["images"], Registry)
    assert isinstance(systems["fleet"], LocalFleet)
    systems = real(tmp_path, {**registry, "MLOPS_NAMESPACE": "inference"})
    assert isinstance(systems["fleet"], KubernetesFleet)
    with pytest.raises(ValueError, match="set MLOPS_REGISTRY too"):
        real(tmp_path, {**STORES, "MLOPS_NAMESPACE": "inference"})


KUBERNETES = {**STORES, "MLOPS_SPARK": "kubernetes", "MLOPS_SPARK_IMAGE": "ghcr.io/team/spark:1"}


def test_spark_runs_on_kubernetes_as_the_variables_say(tmp_path: Path) -> None:
    variables = {
        "MLOPS_SPARK_NAMESPACE": "jobs",
        "MLOPS_SPARK_EXECUTORS": "5",
        "MLOPS_SPARK_CPU_REQUEST": "0.5",
        "MLOPS_SPARK_NODE_SELECTOR": '{"pool": "spot"}',
        "MLOPS_SPARK_TOLERATIONS": '[{"key": "spot", "operator": "Exists"}]',
        "MLOPS_SPARK_SECRET": "s3-credentials",
        "MLOPS_SPARK_DEADLINE_MINUTES": "30",
        "AWS_REGION": "eu-central-1",
        "AWS_SECRET_ACCESS_KEY": "not to be seen in a pod's description",
    }
    spark = real(tmp_path, {**KUBERNETES, **variables})["spark"]
    assert isinstance(spark, KubernetesSpark)
    assert (spark.image, spark.namespace, spark.executors, spark.cpu_request) == (
        "ghcr.io/team/spark:1",
        "jobs",
        5,
        0.5,
    )
    assert (spark.node_selector, spark.tolerations[0]["key"]) == ({"pool": "spot"}, "spot")
    assert (spark.secret, spark.deadline_minutes) == ("s3-credentials", 30)
    assert spark.variables == {"AWS_REGION": "eu-central-1"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"MLOPS_SPARK": "yarn"}, "'yarn'; it must be local or one of kubernetes, emr, dataproc"),
        ({"MLOPS_SPARK_IMAGE": ""}, r"MLOPS_SPARK_IMAGE \(this project's image for Spark, like .*\)$"),
        ({"MLOPS_LAKE": "/lake"}, "kubernetes, whose clusters can't see /lake: MLOPS_LAKE must be on s3://"),
        ({"MLOPS_SPARK_EXECUTORS": "many"}, "MLOPS_SPARK_EXECUTORS is 'many'; it must be a whole number"),
        (
            {"MLOPS_SPARK_NODE_SELECTOR": "pool=spark"},
            "MLOPS_SPARK_NODE_SELECTOR is 'pool=spark'; it must be JSON",
        ),
    ],
)
def test_what_spark_cannot_be_is_said_before_the_first_run(tmp_path: Path, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        real(tmp_path, {**KUBERNETES, **wrong})
