"""The services of deploy/compose.yaml as processes of this machine: the same commands, variables and healthchecks.

What differs is written here and nowhere else: hosts become loopback, ports free ones, and paths folders of the test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import psutil
import yaml

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.cli.servers import Postgres, find_postgres, find_s3_server, serving
from mlops_assets.resources.kafka import kafka_jars
from mlops_assets.resources.programs import cache_folder, jars, java, run
from mlops_assets_tests.automation.endpoint import Endpoint
from mlops_assets_tests.deploy.compose import DEPLOY, Service, compose, interpolate, load, map_strings

PORTS: Final = (5432, 7070, 9092, 9093, 9094, 5000, 4000, 3000, 9090, 9193, 9464)
ADDRESS: Final = re.compile(r"(?<![\w.])(?:postgres|s3|kafka|mlflow|code|monitor|alertmanager|127\.0\.0\.1)?:(\d{4})\b")
SECONDS: Final = 60


def kafka_tools() -> Path:
    """The jars behind the scripts of Kafka's image, as old as it. Raises ProgramError."""
    version = compose()["services"]["kafka"]["image"].partition(":")[2]
    return jars(f"kafka-tools-{version}", (f"org.apache.kafka:kafka-tools:{version}",))


class Machine:
    """A folder in which the stack's services run. `ports` maps a port of the stack to the one that it has here.

    `people` is where messages go to.
    """

    people: Endpoint

    def __init__(self, folder: Path, values: Mapping[str, str]) -> None:
        self.folder = folder
        self.values = values
        self.ports = {port: free_port() for port in PORTS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.document = compose()
        names = {
            "/var/lib/mlops-assets": "home",
            "/opt/dagster": "dagster",
            "/opt/kafka": "kafka",
            "/var/lib/kafka/data": "kafka-data",
            "/data": "s3-data",
            "/prometheus": "prometheus-data",
            "/alertmanager": "alertmanager-data",
        }
        self.paths = {inside: folder / name for inside, name in names.items()}
        for path in self.paths.values():
            path.mkdir()
        self._mount()
        self._fill_image()

    def here(self, text: str) -> str:
        """A string of the compose file, or of a file that it mounts, as it must be on this machine."""
        text = interpolate(text, self.values)
        if text in ("postgres", "code", "0.0.0.0"):
            return "127.0.0.1"
        if text.isdecimal():
            return str(self.ports.get(int(text), text))
        known = {str(port): str(here) for port, here in self.ports.items()}
        text = ADDRESS.sub(lambda match: f"127.0.0.1:{known.get(match[1], match[1])}", text)
        for inside, path in sorted(self.paths.items(), reverse=True):
            text = re.sub(rf"(?<![\w/.]){inside}(?![\w-])", str(path), text)
        return text

    def service(self, name: str) -> Service:
        """A service as it must be here, with the variables of its image. The Host headers it accepts stay."""
        service: Service = self.document["services"][name]
        found: Service = map_strings(service, self.here)
        if "--allowed-hosts" in (command := service.get("command", [])):
            place = command.index("--allowed-hosts") + 1
            found["command"][place] = command[place]
        image = {"DAGSTER_HOME": str(self.paths["/opt/dagster"]), "MLOPS_CACHE": str(cache_folder())}
        machine = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        own = {name: value for name, value in found.get("environment", {}).items() if value is not None}
        return {**found, "environment": {**machine, **image, **own}}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Runs the service from when its healthcheck succeeds."""
        service = self.service(name)
        with self._process(name, service) as process:
            if isinstance(process, subprocess.Popen):
                self.processes[name] = process
            yield

    def kill(self, name: str) -> None:
        """Ends the service as the end of its container does: with all that it started, at once."""
        main = psutil.Process(self.processes[name].pid)
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def run(self, name: str) -> None:
        """Runs a service that ends, as `init` does. Raises ProgramError with its last words."""
        service = self.service(name)
        run(service["command"], SECONDS, f"{name} failed", env=service["environment"])

    def sql(self, user: str, database: str, query: str, password: str = "") -> str:
        """What psql prints of it, a line a row. Raises CalledProcessError with the server's reason."""
        client = {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports[5432]), "PGUSER": user, "PGDATABASE": database}
        client["PGPASSWORD"] = password or self.values.get(
            f"{user.upper()}_DB_PASSWORD", self.values["POSTGRES_PASSWORD"]
        )
        command = ["psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-Atc", query]
        done = subprocess.run(
            command, env={**os.environ, **client}, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return done.stdout.strip()

    def is_healthy(self, service: Service) -> bool:
        """What the service's healthcheck says now."""
        kind, *command = service["healthcheck"]["test"]
        shell = ["sh", "-c"] if kind == "CMD-SHELL" else []
        environment = {**service["environment"], "PGPORT": str(self.ports[5432])}
        done = subprocess.run([*shell, *command], env=environment, capture_output=True, timeout=SECONDS, check=False)
        return done.returncode == 0

    def _process(self, name: str, service: Service) -> AbstractContextManager[object]:
        if name == "postgres":
            return self._postgres(service)
        command = [*service.get("entrypoint", []), *service.get("command", [])]
        if name == "s3":
            command.insert(0, find_s3_server())
        elif name == "kafka":
            command = self._kafka(service["environment"])
        elif name == "prometheus":  # everywhere in a container is not everywhere on this machine
            command = ["prometheus", *command, f"--web.listen-address=127.0.0.1:{self.ports[9090]}"]
        elif name == "alertmanager":
            command = ["prometheus-alertmanager", *command]
        log = self.folder / name / "log"
        log.parent.mkdir(exist_ok=True)
        return serving(command, log, service["environment"], partial(self.is_healthy, service))

    @contextmanager
    def _postgres(self, service: Service) -> Iterator[None]:
        """As the image does it: a server with the superuser `postgres`, then the script that makes the databases."""
        secret = service["environment"]["POSTGRES_PASSWORD"]
        with Postgres(self.folder / "postgres", self.ports[5432]) as server:
            first = (self.folder / "postgres/password").read_text()
            self.sql("mlflow", "postgres", f"CREATE ROLE postgres SUPERUSER LOGIN PASSWORD '{secret}'", first)
            self.sql("postgres", "postgres", "ALTER ROLE mlflow RENAME TO initial")
            client = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres", "PGPASSWORD": secret}
            script = str(self.paths["/docker-entrypoint-initdb.d/databases.sh"])
            run([script], SECONDS, "the databases were not made", env={**service["environment"], **client})
            service["environment"]["PATH"] += f":{find_postgres()}"
            assert self.is_healthy(service)
            yield

    def _kafka(self, environment: Mapping[str, str]) -> list[str]:
        """The broker, prepared as its image does it: KAFKA_A_B is the setting a.b."""
        names = [name for name in environment if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"]
        file = self.folder / "kafka.properties"
        lines = (f"{name.removeprefix('KAFKA_').replace('_', '.').lower()}={environment[name]}\n" for name in names)
        file.write_text("".join(lines))
        classes = os.pathsep.join(str(jar) for jar in sorted(kafka_jars().glob("*.jar")))
        jvm = [java(), *environment["KAFKA_HEAP_OPTS"].split(), "-cp", classes]
        command = [*jvm, "kafka.tools.StorageTool", "format", "--config", str(file)]
        run([*command, "--cluster-id", environment["CLUSTER_ID"]], SECONDS, "Kafka's folder was not formatted")
        script = self.paths["/opt/kafka"] / "bin/kafka-broker-api-versions.sh"
        script.parent.mkdir()
        tool = f"'{kafka_tools()}/*' org.apache.kafka.tools.BrokerApiVersionsCommand"
        script.write_text(f'#!/bin/sh\nexec "{java()}" $KAFKA_HEAP_OPTS -cp {tool} "$@"\n')
        script.chmod(0o755)
        return [*jvm, "kafka.Kafka", str(file)]

    def _fill_image(self) -> None:
        """What the Dockerfile's target `stack` puts into /opt/dagster."""
        target = self.paths["/opt/dagster"]
        parts = (DEPLOY / "dagster.yaml", DEPLOY / "stack/instance.yaml")
        (target / "dagster.yaml").write_text("".join(part.read_text() for part in parts))
        workspace = map_strings(load(DEPLOY / "stack/workspace.yaml"), self.here)
        server = workspace["load_from"][0]["grpc_server"]
        server["port"] = int(server["port"])
        (target / "workspace.yaml").write_text(yaml.safe_dump(workspace))

    def _mount(self) -> None:
        """The files that the services mount, Prometheus' with the addresses and paths that they have here."""
        for number, service in enumerate(self.document["services"].values()):
            for each in service.get("configs", ()):
                target = self.folder / f"mounted-{number}" / Path(each["target"]).name
                target.parent.mkdir(exist_ok=True)
                shutil.copy(DEPLOY / self.document["configs"][each["source"]]["file"], target)
                self.paths[each["target"]] = target
                if each["source"] in ("prometheus", "alertmanager"):
                    text = "\n".join(map(self.here, target.read_text().splitlines()))
                    target.write_text(text.replace("inference:$1", "127.0.0.1:$1"))
