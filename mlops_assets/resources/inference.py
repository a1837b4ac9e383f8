"""The fleet that answers clicks: what any form of it can do, and the embedded form, processes on this machine."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import dagster as dg
from pydantic import Field

from mlops_assets.resources import supervisor
from mlops_assets.resources.images import ImageError, Images

Verdict = Literal["rolled", "undone", "unchanged", "overtaken"]
Unjudged = Literal["stop", "proceed"]

START_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 1.0
KAFKA: Final = "KAFKA_BOOTSTRAP_SERVERS"
STOP_SECONDS: Final = supervisor.GRACE_SECONDS + 10


class FleetError(RuntimeError):
    """The fleet cannot be commanded. The message says why and what to do."""


@dataclass(frozen=True)
class Rollout:
    """How a roll ended. After `undone` the fleet runs `previous` again, and `reason` says why.

    `transient` marks a reason that is not the image's: what failed may succeed another time. `overtaken` means that
    somebody else commands the fleet now, and this roll has left it to them.
    """

    verdict: Verdict
    digest: str
    previous: str | None
    reason: str
    seconds: float
    transient: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For metadata and records."""
        return asdict(self)


@dataclass(frozen=True)
class Worker:
    """One worker process or pod."""

    name: str
    digest: str
    ready: bool
    restarts: int
    metrics_url: str


@dataclass(frozen=True)
class FleetStatus:
    """What runs now. `digest` is the image that the fleet stands on, None before the first successful roll."""

    digest: str | None
    replicas: int
    workers: tuple[Worker, ...]
    rolling: bool
    last_rollout: Rollout | None

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(worker.ready for worker in self.workers)


class InferenceFleet(dg.ConfigurableResource[None], ABC):
    """The inference workers of one environment."""

    def obstacle(self) -> str | None:
        """Why no roll can succeed here as things are, and what to do; None if one can. It costs a second at most."""
        return None

    @abstractmethod
    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        """What runs now. Raises FleetError if that can't be learnt within the patience, by default a minute or two."""

    @abstractmethod
    def roll(self, digest: str, deadline_seconds: float, unjudged: Unjudged | None = None) -> Rollout:
        """Replaces the workers by ones of that image, one at a time, or goes back to the image of before by itself.

        A failed roll is no exception but the verdict `undone`. `unjudged` is for a form that tries a canary: what
        follows, in this roll, on one that can't be judged. Raises FleetError if the fleet cannot be commanded.
        """

    @abstractmethod
    def recover(self) -> Rollout | None:
        """Finishes a roll whose caller was killed; how it ended, None if there was none. It takes no long."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all workers, each after its current batch."""


class LocalFleet(InferenceFleet):
    """Worker processes on this machine, owned by a detached supervisor process that outlives the caller.

    `environment` holds the workers' plain settings and is kept in `path` (readable by its owner only); secrets belong
    into this process's environment, which the supervisor inherits when it starts. `command` is what starts a worker;
    it gets `--model FOLDER` appended, and in its environment where to serve its probes and metrics. A worker counts as
    ready when it was so for `min_ready_seconds`, as on Kubernetes.
    """

    images: dg.ResourceDependency[Images]
    path: str
    replicas: int = 2
    min_ready_seconds: float = 1.0
    environment: dict[str, str] = Field(default_factory=dict)
    command: list[str] = Field(default_factory=lambda: [sys.executable, "-m", "mlops_assets.inference"])

    def obstacle(self) -> str | None:
        """Whether the workers' Kafka is named, and there."""
        servers = {**os.environ, **self.environment}.get(KAFKA, "").strip()
        if not servers:
            return f"{KAFKA} is not set; `mlops-assets kafka up` starts a Kafka and says what to set"
        for server in servers.split(","):
            host, _, port = server.strip().rpartition(":")
            with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), CONNECT_SECONDS):
                return None
        return f"no Kafka answers at {servers} ({KAFKA}); `mlops-assets kafka up` starts one"

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        """What runs now; no workers when the supervisor does not run."""
        state = supervisor.read_json(self._folder / "state.json")
        workers = state.get("workers", []) if self._is_supervised() else []
        current, rollout = state.get("current"), state.get("rollout")
        return FleetStatus(
            digest=current and current["digest"],
            replicas=state.get("replicas", 0),
            workers=tuple(
                Worker(w["name"], w["digest"], w["ready"], w["restarts"], f"http://127.0.0.1:{w['port']}/metrics")
                for w in workers
            ),
            rolling=bool(state.get("rolling")),
            last_rollout=Rollout(**rollout) if rollout else None,
        )

    def roll(self, digest: str, deadline_seconds: float, unjudged: Unjudged | None = None) -> Rollout:
        """See InferenceFleet. The deadline is for the roll; going back is given as long again.

        The supervisor ends a roll that has begun, also when this caller is killed.
        """
        began = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            previous = self.status().digest
            model = self._folder.resolve() / "models" / digest.removeprefix("sha256:")
            try:
                self.images.model_folder(digest, model)
            except ImageError as error:
                return Rollout("undone", digest, previous, str(error), round(time.monotonic() - began, 3))
            files = (self._folder / name for name in ("desired.json", "state.json"))
            generation = 1 + max(supervisor.read_json(file).get("generation", 0) for file in files)
            template = {
                "digest": digest,
                "model": str(model),
                "environment": self.environment,
                "command": self.command,
                "min_ready_seconds": self.min_ready_seconds,
            }
            desired = {
                "generation": generation,
                "template": template,
                "replicas": self.replicas,
                "deadline_seconds": deadline_seconds,
            }
            supervisor.write_json(self._folder / "desired.json", desired)
            rollout = self._verdict(generation, patience=3 * deadline_seconds + 2 * STOP_SECONDS)
            self._forget_models({rollout.digest, rollout.previous})
            return rollout

    def recover(self) -> Rollout | None:
        """Nothing: a roll's caller may be killed, the supervisor ends the roll by itself."""
        return None

    def stop(self) -> None:
        """Ends the supervisor and all workers, also those that a killed supervisor has left behind."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._is_supervised() and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, ValueError):  # ended, or its id is not noted yet
                os.kill(int((self._folder / "supervisor.lock").read_text()), signal.SIGTERM)
            time.sleep(0.1)
        supervisor.kill_group(self._folder, supervisor.GRACE_SECONDS)

    @property
    def supervisor(self) -> int | None:
        """The id of the process that keeps the workers running, None if there is none."""
        if not self._is_supervised():
            return None
        text = (self._folder / "supervisor.lock").read_text()
        return int(text) if text.isdecimal() else None

    @property
    def _folder(self) -> Path:
        return Path(self.path)

    def _is_supervised(self) -> bool:
        return supervisor.is_locked(self._folder / "supervisor.lock")

    def _verdict(self, generation: int, patience: float) -> Rollout:
        """Waits for the supervisor's verdict; a supervisor that is not there, or dies, is started (again)."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            state = supervisor.read_json(self._folder / "state.json")
            if state.get("generation", 0) >= generation:
                return Rollout(**state["rollout"])
            if not self._is_supervised():
                self._start_supervisor()
            time.sleep(0.05)
        raise FleetError(f"no verdict after {patience:.0f} s; the reason is at the end of {self._log}")

    def _start_supervisor(self) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", supervisor.__file__, str(self._folder.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_supervised():
            if process.poll() is not None or time.monotonic() > deadline:
                raise FleetError(f"the supervisor did not start; the reason is at the end of {self._log}")
            time.sleep(0.05)

    @property
    def _log(self) -> Path:
        return self._folder / "supervisor.log"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self._folder / "roll.lock").open("w") as lock:
            try:
                supervisor.lock(lock)
            except BlockingIOError:
                raise FleetError(f"another roll of {self.path} is under way: wait for its verdict") from None
            yield

    def _forget_models(self, keep: set[str | None]) -> None:
        names = {digest.removeprefix("sha256:") for digest in keep if digest}
        for folder in (self._folder / "models").iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)
