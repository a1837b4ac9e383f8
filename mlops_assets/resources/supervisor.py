"""The process that keeps local inference workers running and rolls them onto another model, one at a time.

Run as a file (`python -P supervisor.py FOLDER`), with nothing but the standard library, so that it stays small. It
works like a controller of Kubernetes: it reads what is wanted from FOLDER/desired.json and writes what is to
FOLDER/state.json. A template is what a worker is started from: {"digest", "model" (folder), "environment", "command",
"min_ready_seconds"}. FOLDER/targets.json tells Prometheus where the workers' metrics are (its file_sd_configs).
METRICS_HOST is the address that the workers serve them at, loopback unless it is set.

Two locks tell the truth about processes, since the kernel drops them with their holders: `supervisor.lock` is held by
the supervisor alone; `group.lock`, which contains the process group's id, is inherited by every worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

TICK_SECONDS: Final = 0.1
PROBE_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 30.0
CRASHES_PER_ROLL: Final = 3
FIRST_BACK_OFF: Final = 0.25
LONGEST_BACK_OFF: Final = 30.0
STABLE_SECONDS: Final = 60.0

Template = dict[str, Any]


class RollError(Exception):
    """A roll cannot go on; the text is the reason that is recorded. `transient`: it is not the image's fault."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


def write_json(file: Path, document: object, mode: int = 0o600) -> None:
    """Replaces a JSON file whole, readable by its owner only unless `mode` says otherwise."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.touch(mode)
    temporary.write_text(json.dumps(document, indent=1))
    temporary.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """The document, empty if there is no such file."""
    try:
        document: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    return document


def lock(handle: IO[str]) -> None:
    """Takes the lock of an open file for as long as it stays open, or raises BlockingIOError."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def note_id(handle: IO[str], number: int) -> None:
    """Makes a process's or group's id the content of its lock."""
    handle.truncate(0)
    handle.write(str(number))
    handle.flush()


def kill_group(folder: Path, grace_seconds: float) -> None:
    """Ends whatever is left of a supervisor's process group: SIGTERM, and SIGKILL after the grace."""
    held = folder / "group.lock"
    for signal_number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        if not is_locked(held):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(held.read_text()), signal_number)  # no other group has this id while a member lives
        deadline = time.monotonic() + seconds
        while is_locked(held) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)


@dataclass(eq=False)
class Worker:
    """A worker's place: the process changes with every restart, the place stays."""

    name: str
    template: Template
    log: Path
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    started: float = 0.0
    crashes: int = 0
    restart_at: float = 0.0
    probe_at: float = 0.0
    ready_since: float | None = None
    last_exit: str = ""

    def start(self, group_lock: IO[str]) -> None:
        """Starts the process on a free port for its probes and metrics."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.template["command"], "--model", self.template["model"]],
                env={**os.environ, **self.template["environment"], **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[group_lock.fileno()],
            )
        self.started, self.ready_since = time.monotonic(), None

    def environment(self) -> dict[str, str]:
        """What each worker is told: where to serve its probes, and a name that stays when it is restarted."""
        name = f"{socket.gethostname()}-{os.getpid()}-{self.name}"
        host = os.environ.get("METRICS_HOST", "127.0.0.1")
        return {"METRICS_HOST": host, "METRICS_PORT": str(self.port), "WORKER_ID": name}

    def is_ready(self) -> bool:
        """What the worker's own readiness probe says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def last_words(self) -> str:
        """How the process ended, with the last line that it logged."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{self.last_exit}; its last line: {lines[-1][:300]}" if lines else f"{self.last_exit}, without a word"


class Supervisor:
    """Owns the workers of one folder."""

    def __init__(self, folder: Path, own_lock: IO[str]) -> None:
        self.folder = folder
        self.own_lock = own_lock
        self.workers: list[Worker] = []
        self.stopping = False
        self.state: dict[str, Any] = {"generation": 0, "current": None, "replicas": 0, "rolling": None, "rollout": None}
        self.state |= read_json(folder / "state.json")
        self.written = ""
        self.serial = 0
        (folder / "logs").mkdir(exist_ok=True)

    def run(self) -> None:
        """Supervises until SIGTERM, or until its folder is deleted; then stops all workers."""
        kill_group(self.folder, GRACE_SECONDS)
        self.group_lock = (self.folder / "group.lock").open("a+")
        fcntl.flock(self.group_lock, fcntl.LOCK_EX)
        note_id(self.group_lock, os.getpgid(0))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        self.recover()
        while not self.stopping:
            desired = read_json(self.folder / "desired.json")
            if desired.get("generation", 0) > self.state["generation"]:
                self.roll(desired)
            self.tick()
        self.stop(list(self.workers))
        self.write()

    def is_abandoned(self) -> bool:
        """Whether the folder was deleted: nobody could find this process by it any more."""
        return os.fstat(self.own_lock.fileno()).st_nlink == 0

    def recover(self) -> None:
        """Brings back the workers of the last good template; a roll that was under way counts as undone."""
        if rolling := self.state["rolling"]:
            self.finish(rolling, "undone", "the supervisor was killed during the roll", transient=True)
        is_newest = read_json(self.folder / "desired.json").get("generation", 0) <= self.state["generation"]
        if self.state["current"] and is_newest:  # else the next roll starts them, from the newer template
            for _ in range(self.state["replicas"]):
                self.start(self.state["current"])

    def roll(self, desired: dict[str, Any]) -> None:
        """Replaces all workers by ones of the desired template, or goes back to the template of before."""
        template, previous, replicas = desired["template"], self.state["current"], self.state["replicas"]
        self.state["rolling"] = desired = {**desired, "began": time.time()}
        self.write()
        try:
            self.replace(template, desired["replicas"], desired["deadline_seconds"])
        except RollError as failure:
            self.stop([w for w in self.workers if w.template != previous and not self.is_available(w)])
            if previous and not self.stopping:
                with contextlib.suppress(RollError):
                    self.replace(previous, replicas, desired["deadline_seconds"])
            self.stop([w for w in self.workers if w.template != previous])
            while len(self.workers) < replicas and not self.stopping:
                self.start(previous)
            self.finish(desired, "undone", str(failure), transient=failure.transient)
        else:
            verdict = "unchanged" if template == previous else "rolled"
            self.finish(desired, verdict, "", {"current": template, "replicas": desired["replicas"]})

    def finish(
        self,
        desired: dict[str, Any],
        verdict: str,
        reason: str,
        changes: Mapping[str, Any] = {},
        *,
        transient: bool = False,
    ) -> None:
        """Records how a roll ended, all at once."""
        rollout = {
            "verdict": verdict,
            "digest": desired["template"]["digest"],
            "previous": self.state["current"] and self.state["current"]["digest"],
            "reason": reason,
            "seconds": round(time.time() - desired["began"], 3),
            "transient": transient,
        }
        self.state |= {**changes, "generation": desired["generation"], "rolling": None, "rollout": rollout}
        self.write()

    def replace(self, template: Template, replicas: int, deadline_seconds: float) -> None:
        """One at a time: starts a worker, waits until it is ready, stops an old one. Raises RollError.

        Without old workers there is nothing to keep up: all start at once.
        """
        deadline = time.monotonic() + deadline_seconds
        old = [w for w in self.workers if w.template != template]
        while len(self.workers) - len(old) < replicas:
            worker = self.start(template)
            if old:
                self.wait_until_available(worker, deadline)
                self.stop([old.pop(0)])
        surplus = [w for w in self.workers if w.template == template][replicas:]
        self.stop(old + surplus)
        while waiting := [w for w in self.workers if not self.is_available(w)]:
            self.wait_until_available(waiting[0], deadline)

    def wait_until_available(self, worker: Worker, deadline: float) -> None:
        """Returns once the worker has been ready for long enough; supervises meanwhile. Raises RollError."""
        while not self.is_available(worker):
            if self.stopping:
                raise RollError("the fleet was stopped during the roll")
            if worker.crashes >= CRASHES_PER_ROLL:
                raise RollError(f"{worker.name} crashed {worker.crashes} times: {worker.last_words()}")
            if time.monotonic() > deadline:
                crashes = f" (it crashed {worker.crashes} times: {worker.last_words()})" if worker.crashes else ""
                others = [w for w in self.workers if w.template != worker.template]
                is_alone = not any(self.is_available(w) for w in others)  # as without a Kafka
                raise RollError(f"{worker.name} was not ready before the deadline{crashes}", transient=is_alone)
            self.tick()

    def is_available(self, worker: Worker) -> bool:
        """Whether the worker has been ready for its template's `min_ready_seconds`, and can be relied on."""
        if worker.ready_since is None:
            return False
        # a template of an earlier version of this project may lack it
        return bool(time.monotonic() - worker.ready_since >= worker.template.get("min_ready_seconds", 0))

    def start(self, template: Template) -> Worker:
        """A new worker of that template."""
        self.serial += 1
        name = f"worker-{self.serial}"
        worker = Worker(name, template, self.folder / "logs" / f"{name}.log")
        worker.log.unlink(missing_ok=True)
        self.workers.append(worker)
        worker.start(self.group_lock)
        self.write()
        return worker

    def tick(self) -> None:
        """Notices crashes, restarts with back-off, probes, records, and sleeps a moment."""
        self.stopping = self.stopping or self.is_abandoned()
        for worker in self.workers:
            now = time.monotonic()
            if worker.process is None:
                if now >= worker.restart_at and not self.stopping:
                    worker.start(self.group_lock)
            elif (code := worker.process.poll()) is not None:
                if now - worker.started > STABLE_SECONDS:
                    worker.crashes = 0
                back_off = min(FIRST_BACK_OFF * 2**worker.crashes, LONGEST_BACK_OFF)
                worker.crashes += 1
                worker.last_exit = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                worker.process, worker.ready_since, worker.restart_at = None, None, now + back_off
            elif now >= worker.probe_at:
                ready = worker.is_ready()
                worker.ready_since = (worker.ready_since or now) if ready else None
                worker.probe_at = now + (PROBE_SECONDS if ready and self.is_available(worker) else 2 * TICK_SECONDS)
        self.write()
        time.sleep(TICK_SECONDS)

    def stop(self, workers: list[Worker]) -> None:
        """SIGTERM to all of these at once, SIGKILL after the grace. The other workers stay supervised."""
        running = [(w, w.process) for w in workers if w.process is not None]
        self.workers = [w for w in self.workers if w not in workers]
        for _, process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while any(process.poll() is None for _, process in running) and time.monotonic() < deadline:
            self.tick()
        for worker, process in running:
            process.kill()
            if process.wait() == 0:
                worker.log.unlink(missing_ok=True)

    def write(self) -> None:
        """Records the state, when it has changed."""
        self.state["workers"] = [
            {
                "name": worker.name,
                "digest": worker.template["digest"],
                "ready": worker.ready_since is not None,
                "restarts": worker.crashes,
                "pid": worker.process.pid if worker.process else None,
                "port": worker.port,
            }
            for worker in self.workers
        ]
        if (text := json.dumps(self.state)) != self.written and not self.is_abandoned():
            write_json(self.folder / "state.json", self.state)
            running = [w for w in self.workers if w.process]
            targets = [{"targets": [f"127.0.0.1:{w.port}"], "labels": {"worker": w.name}} for w in running]
            write_json(self.folder / "targets.json", targets, 0o644)
            self.written = text


def main(folder: Path) -> None:
    """Supervises the folder's workers, unless another supervisor does already."""
    with (folder / "supervisor.lock").open("a+") as handle:
        for _ in range(50):  # whoever asks is_locked holds the lock for a moment
            try:
                lock(handle)
            except BlockingIOError:
                time.sleep(TICK_SECONDS)
            else:
                note_id(handle, os.getpid())
                Supervisor(folder, handle).run()
                os._exit(0)  # so that the kernel drops the locks, when nothing else of this process is left


if __name__ == "__main__":
    main(Path(sys.argv[1]))
