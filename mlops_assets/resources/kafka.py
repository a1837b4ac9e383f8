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
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final, Self

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from mlops_assets.resources.kafka_settings import (
    PREPARE_SECONDS,
    Ports,
    cluster_id,
    make_certificate,
    server_properties,
)
from mlops_assets.resources.programs import ProgramError, cache_folder, jars, java, run

VERSION: Final = "4.4.0"
SLF4J: Final = "org.slf4j:slf4j-simple:1.7.36"  # without a logger behind it the broker is mute
USERNAME: Final = "mlops"
START_SECONDS: Final = 90
STOP_SECONDS: Final = 45  # the very first stop also writes the class archive that halves later starts


class BrokerError(ProgramError):
    """The local broker could not be had; the message says why and what to do."""


def kafka_jars() -> Path:
    """The folder of Kafka's jars (43 MB, fetched at the first call). Raises ProgramError."""
    return jars(f"kafka-{VERSION}", (f"org.apache.kafka:kafka_2.13:{VERSION}", SLF4J))


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
            command = psutil.Process(pid).cmdline()
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return pid if f"{self.folder}/server.properties" in command else None  # else the number is another's by now

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
                self._process.poll()  # reap it, else it stays as a zombie
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
        properties.write_text(
            "".join(f"{name}={value}\n" for name, value in server_properties(self.folder, ports, password).items())
        )
        command = [*self._jvm(libraries), "kafka.tools.StorageTool", "format", "--config", str(properties)]
        command += ["--cluster-id", cluster_id()]
        command += ["--add-scram", f"SCRAM-SHA-512=[name={USERNAME},password={password}]"]
        run(command, PREPARE_SECONDS, f"the local Kafka could not prepare {self.folder}")
        (self.folder / "ready").touch()


def class_archive() -> Path:
    """The JVM's archive of Kafka's loaded classes, shared by all local brokers."""
    return cache_folder() / f"kafka-{VERSION}.jsa"
