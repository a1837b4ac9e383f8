"""One roll of the fleet on Kubernetes: it excludes all others, tries a canary, replaces the pods, or goes back.

Who rolls has put a marker into the annotations of both Deployments, and renews it; a marker that was not renewed for a
while is that of a killed run. Every change is made only if the object is as it was read and the marker is the roll's
own. So a roll that was overtaken changes nothing any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mlops_assets.resources import canary
from mlops_assets.resources.deployments import Deployments, with_annotations, with_image
from mlops_assets.resources.inference import FleetError, Rollout, Unjudged
from mlops_assets.resources.pods import (
    digest_in,
    image_of,
    is_complete,
    is_ready,
    is_running,
    restarts,
    state_of,
    waits_for,
)

ROLLING: Final = "mlops-assets/rolling"
LAST: Final = "mlops-assets/last-rollout"
CHANGE_CAUSE: Final = "kubernetes.io/change-cause"

POLL_SECONDS: Final = 0.5
RENEW_SECONDS: Final = 10.0
RESTARTS_PER_ROLL: Final = 2
BAD_IMAGE: Final = ("InvalidImageName", "CreateContainerError")
BAD_WORLD: Final = ("ImagePullBackOff", "CreateContainerConfigError")
"""Why a container waits in vain: through its image's fault, or although its image is whole and in the registry."""


class RollError(Exception):
    """A roll cannot go on; the text is the reason that is recorded. `transient`: it is not the image's fault."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class OvertakenError(Exception):
    """Somebody else commands the fleet now; the text says who."""


@dataclass(frozen=True)
class Marker:
    """Who rolls the fleet from which image to which, and until when (seconds since 1970) that is believed."""

    source: str
    target: str
    by: str
    until: float

    @classmethod
    def of(cls, deployment: Any) -> Marker | None:
        """The marker on a Deployment, None if nobody rolls."""
        text = (deployment.metadata.annotations or {}).get(ROLLING)
        if text is None:
            return None
        marker = json.loads(text)
        return cls(marker["from"], marker["to"], marker.get("by", "an earlier version"), marker["until"])

    def text(self) -> str:
        """As an annotation."""
        fields = asdict(self)
        return json.dumps({"from": fields.pop("source"), "to": fields.pop("target"), **fields})


class Roll:
    """The roll onto the image `target`, by the one who holds the marker. Made by `begin`."""

    def __init__(self, deployments: Deployments, found: Any, marker: Marker, lease_seconds: float) -> None:
        self.deployments, self.found, self.marker, self.lease_seconds = deployments, found, marker, lease_seconds
        self.began, self.renewed = time.monotonic(), time.monotonic()
        self.restarts = {pod.metadata.name: restarts(pod) for pod in deployments.pods()}

    @property
    def before(self) -> str:
        """The image of before."""
        return self.marker.source

    def ended(self, verdict: Any, reason: str = "", transient: bool = False) -> Rollout:
        """Records how the roll ended, and gives up the marker."""
        digest, previous = digest_in(self.marker.target), digest_in(self.before)
        seconds = round(time.monotonic() - self.began, 3)
        rollout = Rollout(verdict, digest or self.marker.target, previous, reason, seconds, transient)
        annotations = {ROLLING: None, LAST: json.dumps(rollout.as_dict())}
        with contextlib.suppress(OvertakenError):
            self._change(self.deployments.canary, with_annotations({ROLLING: None}))
            self._change(self.deployments.name, with_annotations(annotations))
        return rollout

    def has_something_to_lose(self) -> bool:
        """Whether a worker of an earlier roll answers now: then a canary has to prove itself beside it."""
        workers = self.deployments.pods(self.before) if digest_in(self.before) else []
        return any(is_ready(pod) for pod in workers)

    def roll_fleet(self, cause: str, replicas: int | None, deadline: float) -> None:
        """Gives the fleet the new image and waits for its pods. Raises RollError or OvertakenError."""
        self._set_image(self.marker.target, cause, replicas)
        self._wait(self.deployments.name, self.marker.target, deadline)

    def undo(self, deadline_seconds: float = 0) -> str:
        """Puts the old image back; what must be added to the reason if it is not ready again in time.

        Raises OvertakenError.
        """
        self._change(self.deployments.canary, {"spec": {"replicas": 0}})
        if image_of(self.deployments.read(self.deployments.name)) != self.before:
            self._set_image(self.before, f"back to {self.before}")
        try:
            if deadline_seconds and digest_in(self.before):
                self._wait(self.deployments.name, self.before, time.monotonic() + deadline_seconds)
        except RollError as failure:
            return f"; and the old image does not come back: {failure}"
        return ""

    def try_canary(self, seconds: float, deadline: float, unjudged: Unjudged) -> str:
        """One pod of the new image answers beside the fleet. Raises RollError if it fails or does worse.

        So it does for one that can't be judged, unless `unjudged` is proceed: that is then only said, in the result.
        """
        image = self.marker.target
        try:
            self._change(self.deployments.canary, with_image(image, replicas=1))
            self._wait(self.deployments.canary, image, deadline)
            begun, end = self._counts(), time.monotonic() + seconds
            while time.monotonic() < min(end, deadline):
                self._look(self.deployments.canary)
                self._raise_if_hopeless(image)
                time.sleep(POLL_SECONDS)
            if time.monotonic() > deadline:
                raise RollError("the canary had no time to prove itself before the deadline", transient=True)
            now = self._counts()
            if not any(is_ready(pod) for pod in self.deployments.pods(image)):
                raise RollError("the canary went away while it was watched", transient=True)
            windows = [(now[name][0], now[name][1] - counts) for name, (_, counts) in begun.items() if name in now]
            new = canary.total(counts for each, counts in windows if each == image)
            old = canary.total(counts for each, counts in windows if each != image)
            if worse := canary.why_worse(new, old):
                raise RollError(f"the canary is worse: {worse}")
            reason = canary.why_unjudged(new, old)
            if reason and unjudged == "stop":
                remedy = "give it more time (canary_seconds), or roll with `unjudged: proceed`"
                raise RollError(f"the canary could not be judged: {reason}; {remedy}", transient=True)
            return f"the canary could not be judged: {reason}" if reason else ""
        finally:
            with contextlib.suppress(OvertakenError):
                self._change(self.deployments.canary, {"spec": {"replicas": 0}})

    def _counts(self) -> dict[str, tuple[str, canary.Counts]]:
        """By container (a restarted one counts anew): the image that it runs, and what it counted."""
        result = {}
        for pod in self.deployments.pods():
            with contextlib.suppress(FleetError, ValueError):  # a pod may end at any moment
                counts = canary.Counts.read(self.deployments.metrics(pod.metadata.name))
                result[f"{pod.metadata.name}/{restarts(pod)}"] = (pod.spec.containers[0].image, counts)
        return result

    def _wait(self, name: str, image: str, deadline: float) -> None:
        """Returns when all pods of the Deployment run the image and are ready, and no other is left."""
        while True:
            found = self._look(name)
            if image_of(found) != image:
                raise OvertakenError(f"somebody gave {name} the image {image_of(found)}")
            if is_complete(found):
                return
            self._raise_if_hopeless(image)
            if time.monotonic() > deadline:
                raise self._late(image)
            time.sleep(POLL_SECONDS)

    def _late(self, image: str) -> RollError:
        """The image is to blame if its worker ran, and was not ready where the workers of another image are."""
        pods = self.deployments.pods()
        new = [pod for pod in pods if pod.spec.containers[0].image == image and not is_ready(pod)]
        is_alone = not any(is_ready(pod) for pod in pods if pod.spec.containers[0].image != image)
        states = "; ".join(f"{pod.metadata.name}: {state_of(pod)}" for pod in new) or "no pod was created"
        transient = is_alone or not any(is_running(pod) for pod in new)
        return RollError(f"not ready before the deadline: {states}", transient)

    def _raise_if_hopeless(self, image: str) -> None:
        for pod in self.deployments.pods(image):
            reasons = waits_for(pod)
            if restarts(pod) - self.restarts.get(pod.metadata.name, 0) >= RESTARTS_PER_ROLL or reasons & {*BAD_IMAGE}:
                raise RollError(f"{pod.metadata.name}: {state_of(pod)}")
            if reasons & {*BAD_WORLD}:
                raise RollError(f"{pod.metadata.name}: {state_of(pod)}", transient=True)

    def _look(self, name: str) -> Any:
        """The Deployment, of which this roll is still in charge. Renews the marker when that is due."""
        if time.monotonic() > self.renewed + RENEW_SECONDS:
            self.renewed = time.monotonic()
            self.marker = replace(self.marker, until=time.time() + self.lease_seconds)
            self._change(self.deployments.name, with_annotations({ROLLING: self.marker.text()}))
        found = self.deployments.read(name)
        self._check(found)
        return found

    def _set_image(self, image: str, cause: str, replicas: int | None = None) -> None:
        body = {**with_image(image, replicas), **with_annotations({CHANGE_CAUSE: cause})}
        self._change(self.deployments.name, body)

    def _change(self, name: str, body: dict[str, Any]) -> None:
        def patch_for(found: Any) -> dict[str, Any]:
            self._check(found)
            return body

        self.deployments.change(name, patch_for)

    def _check(self, found: Any) -> None:
        marker = Marker.of(found)
        if marker is None or marker.by != self.marker.by:
            who = f"by {marker.by}, onto {marker.target}" if marker else "which has ended"
            raise OvertakenError(f"another roll has taken over ({who})")


def begin(deployments: Deployments, target: str, patience_seconds: float, lease_seconds: float) -> Roll:
    """Puts the marker of a new roll, once nobody else rolls; what a killed run left behind is finished first.

    Raises FleetError if another roll is still under way after `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        found = deployments.read(deployments.name)
        other = Marker.of(found)
        if other is None:
            marker = Marker(image_of(found), target, me(), time.time() + lease_seconds)
            if roll := _take(deployments, None, marker, lease_seconds):
                return roll
        elif recover(deployments, lease_seconds) is None:
            if time.monotonic() > deadline:
                raise FleetError(f"another roll is under way, onto {other.target}, by {other.by}: wait for its verdict")
            time.sleep(POLL_SECONDS)


def recover(deployments: Deployments, lease_seconds: float) -> Rollout | None:
    """Finishes the roll of a killed run, None if there is none: undone, or rolled if just its record was lacking."""
    found = deployments.read(deployments.name)
    dead = Marker.of(found)
    if dead is None or time.time() <= dead.until:
        return None
    marker = replace(dead, by=me(), until=time.time() + lease_seconds)
    roll = _take(deployments, dead, marker, lease_seconds)
    if roll is None:
        return None
    try:
        if image_of(roll.found) == dead.target and is_complete(roll.found):
            return roll.ended("rolled", "the run was killed after the last step of the roll")
        if image_of(roll.found) not in (dead.target, dead.source):
            return roll.ended("overtaken", f"the run was killed, and somebody set {image_of(roll.found)}", True)
        roll.undo()
        return roll.ended("undone", "the run was killed during the roll", transient=True)
    except OvertakenError:
        return None


def me() -> str:
    """A name for one roll, which tells people where it runs."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def _take(deployments: Deployments, other: Marker | None, marker: Marker, lease_seconds: float) -> Roll | None:
    """Replaces the marker `other` by one's own on both Deployments; None if somebody else was quicker."""
    taken: list[Any] = []

    def patch_for(found: Any) -> dict[str, Any] | None:
        current = Marker.of(found)
        taken[:] = [found] if current == other or (current and current.by == marker.by) else []
        if not taken or (other is None and image_of(found) != marker.source):
            taken.clear()
            return None
        return with_annotations({ROLLING: marker.text()})

    deployments.change(deployments.name, patch_for)
    if not taken:
        return None
    body = {**with_annotations({ROLLING: marker.text()}), "spec": {"replicas": 0}}
    deployments.change(deployments.canary, lambda _: body)
    return Roll(deployments, taken[0], marker, lease_seconds)


@contextlib.contextmanager
def going_back(roll: Roll) -> Iterator[None]:
    """Puts the old image back if this caller is interrupted. Whatever interrupted it goes on."""
    try:
        yield
    except (RollError, OvertakenError):
        raise
    except BaseException as interruption:
        with contextlib.suppress(OvertakenError):
            roll.undo()
        roll.ended("undone", f"the run was interrupted: {type(interruption).__name__}", transient=True)
        raise
