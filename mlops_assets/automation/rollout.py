"""From promoted model to running fleet: the rollout job, and the sensor that requests it until it has an outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import dagster as dg

from mlops_assets.assets.deployed_image import recorded_images
from mlops_assets.assets.promoted_model import ledger, production_champion
from mlops_assets.automation.run_queues import operators
from mlops_assets.modelling.ledger import Entry
from mlops_assets.resources.inference import InferenceFleet
from mlops_assets.resources.lake import LakeResource

FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 3600.0
"""In seconds, between a roll that failed for a passing reason and the next request; each pause is twice the last."""

RUNS_READ: Final = 50
IN_PROGRESS: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

rollout = dg.define_asset_job(
    "rollout",
    selection=["inference_deployment"],
    tags=operators("rollout"),
    description="Rolls the inference fleet onto an image. The sensor launches it for a new champion; launched by hand "
    "with an earlier image's digest it is the way back.",
)

now = time.time


def rollout_config(digest: str, reason: str) -> dict[str, Any]:
    """The rollout job's run config for an image."""
    return {"ops": {"inference_deployment": {"config": {"digest": digest, "reason": reason}}}}


@dataclass(frozen=True)
class Memory:
    """What the sensor keeps between its ticks, as its cursor.

    `champion` and `digest` are what is to run. Runs with a storage id above `since` are later than that champion.
    `attempts` requests were made for the digest, the last at `asked`; `settled` says how that ended, empty until then.
    """

    champion: str
    digest: str = ""
    since: int = 0
    attempts: int = 0
    asked: float = 0.0
    settled: str = ""

    @classmethod
    def read(cls, cursor: str | None, champion: Entry, runs: Sequence[dg.RunRecord]) -> Memory | None:
        """What a cursor says, None if it says nothing. An earlier version's was the digest last asked for."""
        if cursor and cursor.startswith("sha256:"):
            models = [run.dagster_run.tags.get("model_version") for run in runs if digest_of(run) == cursor]
            is_same = champion.model_version in models or not models
            return cls(key_of(champion) if is_same else "", cursor, attempts=1)
        try:
            return cls(**json.loads(cursor or ""))
        except (ValueError, TypeError):
            return None

    def cursor(self) -> str:
        """To be read by `read`."""
        return json.dumps(asdict(self))


class Outcome(NamedTuple):
    """What the requests for a digest have come to: `settled`, or at `ended` a `trouble` that may pass."""

    settled: str = ""
    trouble: str = ""
    ended: float = 0.0


@dg.sensor(job=rollout, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def champion_changed(
    context: dg.SensorEvaluationContext,
    lake: LakeResource,
    fleet: dg.ResourceParam[InferenceFleet],
) -> dg.SensorResult | dg.SkipReason:
    """Requests the roll onto the champion's newest image until it is rolled, unchanged, or undone by its own fault.

    A tick reads the lake's records and the rollout job's runs, never the fleet. It asks nothing while a rollout is
    queued or under way, and waits ever longer after a failure that is not the image's. A person's word that is later
    than the promotion (a roll onto another image, a run that was cancelled) ends its requests too. The run key is the
    digest, the ledger's latest decision and the attempt: Dagster remembers a run key for ever.
    """
    store = lake.lake()
    champion = production_champion(store)
    if champion is None:
        return dg.SkipReason("no model is promoted yet")
    runs = context.instance.get_run_records(dg.RunsFilter(job_name=rollout.name), limit=RUNS_READ)
    memory = Memory.read(context.cursor, champion, runs)
    if memory is None or memory.champion != key_of(champion):
        newest = context.instance.get_run_records(limit=1)
        memory = Memory(key_of(champion), since=newest[0].storage_id if newest else 0)
    images = recorded_images(store, champion.model_version)
    if not images:
        return skip(memory, f"the image of model {champion.model_version} is not there yet")
    digest = images[-1]
    if memory.digest != digest:
        memory = replace(memory, digest=digest, attempts=0, settled="")
    if memory.settled:
        return skip(memory, f"model {champion.model_version}: {memory.settled}")
    for run in runs:
        if run.dagster_run.status in IN_PROGRESS:
            return skip(memory, f"rollout {run.dagster_run.run_id} is {run.dagster_run.status.value.lower()}")
    later = [run for run in runs if run.storage_id > memory.since]
    outcome = look_back(context.instance, memory, later, former=images[:-1])
    if outcome.settled:
        return skip(replace(memory, settled=outcome.settled), f"model {champion.model_version}: {outcome.settled}")
    due = max(outcome.ended, memory.asked) + pause(memory.attempts)
    if memory.attempts and now() < due:
        again = datetime.fromtimestamp(due, UTC).isoformat(timespec="seconds")
        return skip(memory, f"{outcome.trouble or 'no rollout run is left'}; asked again at {again}")
    if obstacle := fleet.obstacle():
        return skip(memory, f"model {champion.model_version} can't be rolled out here: {obstacle}")
    memory = replace(memory, attempts=memory.attempts + 1, asked=now())
    request = dg.RunRequest(
        run_key=f"{digest}:{ledger(store)[-1].key}:{memory.attempts}",
        run_config=rollout_config(digest, f"{champion.kind} of {champion.day}: {champion.reason}"),
        tags={"model_version": champion.model_version},
    )
    return dg.SensorResult(run_requests=[request], cursor=memory.cursor())


def key_of(champion: Entry) -> str:
    """What makes a champion another one: its model, and each time that a person forces it into production."""
    return f"{champion.model_version} {champion.key}" if champion.kind == "forced" else champion.model_version


def digest_of(run: dg.RunRecord) -> str:
    """The digest that a rollout run was to roll onto."""
    try:
        config: Any = run.dagster_run.run_config
        return str(config["ops"]["inference_deployment"]["config"]["digest"])
    except (KeyError, TypeError):  # launched without a config: it failed at once
        return ""


def look_back(
    instance: dg.DagsterInstance, memory: Memory, runs: Sequence[dg.RunRecord], former: Collection[str]
) -> Outcome:
    """What the ended runs, the newest first, have come to for the digest in memory.

    `former` are the same model's images on earlier runtimes.
    """
    for run in runs:
        digest, status = digest_of(run), run.dagster_run.status
        name = f"rollout {run.dagster_run.run_id}"
        if digest != memory.digest:
            if status == dg.DagsterRunStatus.SUCCESS:
                if digest in former and not memory.attempts:
                    return Outcome()  # the fleet runs this model, so its new image is wanted
                return Outcome(settled=f"a person rolled {digest} since it was promoted ({name})")
        elif memory.attempts and status == dg.DagsterRunStatus.CANCELED:
            return Outcome(settled=f"a person cancelled {name}")
        elif status == dg.DagsterRunStatus.SUCCESS:
            return Outcome(settled=f"{name} rolled it")
        elif memory.attempts:
            verdict, reason, is_transient = story_of(instance, run.dagster_run.run_id)
            if verdict == "undone" and not is_transient:
                return Outcome(settled=f"{name} was undone because of the image: {reason}")
            return Outcome(trouble=f"{name} failed: {reason or 'see its log'}", ended=run.end_time or 0.0)
    return Outcome()


def story_of(instance: dg.DagsterInstance, run_id: str) -> tuple[str, str, bool]:
    """Verdict and reason that a rollout run recorded, and whether that reason may pass; empty if it recorded none."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for record in records:
        materialization = record.asset_materialization
        if materialization is not None:
            said = {name: value.value for name, value in materialization.metadata.items()}
            return str(said.get("verdict", "")), str(said.get("reason", "")), bool(said.get("transient", False))
    return "", "", False


def pause(attempts: int) -> float:
    """Seconds between the end of that attempt and the next one."""
    return min(FIRST_PAUSE * 2.0 ** max(0, attempts - 1), LONGEST_PAUSE)


def skip(memory: Memory, reason: str) -> dg.SensorResult:
    """A tick that asks for nothing, and remembers."""
    return dg.SensorResult(skip_reason=reason, cursor=memory.cursor())
