"""The stack's own commands, started as processes: its flags, variables, healthchecks and first steps are what they say.

Grafana is missing, which no package brings; its queries are run as they are.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import pytest
import requests
import yaml
from confluent_kafka.admin import AdminClient

from mlops_assets.cli.servers import find_postgres, find_s3_server
from mlops_assets.definitions import defs
from mlops_assets.resources.inference import LocalFleet
from mlops_assets.resources.kafka import kafka_jars
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets.resources.programs import ProgramError
from mlops_assets_tests.automation.endpoint import endpoint
from mlops_assets_tests.deploy.compose import DEPLOY, example_variables, load
from mlops_assets_tests.deploy.processes import Machine, kafka_tools
from mlops_assets_tests.inference.tiny_model import write_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
SECONDS = 30

LAUNCH = """mutation {
  launchRun(executionParams: {selector: {
    repositoryName: "__repository__", repositoryLocationName: "mlops_assets", jobName: "observe_landing"
  }}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The whole stack, started in the order of its dependencies. Skips where a program is missing."""
    try:
        find_postgres()
        find_s3_server()
        kafka_jars(), kafka_tools()
    except ProgramError as error:
        pytest.skip(str(error))
    programs = {
        "prometheus": "prometheus",
        "prometheus-alertmanager": "prometheus-alertmanager",
        "psql": "postgresql-client",
        "flock": "util-linux",
    }
    for program, package in programs.items():
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: install the package {package}")
    told = ("MLOPS_NOTIFY_URLS", "MLOPS_WATCHDOG_URL")
    values = {n: value if n in told else value or secrets.token_hex(12) for n, value in example_variables().items()}
    # Not below pytest's folders: only their owner may enter them, and Postgres may have to run as another user.
    with TemporaryDirectory(prefix="mlops-assets-stack-") as folder, ExitStack() as stack:
        people = stack.enter_context(endpoint())
        values |= {
            "MLOPS_NOTIFY_URLS": people.url,
            "MLOPS_WATCHDOG_URL": f"http://127.0.0.1:{people.server_port}/alive",
        }
        Path(folder).chmod(0o755)
        found = Machine(Path(folder), values)
        for name in ("postgres", "s3", "kafka"):
            stack.enter_context(found.running(name))
        found.run("init")
        found.run("init")  # as after a restart of the machine: what is there stays
        for name in ("mlflow", "inference", "code", "webserver", "daemon", "monitor", "alertmanager", "prometheus"):
            stack.enter_context(found.running(name))
        found.people = people
        yield found


def query(machine: Machine, text: str, **variables: Any) -> Any:
    """The data of a GraphQL request to the webserver."""
    url = f"http://127.0.0.1:{machine.ports[3000]}/graphql"
    answer = requests.post(url, json={"query": text, "variables": variables}, timeout=SECONDS).json()
    assert "errors" not in answer, answer
    return answer["data"]


def prometheus(machine: Machine, path: str, **parameters: str) -> Any:
    """The data of a request to Prometheus' API."""
    url = f"http://127.0.0.1:{machine.ports[9090]}/api/v1/{path}"
    return requests.get(url, params=parameters, timeout=SECONDS).json()["data"]


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def test_the_webserver_lists_the_code_locations_assets(machine: Machine) -> None:
    nodes = query(machine, "{ assetNodes { assetKey { path } repository { location { name } } } }")["assetNodes"]
    assert {node["repository"]["location"]["name"] for node in nodes} == {"mlops_assets"}
    wanted = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert {"/".join(node["assetKey"]["path"]) for node in nodes} == wanted


def test_the_instance_is_the_embedded_one_on_postgres_and_its_daemons_live(machine: Machine) -> None:
    text = "{ instance { info daemonHealth { allDaemonStatuses { daemonType healthy } } } }"
    instance = query(machine, text)["instance"]
    healthy = {each["daemonType"] for each in instance["daemonHealth"]["allDaemonStatuses"] if each["healthy"]}
    assert {"SCHEDULER", "SENSOR", "MONITORING", "QUEUED_RUN_COORDINATOR", "ASSET"} <= healthy
    settings = yaml.safe_load(instance["info"])
    shared = load(DEPLOY / "dagster.yaml")
    for name in ("concurrency", "run_monitoring", "run_retries"):
        assert settings[name] == shared[name]
    assert int(machine.sql("dagster", "dagster", "SELECT count(*) FROM daemon_heartbeats")) >= len(healthy)


def test_a_run_is_launched_recorded_and_its_log_kept_in_s3(machine: Machine) -> None:
    launched = query(machine, LAUNCH)["launchRun"]
    run = launched["run"]["runId"]
    wait_until(lambda: query(machine, STATUS, id=run)["runOrError"]["status"] in ("SUCCESS", "FAILURE"))
    assert query(machine, STATUS, id=run)["runOrError"]["status"] == "SUCCESS"
    environment = machine.service("code")["environment"]
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="mlops-assets").get("Contents", ())]
    assert [key for key in keys if key.startswith("compute-logs/") and run in key], keys


def test_grafanas_queries_run_and_its_role_only_reads(machine: Machine) -> None:
    panels = json.loads((DEPLOY / "grafana/mlops-assets.json").read_text())["panels"]
    queries = [target["rawSql"] for panel in panels for target in panel.get("targets", ()) if "rawSql" in target]
    assert queries
    for each in queries:
        machine.sql("grafana", "dagster", each)
    for forbidden in ("DELETE FROM runs", "CREATE TABLE mine (a int)"):
        with pytest.raises(CalledProcessError):
            machine.sql("grafana", "dagster", forbidden)
    with pytest.raises(CalledProcessError):
        machine.sql("grafana", "mlflow", "SELECT 1")


def test_mlflow_is_on_postgres_and_answers_to_its_own_name_only(machine: Machine) -> None:
    assert int(machine.sql("mlflow", "mlflow", "SELECT count(*) FROM experiments")) >= 1
    url = f"http://127.0.0.1:{machine.ports[5000]}/api/2.0/mlflow/experiments/get?experiment_id=0"
    answers = {
        host: requests.get(url, headers={"Host": host}, timeout=SECONDS).status_code
        for host in ("mlflow:5000", "localhost:8080", "127.0.0.1:5000", "evil.example")
    }
    assert answers == {"mlflow:5000": 200, "localhost:8080": 200, "127.0.0.1:5000": 200, "evil.example": 403}


def test_topics_are_made(machine: Machine) -> None:
    topics = AdminClient({"bootstrap.servers": f"127.0.0.1:{machine.ports[9094]}"}).list_topics(timeout=SECONDS).topics
    found = {name: len(topics[name].partitions) for name in ("input", "predictions", "input.dead-letter")}
    assert found == {"input": 12, "predictions": 12, "input.dead-letter": 1}


def test_prometheus_has_the_rules_and_finds_the_workers_that_a_rollout_starts(machine: Machine, tmp_path: Path) -> None:
    groups = prometheus(machine, "rules")["groups"]
    written = load(DEPLOY / "prometheus/alerts.yaml")["groups"]
    wanted = {rule["alert"] for group in written for rule in group["rules"] if "alert" in rule}
    assert {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"} == wanted
    assert all(rule["health"] != "err" for group in groups for rule in group["rules"])

    # as the rollout job does it, in the container `code`; the supervisor is that of the service `inference`
    home = Path(machine.service("code")["environment"]["MLOPS_HOME"])
    images = OciLayout(path=str(home / "images"))
    fleet = LocalFleet(images=images, path=str(home / "inference"))
    supervisor = (home / "inference/supervisor.lock").read_text()
    rollout = fleet.roll(images.publish(write_model(tmp_path / "model"), {}), deadline_seconds=120)
    assert rollout.verdict == "rolled", rollout
    assert (home / "inference/supervisor.lock").read_text() == supervisor
    assert int(supervisor) != os.getpid()

    def ready() -> list[str]:
        found = prometheus(machine, "query", query="inference_ready")["result"]
        return [each["metric"]["worker"] for each in found if each["value"][1] == "1"]

    def partitions() -> str:
        return str(prometheus(machine, "query", query="sum(inference_partitions)")["result"][0]["value"][1])

    wait_until(lambda: len(ready()) == 2)
    wait_until(lambda: partitions() == "12")  # the workers are scraped one after the other, and may be sharing them out


def test_prometheus_knows_dagsters_side_and_alerts_reach_people(machine: Machine) -> None:
    def answers(text: str) -> list[Any]:
        return list(prometheus(machine, "query", query=text)["result"])

    wait_until(lambda: len(answers("mlops_source_up == 1")) == 7)
    wait_until(lambda: len(answers('mlops_daemon_heartbeat_timestamp_seconds{daemon="SENSOR"} > time() - 300')) == 1)
    wait_until(lambda: bool(machine.people.calls))  # Watchdog, through Prometheus, Alertmanager and the monitor
    url = f"http://127.0.0.1:{machine.ports[9193]}/api/v2/alerts"
    alert = {"labels": {"alertname": "ATest", "namespace": "here"}, "annotations": {"summary": "Something is wrong"}}
    assert requests.post(url, json=[alert], timeout=SECONDS).ok
    wait_until(lambda: "Alert: ATest" in machine.people.titles)
    assert "ATest (here): Something is wrong" in "".join(machine.people.texts)


def test_a_restart_of_code_ends_its_runs_and_starts_them_again(machine: Machine) -> None:
    """The last test: the code location that the others use is gone after it."""
    s3 = machine.processes["s3"]
    s3.send_signal(signal.SIGSTOP)  # whoever lists the landing files waits
    try:
        run = query(machine, LAUNCH)["launchRun"]["run"]["runId"]
        wait_until(lambda: query(machine, STATUS, id=run)["runOrError"]["status"] == "STARTED")
        machine.kill("code")
    finally:
        s3.send_signal(signal.SIGCONT)
    with machine.running("code"):
        wait_until(lambda: query(machine, STATUS, id=run)["runOrError"]["status"] == "FAILURE")
        retried = """query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/parent_run_id", value: $id}]}) {
          ... on Runs { results { status } } } }"""
        wait_until(lambda: query(machine, retried, id=run)["runsOrError"]["results"] == [{"status": "SUCCESS"}])
