"""What happened, turned into messages: pure functions from Dagster's records and the promotion ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mlops_assets.automation.outbox import HOUR, REMEMBER_SECONDS, Message
from mlops_assets.modelling.ledger import Entry, replay

Link = Callable[[str], str]
"""The address of a page of Dagster's UI, from its path."""

REASON: Final = 300
FAILED_CHECK: Final = "DagsterAssetCheckFailedError"
"""The error of a step whose blocking check failed: the check is told, not the step."""
ROLLOUT: Final = "rollout"
SENSOR: Final = "dagster/sensor_name"
WAITS: Final = "The roll onto image {image} could not be carried out, and is tried again"
WAITS_REMEDY: Final = "The old image serves. If this goes on, look at the registry, Kafka and the cluster."
REAPER: Final = "reap_clusters"
ONGOING_SECONDS: Final = 24 * HOUR
"""How long the failures of a job that runs by the clock count as one, unless it succeeds in between."""


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that failed for good. `steps` maps each failed step to its error's class and message.

    `digest` is what a rollout was to roll onto; `has_verdict` says that it recorded how that ended, which is told.
    """

    run_id: str
    job: str
    days: str
    tags: Mapping[str, str]
    steps: Mapping[str, tuple[str, str]]
    reason: str
    at: float
    digest: str = ""
    has_verdict: bool = False


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """An evaluation of a blocking check that failed, on one day or (empty) on what has no days."""

    run_id: str
    asset: str
    check: str
    day: str
    description: str
    backfill: str
    at: float


@dataclass(frozen=True, slots=True)
class Roll:
    """How a roll ended, as its materialization of `inference_deployment` says.

    `transient` says that it was undone for a reason that may pass, so that it is tried again.
    """

    storage_id: int
    run_id: str
    verdict: str
    digest: str
    previous: str
    reason: str
    transient: bool
    by_hand: bool
    at: float


def of_run(run: FailedRun, link: Link) -> Message | None:
    """A failed run; None if all that failed in it is told otherwise (a blocking check, an undone roll)."""
    steps = {step: message for step, (kind, message) in run.steps.items() if kind != FAILED_CHECK}
    if run.has_verdict or (run.steps and not steps):
        return None
    reasons = [f"{step}: {shortened(message)}" for step, message in steps.items()] or [shortened(run.reason)]
    told = _advice(run, link)
    text = "\n".join([*reasons, told.todo])
    return Message(told.key, told.group, told.title, text, link(f"runs/{run.run_id}"), run.at, told.remember)


@dataclass(frozen=True, slots=True)
class _Advice:
    """What is said of a failed run beside its reason."""

    key: str
    group: str
    title: str
    todo: str
    remember: float = REMEMBER_SECONDS


def _advice(run: FailedRun, link: Link) -> _Advice:
    key, title = f"run {run.run_id}", f"Run failed: {_job(run.job)}{f' of {run.days}' if run.days else ''}"
    if run.job == REAPER:
        title = "The reaper failed: Spark clusters may be left that cost money"
        todo = "Look for clusters with the label code-location in the cloud; delete those whose run has ended."
        return _Advice(f"ongoing {run.job}", "reaper", title, todo, ONGOING_SECONDS)
    if run.job == ROLLOUT and SENSOR in run.tags:
        return _Advice(
            _waits(run.digest), "rolls", WAITS.format(image=short(run.digest)), WAITS_REMEDY, ONGOING_SECONDS
        )
    if backfill := run.tags.get("dagster/backfill"):
        todo = f"Once the cause is mended, launch the failed days again: {link(f'runs/b/{backfill}')}"
        return _Advice(key, f"backfill {backfill}", title, todo)
    if "dagster/schedule_name" in run.tags and not run.days:
        todo = "It runs again by the clock. If it goes on failing, you are told again in a day."
        return _Advice(f"ongoing {run.job}", "failed runs", title, todo, ONGOING_SECONDS)
    todo = "Read the run's log, mend the cause, then re-execute it from the failed step."
    return _Advice(key, "failed runs", title, todo)


def of_check(check: FailedCheck, link: Link) -> Message:
    """A failed blocking check of one day."""
    where = f"{check.asset}{f' of {check.day}' if check.day else ''}"
    detail = f"{shortened(check.description)}\n" if check.description else ""
    return Message(
        key=f"check {check.run_id} {check.asset} {check.check} {check.day}",
        group=f"backfill {check.backfill}" if check.backfill else "failed checks",
        title=f"Check failed: {check.check}, {where}",
        text=f"{detail}What comes after {where} waits. If the input is wrong, deliver it again: the day is then taken "
        "up by itself. If the check is wrong, mend it and run the day again.",
        link=link(f"assets/{check.asset}?view=checks&checkDetail={check.check}"),
        at=check.at,
    )


def _waits(digest: str) -> str:
    """The key of all attempts at one image: the sensor asks until the roll has an outcome of its own."""
    return f"ongoing rollout {digest}"


def of_roll(roll: Roll, link: Link) -> Message | None:
    """A rollback: by the system, or by a person's hand; None for a roll that is as the promotion said."""
    key, remember = f"roll {roll.storage_id}", REMEMBER_SECONDS
    if roll.verdict == "undone" and roll.transient:
        key, remember = _waits(roll.digest), ONGOING_SECONDS
        title = WAITS.format(image=short(roll.digest))
        text = f"{shortened(roll.reason)}\n{WAITS_REMEDY}"
    elif roll.verdict == "overtaken":
        title = f"The roll onto image {short(roll.digest)} was overtaken by another"
        text = f"{shortened(roll.reason)}\nSee `inference_deployment` for what runs; roll again if it is the wrong one."
    elif roll.verdict == "undone":
        title = f"Rolled back: image {short(roll.digest)} did not come up"
        text = (
            f"{shortened(roll.reason)}\n{short(roll.previous)} serves. It is not tried again: mend it, then launch the "
        )
        text += f"job `{ROLLOUT}` with the digest {roll.digest}, or revoke the model."
    elif roll.verdict == "rolled" and roll.by_hand:
        title = f"A person rolled the fleet onto image {short(roll.digest)}"
        text = f"It ran {short(roll.previous)} before. Reason: {shortened(roll.reason)}\nThe champion is as before: "
        text += "revoke it too, if it was at fault."
    else:
        return None
    return Message(key, "rolls", title, text, link(f"runs/{roll.run_id}"), roll.at, remember)


def of_ledger(entries: Sequence[Entry], after: str, link: Link) -> list[Message]:
    """The changes of production's champion by the decisions whose key is later than `after`."""
    ordered = sorted(entries, key=lambda entry: (entry.time, entry.key))
    told = []
    for place, entry in enumerate(ordered):
        if entry.key <= after:
            continue
        before, now = (replay(ordered[:end]).champion for end in (place, place + 1))
        if (before and before.model_version) == (now and now.model_version):
            continue
        told.append(_promotion(entry, before, now, link))
    return told


def _promotion(entry: Entry, before: Entry | None, now: Entry | None, link: Link) -> Message:
    old, new = (each.model_version if each else "no model" for each in (before, now))
    gain = [entry.verdict.get(name) for name in ("candidate_auc", "champion_auc")]
    numbers = f" ROC-AUC {gain[0]:.4f}" if isinstance(gain[0], float) else ""
    numbers += f", the old one's {gain[1]:.4f}." if numbers and isinstance(gain[1], float) else "." if numbers else ""
    return Message(
        key=f"decision {entry.key}",
        group="promotions",
        title=f"{'Promoted' if entry.kind == 'verdict' else entry.kind.capitalize()}: model {new} replaces {old}",
        text=f"By {entry.decided_by}, day {entry.day}: {shortened(entry.reason)}.{numbers}\nIts image is rolled by "
        f"itself. To go back, launch the job `override` with action revoked and model {new}.",
        link=link(f"assets/promoted_model?partition={entry.day}"),
        at=datetime.fromisoformat(entry.time).timestamp(),
    )


def of_notice(metadata: Mapping[str, Any], at: float, link: Link) -> Message:
    """A notice that some part of the graph recorded, see assets/notices.py."""
    field = {name: str(metadata.get(name, "")) for name in ("kind", "key", "title", "text", "path")}
    return Message(
        key=f"notice {field['key'] or at}",
        group=field["kind"] or "notices",
        title=field["title"] or field["kind"],
        text=field["text"],
        link=link(field["path"] or "assets/notices"),
        at=at,
    )


def of_days(tags: Mapping[str, str]) -> str:
    """The day, or the days, that a run is for; empty if it has none."""
    if day := tags.get("dagster/partition"):
        return day
    first, last = (tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    return f"{first} to {last}" if first and last and first != last else first or ""


def shortened(text: str) -> str:
    """The first lines of an error, without what stands before an @ in a URL: that may be a password."""
    text = re.sub(r"://[^/\s@]+@", "://***@", text.strip())
    return text if len(text) <= REASON else f"{text[:REASON]} ..."


def short(digest: str) -> str:
    """A digest as people compare it."""
    return digest.removeprefix("sha256:")[:12] or "nothing"


def _job(name: str) -> str:
    return "assets" if name.startswith("__ASSET_JOB") else name


def told_day_by_day(
    checks: Iterable[FailedCheck], all_of_run: Callable[[str], Iterable[tuple[str, str]]]
) -> list[FailedCheck]:
    """Without the evaluations of whole ranges, where the range's days were recorded by themselves.

    `all_of_run` gives, for a run, the asset and the name of every failed check that has a day.
    """
    by_day: dict[str, set[tuple[str, str]]] = {}
    kept = []
    for check in checks:
        if not check.day:
            known = by_day.setdefault(check.run_id, set(all_of_run(check.run_id)))
            if (check.asset, check.check) in known:
                continue
        kept.append(check)
    return kept
