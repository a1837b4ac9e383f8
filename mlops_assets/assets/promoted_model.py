"""The verdict of a day, and the champion as of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.candidate_model import (
    SEED,
    candidate_model,
    data_versions,
    fingerprint,
    holdout,
    made_of,
    train,
    trainable,
)
from mlops_assets.assets.days import day_by_day
from mlops_assets.assets.order import wait_turn
from mlops_assets.assets.training_set import training_set
from mlops_assets.inference.model import Model
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry, replay, time_after, verdict_of
from mlops_assets.modelling.promotion import Gate, Verdict, judge
from mlops_assets.partitions import daily, run_of_its_own
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow

CODE_VERSION: Final = "1"
LEDGER: Final = "promotion_ledger"
GATE: Final = Gate.from_environment()
"""What a verdict depends on besides its data. When it changes, the newest day is judged again, and nothing older."""

LEDGER_ROWS: Final = 30


def ledger(lake: Lake) -> list[Entry]:
    """Every decision so far, in the order in which they were made."""
    return [Entry.from_dict(record) for record in lake.records(LEDGER)]


def production_champion(lake: Lake) -> Entry | None:
    """The decision that made the model that production has now."""
    return replay(ledger(lake)).champion


def record(lake: Lake, mlflow: MLflow, entry: Entry) -> Entry:
    """Appends a decision with its time and what it leads to, and moves the champion alias to production's model."""
    entries = ledger(lake)
    entry = replace(entry, time=time_after(entries))
    standing = replay([*entries, entry])
    after = standing.as_of(entry.day) if entry.kind == "verdict" else standing.champion
    entry = replace(entry, champion_after=after.model_version if after else None)
    lake.append_record(LEDGER, entry.key, entry.as_dict())
    align_alias(lake, mlflow)
    return entry


def align_alias(lake: Lake, mlflow: MLflow) -> None:
    """Makes MLflow's champion alias say what the ledger says, also where a killed run left the two apart."""
    champion, alias = production_champion(lake), mlflow.champion()
    if (champion.run_id if champion else None) == (alias.run_id if alias else None):
        return
    tags = {"champion_since": champion.day, "decision": champion.key} if champion else {}
    mlflow.set_champion(mlflow.register(champion.run_id, tags) if champion else None)


def decide(lake: Lake, mlflow: MLflow, day: str, decided_by: str) -> Entry:
    """The verdict of `day`: the ledger's, if nothing that it was made of has changed; else a new one.

    A day before the newest that was judged is history: its verdict says what would be decided now and moves nothing,
    and other settings of the gate don't change it.
    """
    standing = replay(entries := ledger(lake))
    historical, champion = standing.is_historical(day), standing.opponent(day)
    before = champion.model_version if champion else None
    versions = data_versions(lake, day)
    run_id = mlflow.find({"day": day, "fingerprint": fingerprint(versions)})
    earlier = verdict_of(entries, day)
    if earlier and (earlier.run_id, earlier.data_versions) == (run_id or "", versions):
        held = standing.held(earlier.model_version)
        if historical or (earlier.champion_before, earlier.gate, earlier.held) == (before, GATE.as_dict(), held):
            align_alias(lake, mlflow)
            return earlier
    verdict, version = _judge(lake, mlflow, day, run_id, champion)
    held = standing.held(version) if version else ""
    new = Entry(
        day=day,
        kind="verdict",
        decided_by=decided_by,
        reason=_reason(verdict, held, standing.newest if historical else ""),
        model_version=version,
        run_id=run_id or "",
        promoted=verdict.promoted and not historical and not held,
        historical=historical,
        held=held,
        champion_before=before,
        verdict=verdict.as_dict(),
        gate=GATE.as_dict(),
        data_versions=versions,
    )
    return record(lake, mlflow, new)


def candidate_of(context: dg.AssetExecutionContext, lake: Lake, mlflow: MLflow, day: str) -> None:
    """Has the day's candidate trained again if a day of its window was made anew since, as while the verdict waited."""
    if mlflow.find({"day": day, "fingerprint": fingerprint(data_versions(lake, day))}) or not trainable(lake, day):
        return
    context.log.warning(f"{day}: its candidate was trained on other clicks than the lake holds; it is trained again")
    found = train(context.log, lake, mlflow, day, context.run.run_id)
    context.log_event(dg.AssetMaterialization("candidate_model", partition=day, metadata=found))


def _reason(verdict: Verdict, held: str, newest: str) -> str:
    """Why the candidate was promoted or not; and what keeps a better one out."""
    if newest:
        would = "would be promoted" if verdict.promoted else "would not be promoted"
        return f"history, since {newest} was judged before: production stays. Today it {would}: {verdict.reason}"
    return (
        f"{held}. Without that it would be promoted: {verdict.reason}" if held and verdict.promoted else verdict.reason
    )


def _judge(lake: Lake, mlflow: MLflow, day: str, run_id: str | None, champion: Entry | None) -> tuple[Verdict, str]:
    """The gate's verdict on the candidate, and its version (empty where the day has no candidate)."""
    clicks = holdout(lake, day)
    if run_id is None:
        if trainable(lake, day):
            raise dg.Failure(
                f"{day}: no candidate was trained on what the lake holds now; materialize candidate_model first",
                allow_retries=False,
            )
        reason = "no candidate: the days before hold no click to learn from"
        return Verdict(False, reason, len(clicks), clicks.installs), ""
    with TemporaryDirectory(prefix="judge-") as scratch:
        candidate = Model.load(mlflow.model_folder(run_id, Path(scratch, "candidate")))
        reigning = Model.load(mlflow.model_folder(champion.run_id, Path(scratch, "champion"))) if champion else None
    if reigning and reigning.version == candidate.version:
        reason = "the candidate is the champion"
        return Verdict(False, reason, len(clicks), clicks.installs), candidate.version
    verdict = judge(
        clicks.label,
        candidate.probability(clicks.features),
        reigning.probability(clicks.features) if reigning else None,
        clicks.ip,
        GATE,
        seed=SEED,
    )
    return verdict, candidate.version


def story(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    """A verdict as people read it in the lineage view, with the latest part of the ledger."""
    shown = ("candidate_auc", "champion_auc", "p_ttest", "p_paired")
    numbers = {name: entry.verdict.get(name) for name in (*shown, "ips", "install_ips")}
    interval = entry.verdict.get("interval")
    rows = [
        {
            "day": each.day,
            "kind": each.kind,
            "model": each.model_version,
            "promoted": each.promoted,
            "history": each.historical,
            **{name: each.verdict.get(name) for name in shown},
            "champion after": each.champion_after,
            "reason": each.reason,
            "decided by": each.decided_by,
            "at": each.time,
        }
        for each in entries[-LEDGER_ROWS:]
    ]
    return {
        "promoted": entry.promoted,
        "history": entry.historical,
        "reason": entry.reason,
        "candidate": entry.model_version or "none",
        "champion": entry.champion_after or "none",
        "champion_before": entry.champion_before or "none",
        **{name: "undefined" if value is None else value for name, value in numbers.items()},
        "gate": dg.MetadataValue.json(entry.gate),
        "interval_of_gain": f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "undefined",
        "data_versions": dg.MetadataValue.json(entry.data_versions),
        "ledger": metadata.table(rows),
    }


@dg.asset(
    deps=["raw_clicks", training_set, candidate_model],
    partitions_def=daily,
    backfill_policy=run_of_its_own("promoted_model"),
    group_name="models",
    owners=metadata.OWNERS,
    kinds={"scipy", "mlflow"},
    code_version=CODE_VERSION,
    pool="promotion",
    description="The verdict of the day and the champion as of it. Both models are scored on the same clicks; the "
    " candidate is promoted if its mean bootstrap ROC-AUC reaches the floor and the t-test on the replicates, "
    "the paired test and the paired bootstrap interval over ips all find it better, by the minimum gain at least. "
    "Every verdict is kept in the ledger.",
)
def promoted_model(context: dg.AssetExecutionContext, lake: LakeResource, mlflow: MLflow) -> dg.MaterializeResult[None]:
    """Judges the days in order: a day's champion is what the days before left behind."""
    store = lake.lake()
    with day_by_day(context) as days:
        newest, first = replay(ledger(store)).newest, min(context.partition_keys)
        earlier = {day for day in daily.get_partition_keys() if newest < day < first}
        wait_turn(context, {**made_of(context.partition_keys), "promoted_model": earlier})
        for day in days:
            with days.isolated(day):
                candidate_of(context, store, mlflow, day)
                entry = decide(store, mlflow, day, decided_by=f"gate, run {context.run.run_id}")
                context.log.info(f"{day}: {'promoted' if entry.promoted else 'kept the champion'}: {entry.reason}")
                days.report(day, story(entry, ledger(store)))
    return dg.MaterializeResult()
