"""Amazon EMR as moto's server plays it, and what it leaves out: time, jobs that end, logs, reasons, faults.

moto keeps clusters, steps and tags behind the real API. The states move here, as EMR moves them; a step's work is the
function `play`, which gets the step's words and says how it ended and what it wrote.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import boto3
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.emr.models import Cluster, Step, emr_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REGION = "us-east-1"  # the only one that moto keeps clusters of, behind a server
LOGS = "emr-logs"
UNKNOWN = "j-NOTHING"
KEYS = {"aws_access_key_id": "tester", "aws_secret_access_key": "a-secret-of-tests"}
Play = Callable[[list[str]], tuple[bool, str]]


@dataclass
class World:
    """What was asked for, and what shall go wrong."""

    address: str = ""  # where this Amazon is
    play: Play = lambda words: (True, "")
    hangs: bool = False
    fails_to_start: tuple[str, str] = ("", "")  # code and message of the reason
    keeps_logs: bool = False  # for too long, that is
    throttled: int = 0
    lost_answers: int = 0
    before: Callable[[str], None] = lambda call: None  # when a call came, and has no answer yet
    on_create: Callable[[], None] = lambda: None  # when the cluster is there, and nobody was told
    requests: list[Any] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def clusters(self) -> list[Any]:
        """All that were made."""
        return list(emr_backends[DEFAULT_ACCOUNT_ID][REGION].clusters.values())

    def left(self) -> list[str]:
        """Those that would go on costing money."""
        return [each.id for each in self.clusters() if not each.state.startswith("TERMINAT")]


class Front:
    """Before moto: notes and throttles EMR's calls, and starts what a new cluster does."""

    def __init__(self, world: World) -> None:
        self.world, self.moto = world, DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        call = environ.get("HTTP_X_AMZ_TARGET", "").removeprefix("ElasticMapReduce.")
        if not call:
            return self.moto(environ, start)  # type: ignore[no-any-return]
        self.world.calls.append(call)
        if self.world.throttled:
            self.world.throttled -= 1
            start("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
            return [b'{"__type": "ThrottlingException", "message": "Rate exceeded"}']
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        if UNKNOWN.encode() in body:  # on which moto fails
            start("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
            return [b'{"__type": "InvalidRequestException", "Message": "Specified job flow ID not valid"}']
        self.world.before(call)
        began: list[Any] = []
        answer = list(self.moto({**environ, "wsgi.input": BytesIO(body)}, lambda *said: began.append(said)))
        if call == "RunJobFlow":
            self.world.requests.append(json.loads(body))
            cluster = self.world.clusters()[-1]
            cluster.state, cluster.steps[0].state = "STARTING", "PENDING"
            threading.Thread(target=live, args=(self.world, cluster), daemon=True).start()
            self.world.on_create()
        if self.world.lost_answers:
            self.world.lost_answers -= 1
            start("503 Service Unavailable", [])
            return [b""]
        start(*began[0])
        return answer


def live(world: World, cluster: Any) -> None:
    """A cluster's life: nodes, the step, the log that comes late, and the end."""
    step = cluster.steps[0]

    def move(state: str, seconds: float = 0.2) -> bool:
        time.sleep(seconds)
        if cluster.state.startswith("TERMINAT"):  # somebody ended it
            step.state = "CANCELLED"
            return False
        cluster.state = state
        return True

    if world.hangs or not move("BOOTSTRAPPING"):
        return
    code, message = world.fails_to_start
    if code:
        cluster.reason = {"Code": code, "Message": message}
        move("TERMINATED_WITH_ERRORS", 0)
        step.state = "CANCELLED"
        return
    if not move("RUNNING"):
        return
    step.state = "RUNNING"
    done, said = world.play(step.args)
    if not done:
        step.failure = {"Reason": "Unknown Error.", "LogFile": f"s3://{LOGS}/j/steps/s/stderr.gz"}
        cluster.reason = {"Code": "STEP_FAILURE", "Message": "Shut down as step failed"}
    step.state = "COMPLETED" if done else "FAILED"
    move("TERMINATING", 0)
    time.sleep(0.5)
    # Whatever the environment says by now: the test may be over.
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=world.address, **KEYS)
    for name, text in (("stdout", said), ("stderr", "INFO Client: done\n")) if not world.keeps_logs else ():
        s3.put_object(
            Bucket=LOGS, Key=f"logs/{cluster.id}/steps/{step.id}/{name}.gz", Body=gzip.compress(text.encode())
        )
    cluster.state = "TERMINATED" if done else "TERMINATED_WITH_ERRORS"


def _cluster_status(self: Any) -> dict[str, Any]:
    timeline = {"CreationDateTime": self.creation_datetime, "EndDateTime": self.end_datetime}
    return {"State": self.state, "StateChangeReason": getattr(self, "reason", {}), "Timeline": timeline}


def _step_status(self: Any) -> dict[str, Any]:
    return {"State": self.state, "FailureDetails": getattr(self, "failure", {}), "Timeline": {}}


@contextmanager
def amazon() -> Iterator[tuple[World, dict[str, str]]]:
    """Serves; gives the world, and the variables by which clients find it."""
    before = [(kind, kind.__dict__["status"]) for kind in (Cluster, Step)]
    for kind, status in ((Cluster, _cluster_status), (Step, _step_status)):
        setattr(kind, "status", property(status))  # noqa: B010 - their own have no reasons
    world = World()
    server = make_server("127.0.0.1", 0, Front(world), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = world.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield (
            world,
            {
                "AWS_ENDPOINT_URL_EMR": address,
                "AWS_ENDPOINT_URL_S3": address,
                "AWS_REGION": REGION,
                **{name.upper(): value for name, value in KEYS.items()},
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        for kind, own in before:
            setattr(kind, "status", own)  # noqa: B010
