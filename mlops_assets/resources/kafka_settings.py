"""What the local Kafka is set up with: its ports, name and certificate, and the broker's properties."""

from __future__ import annotations

import contextlib
import socket
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mlops_assets.resources.programs import java, run

SCRAM_MODULE: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"
PREPARE_SECONDS: Final = 120
"""For each of the tools that write what a broker starts from."""


@dataclass(frozen=True)
class Ports:
    """The loopback ports of one broker."""

    plain: int
    tls: int
    controller: int

    @classmethod
    def free(cls, plain: int = 0) -> Self:
        """Three ports that nothing listens on; `plain`, if given, is taken as it is."""
        with contextlib.ExitStack() as probes:
            sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
            for probe in sockets:
                probe.bind(("127.0.0.1", 0))
            found = [probe.getsockname()[1] for probe in sockets]
        return cls(plain or found[0], *found[1:])


def cluster_id() -> str:
    """A new id in Kafka's form, 22 letters of URL-safe base64."""
    # One in 64 would begin with "-", which Kafka's tools take for an option: the first letter is fixed.
    return "K" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def make_certificate(keystore: Path, certificate: Path, password: str, days: int = 3650, start: str = "-1d") -> None:
    """A self-signed certificate of 127.0.0.1 with its key, as a PKCS#12 keystore, and alone as PEM.

    `start` and `days` bound its validity (`start` as in keytool's -startdate).
    """
    for file in (keystore, certificate):
        file.unlink(missing_ok=True)
    store = ["-keystore", str(keystore), "-storetype", "PKCS12", "-storepass", password, "-alias", "broker"]
    names = ["-dname", "CN=localhost", "-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:c=ca:true"]
    validity = ["-startdate", start, "-validity", str(days)]
    failure = f"no certificate could be made in {keystore.parent}"
    run([java("keytool"), "-genkeypair", "-keyalg", "EC", *store, *names, *validity], PREPARE_SECONDS, failure)
    run([java("keytool"), "-exportcert", "-rfc", *store, "-file", str(certificate)], PREPARE_SECONDS, failure)


def server_properties(folder: Path, ports: Ports, password: str) -> dict[str, str | int]:
    """What the broker in `folder` is started with: one node, both listeners, loopback only."""
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{ports.controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{ports.plain},SASL_SSL://127.0.0.1:{ports.tls},"
        f"CONTROLLER://127.0.0.1:{ports.controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports.plain},SASL_SSL://127.0.0.1:{ports.tls}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{SCRAM_MODULE} required;",
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(folder / "broker.p12"),
        "ssl.keystore.password": password,
        # Everyone may do what no rule forbids: the fault tests then forbid a topic.
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
        "auto.create.topics.enable": "false",
        # One node, so one replica of everything.
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        # A worker that died is noticed, and its transaction aborted, within seconds.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
    }
