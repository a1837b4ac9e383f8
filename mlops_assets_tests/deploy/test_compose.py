"""deploy/compose.yaml, read: what can be known of it without Docker. test_stack.py runs its commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mlops_assets.resources.kafka_settings import Ports, server_properties
from mlops_assets_tests.deploy.compose import (
    DEPLOY,
    ROOT,
    VARIABLE,
    complaints,
    compose,
    example_variables,
    interpolate,
    load,
    services,
)

RUNS_ONCE = {"init"}
SECRET = re.compile(r"PASSWORD|KEY")
TEXT = (DEPLOY / "compose.yaml").read_text()


def test_compose_follows_the_specification() -> None:
    assert complaints("--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")) is None


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    named = {match["name"] for match in VARIABLE.finditer(TEXT)} | {"MLOPS_LAST_DAY"}
    assert named == set(example_variables())


def test_secrets_are_required_by_name_and_the_example_holds_none() -> None:
    for match in VARIABLE.finditer(TEXT):
        assert (match["kind"] == ":?") == bool(SECRET.search(match["name"])), match[0]
    assert not [name for name, value in example_variables().items() if SECRET.search(name) and value]
    with pytest.raises(KeyError, match="S3_SECRET_KEY"):
        interpolate("${S3_SECRET_KEY:?set it}", {"S3_SECRET_KEY": ""})


def test_images_are_pinned() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in services().items():
        images = [service["image"], *re.findall(r"FROM (\S+)", service.get("build", {}).get("dockerfile_inline", ""))]
        assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image) for image in images), (name, images)
        if images[0].startswith("mlops-assets/") and "dockerfile_inline" not in service["build"]:
            assert images == [f"{images[0].partition(':')[0]}:{version}"]


def test_what_is_built_is_a_target_of_the_dockerfile_and_its_files_reach_the_build() -> None:
    dockerfile, ignored = ((ROOT / name).read_text() for name in ("Dockerfile", ".dockerignore"))
    for service in services().values():
        if target := service.get("build", {}).get("target"):
            assert re.search(rf"^FROM \S+ AS {target}$", dockerfile, re.MULTILINE)
    for file in re.findall(r"deploy/\S+\.yaml", dockerfile):
        assert (ROOT / file).exists()
        assert f"!{file}" in ignored or "!deploy/stack/*.yaml" in ignored


@pytest.mark.parametrize("name", services())
def test_a_service_is_healthy_bounded_unprivileged_and_on_loopback(name: str) -> None:
    service = services()[name]
    assert name in RUNS_ONCE or {"test", "interval", "timeout", "start_period"} <= service["healthcheck"].keys()
    assert "mem_limit" in service
    assert service["restart"] in ("unless-stopped", "on-failure:5")
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for other, how in service.get("depends_on", {}).items():
        done = "service_completed_successfully" if other in RUNS_ONCE else "service_healthy"
        assert how["condition"] == done, other


def test_nothing_runs_as_root() -> None:
    """Said here where the image starts as root; the others' own users are not 0 (Kafka, Prometheus, Grafana, ours)."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    for service in services().values():
        image, user = service["image"].partition(":")[0], service.get("user")
        if target := service.get("build", {}).get("target"):
            stage = re.split(r"^FROM ", dockerfile.split(f"AS {target}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
            assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] == "10001:10001"
        elif image not in ("apache/kafka", "prom/prometheus", "prom/alertmanager", "grafana/grafana"):
            assert user
            assert user.partition(":")[0] != "0"


def test_what_is_mounted_is_there() -> None:
    document = compose()
    for config in document["configs"].values():
        assert (DEPLOY / config["file"]).exists(), config
    for service in services().values():
        assert {each["source"] for each in service.get("configs", ())} <= document["configs"].keys()
        assert {each.partition(":")[0] for each in service.get("volumes", ())} <= document["volumes"].keys()


def test_kafka_is_set_up_as_the_local_broker(tmp_path: Path) -> None:
    """The stack's one node behaves as the one that the tests and the demo run on, but for where it listens."""
    local = server_properties(tmp_path, Ports(1, 2, 3), "secret")
    elsewhere = re.compile(r"listener|ssl|sasl|quorum|log\.dirs|authorizer|super\.users|acl")
    wanted = {name: str(value) for name, value in local.items() if not elsewhere.search(name)}
    environment = services()["kafka"]["environment"]
    stack = {n.removeprefix("KAFKA_").replace("_", ".").lower(): str(v) for n, v in environment.items()}
    assert wanted.items() <= stack.items()


def test_the_stacks_instance_adds_to_the_embedded_one() -> None:
    """The Dockerfile puts one file behind the other: no setting may be in both."""
    shared, added = (load(DEPLOY / name) for name in ("dagster.yaml", "stack/instance.yaml"))
    assert not shared.keys() & added.keys()
    both = "".join((DEPLOY / name).read_text() for name in ("dagster.yaml", "stack/instance.yaml"))
    assert yaml.safe_load(both) == {**shared, **added}
