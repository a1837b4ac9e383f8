"""A second broker beside the first, so that some partitions can lose their leader while Kafka goes on."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_settings import PREPARE_SECONDS, Ports, server_properties
from mlops_assets.resources.programs import run


class SecondBroker(LocalBroker):
    """Joins the cluster of another broker, which must run. It has no TLS listener."""

    def __init__(self, folder: Path, first: LocalBroker) -> None:
        super().__init__(folder)
        self.first = first

    def _prepare(self, libraries: Path) -> None:
        self.folder.mkdir(parents=True)
        ports = Ports.free()
        (self.folder / "ports.json").write_text(dumps(asdict(ports)))
        listener = f"PLAINTEXT://127.0.0.1:{ports.plain}"
        settings = server_properties(self.folder, ports, "") | {
            "process.roles": "broker",
            "node.id": 2,
            "controller.quorum.voters": f"1@127.0.0.1:{self.first.ports.controller}",
            "listeners": listener,
            "advertised.listeners": listener,
        }
        unused = ("ssl.", "sasl.", "listener.name.")
        text = "".join(f"{name}={value}\n" for name, value in settings.items() if not name.startswith(unused))
        properties = self.folder / "server.properties"
        properties.write_text(text)
        facts = (self.first.folder / "data/meta.properties").read_text().splitlines()
        cluster = next(line.removeprefix("cluster.id=") for line in facts if line.startswith("cluster.id="))
        command = [*self._jvm(libraries), "kafka.tools.StorageTool", "format", "--config", str(properties)]
        run([*command, "--cluster-id", cluster], PREPARE_SECONDS, f"no second broker in {self.folder}")
        (self.folder / "ready").touch()


def topic_on(broker: LocalBroker, name: str, partitions: int, second: int) -> None:
    """Makes a topic whose partition `second` is on the second broker alone, and the others on the first."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    assignment = [[2] if number == second else [1] for number in range(partitions)]
    admin.create_topics([NewTopic(name, partitions, replica_assignment=assignment)])[name].result(30)
