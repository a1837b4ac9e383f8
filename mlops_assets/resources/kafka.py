"""A real Kafka on this machine, for the demo, the tests and the benchmarks: one KRaft broker on loopback, no Docker.

Its jars come from Maven Central, once, through the Ivy that pyspark carries: a machine that can run Spark has all it
takes. A broker that is already there needs none of this: set KAFKA_BOOTSTRAP_SERVERS.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from mlops_assets.resources.programs import ProgramError, cache_folder, jars, java, run

VERSION: Final = "4.4.0"
SLF4J: Final = "org.slf4j:slf4j-simple:1.7.36"  # without a logger behind it the broker is mute
INPUT_PARTITIONS: Final = 12  # a multiple of 3, 4 and 6, the numbers of workers it is shared among
SCRAM_MODULE: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"
USERNAME: Final = "mlops"
FORMAT_SECONDS: Final = 120
START_SECONDS: Final = 90
STOP_SECONDS: Final = 45  # the very first stop also writes the class archive that halves later starts


class BrokerError(ProgramError):
    """The local broker could not be had; the message says why and what to do."""


def kafka_jars() -> Path:
    """The folder of Kafka's jars (43 MB, fetched at the first call). Raises ProgramError."""
    return jars(f"kafka-{VERSION}", (f"org.apache.kafka:kafka_2.13:{VERSION}", SLF4J))


def cluster_id() -> str:
    """A new id in Kafka's form, 22 letters of URL-safe base64."""
    # One in 64 would begin with "-", which Kafka's tools take for an option: the first letter is fixed.
    return "K" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


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


class LocalBroker:
    """One broker whose data, certificate, password and log live in `folder`; it keeps its ports and data for ever.

    Two listeners on 127.0.0.1: plaintext, and SASL_SSL with SCRAM-SHA-512 under a certificate of its own. Use it as a
    context manager, or `start` and `stop`, which may be called from different processes.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.resolve()
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ports(self) -> Ports:
        """The ports chosen when the folder was prepared. Raises BrokerError before that."""
        try:
            return Ports(**json.loads((self.folder / "ports.json").read_text()))
        except FileNotFoundError:
            raise BrokerError(f"no broker was ever started in {self.folder}: run `mlops-assets kafka up`") from None

    @property
    def bootstrap_servers(self) -> str:
        """Address of the plaintext listener."""
        return f"127.0.0.1:{self.ports.plain}"

    @property
    def ca_file(self) -> Path:
        """The certificate that clients of the TLS listener must trust."""
        return self.folder / "ca.pem"

    @property
    def password_file(self) -> Path:
        """The password of the user `mlops` on the TLS listener."""
        return self.folder / "password"

    @property
    def pid(self) -> int | None:
        """The running broker's process id, or None."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = subprocess.run(
                ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False
            ).stdout
        except (FileNotFoundError, ValueError):
            return None
        return pid if f"{self.folder}/server.properties" in command else None

    def environment(self, secure: bool = False) -> dict[str, str]:
        """The variables with which the service, the producer and the watcher reach this broker."""
        if not secure:
            return {"KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers}
        return {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.ports.tls}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_USERNAME": USERNAME,
            "KAFKA_PASSWORD_FILE": str(self.password_file),
            "KAFKA_CA_FILE": str(self.ca_file),
        }

    def start(self) -> None:
        """Starts the broker, unless it runs already, and waits until it answers.

        Raises:
            ProgramError: it could not be prepared, or ended, or did not answer; the message holds the end of its log.
        """
        if self.pid is not None:
            return
        libraries = kafka_jars()
        if not (self.folder / "ready").exists():
            self._prepare(libraries)
        log = self.folder / "broker.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._jvm(libraries), "kafka.Kafka", str(self.folder / "server.properties")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )
        (self.folder / "pid").write_text(str(self._process.pid))
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                admin.list_topics(timeout=1)
                return
            except KafkaException:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                    self.kill()
                    raise BrokerError(f"the local Kafka did not start; the end of {log}:\n{tail}") from None

    def stop(self) -> None:
        """Ends the broker in an orderly way, by force after 45 s; its data stay."""
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid is not None:
            if self._process is not None:
                self._process.poll()  # reap it, else it stays visible as a zombie
            if time.monotonic() > deadline:
                self.kill()
                break
            time.sleep(0.05)
        archive = self.folder / "classes.jsa"
        if archive.exists():
            with contextlib.suppress(OSError):
                archive.replace(class_archive())

    def kill(self) -> None:
        """Ends the broker at once, as a crash would."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_SECONDS)

    def _jvm(self, libraries: Path) -> list[str]:
        archive = class_archive()
        share = (
            f"-XX:SharedArchiveFile={archive}"
            if archive.exists()
            else f"-XX:ArchiveClassesAtExit={self.folder}/classes.jsa"
        )
        options = [
            "-Xms64m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-Xshare:auto",
            "-Xlog:disable",
            "-Djava.net.preferIPv4Stack=true",
        ]
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        classpath = os.pathsep.join(
            str(jar) for jar in sorted(libraries.glob("*.jar"))
        )  # sorted: the archive depends on it
        return [java(), *options, share, *logging, "-cp", classpath]

    def _prepare(self, libraries: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = Ports.free(self._port)
        (self.folder / "ports.json").write_text(json.dumps(asdict(ports)))
        password = secrets.token_urlsafe(24)
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(password)
        make_certificate(self.folder / "broker.p12", self.ca_file, password)
        properties = self.folder / "server.properties"
        properties.touch(mode=0o600)
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties(ports, password).items()))
        command = [*self._jvm(libraries), "kafka.tools.StorageTool", "format", "--config", str(properties)]
        command += ["--cluster-id", cluster_id()]
        command += ["--add-scram", f"SCRAM-SHA-512=[name={USERNAME},password={password}]"]
        run(command, FORMAT_SECONDS, f"the local Kafka could not prepare {self.folder}")
        (self.folder / "ready").touch()

    def _properties(self, ports: Ports, password: str) -> dict[str, str | int]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{ports.controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{ports.plain},SASL_SSL://127.0.0.1:{ports.tls},"
            f"CONTROLLER://127.0.0.1:{ports.controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports.plain},SASL_SSL://127.0.0.1:{ports.tls}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{SCRAM_MODULE} required;",
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self.folder / "broker.p12"),
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


def class_archive() -> Path:
    """The JVM's archive of Kafka's loaded classes, shared by all local brokers."""
    return cache_folder() / f"kafka-{VERSION}.jsa"


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
    run([java("keytool"), "-genkeypair", "-keyalg", "EC", *store, *names, *validity], FORMAT_SECONDS, failure)
    run([java("keytool"), "-exportcert", "-rfc", *store, "-file", str(certificate)], FORMAT_SECONDS, failure)


def create_topics(client: Mapping[str, Any], topics: Mapping[str, int], seconds: float = 30) -> None:
    """Creates the topics (name to number of partitions) that are missing, and returns when all can be seen.

    `client` holds the settings of librdkafka. Raises KafkaException with the broker's reason, and BrokerError if they
    do not appear in time.
    """
    admin = AdminClient(dict(client))
    futures: Iterable[Any] = admin.create_topics(
        [NewTopic(name, partitions) for name, partitions in topics.items()], request_timeout=seconds
    ).values()
    for future in futures:
        try:
            future.result(seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    deadline = time.monotonic() + seconds
    while not topics.keys() <= admin.list_topics(timeout=seconds).topics.keys():
        if time.monotonic() > deadline:
            raise BrokerError(f"the topics {', '.join(topics)} did not appear within {seconds:.0f} s")
        time.sleep(0.05)
