"""Checks of the clicks and their features. A blocking one stops the graph before a model learns from bad input."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import dagster as dg

from mlops_assets.assets import metadata, quality
from mlops_assets.assets.candidate_model import holdout
from mlops_assets.assets.promoted_model import ledger
from mlops_assets.assets.quality import Judgement
from mlops_assets.assets.thresholds import THRESHOLDS
from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import Model
from mlops_assets.lake.ingest import DATASET as RAW_CLICKS
from mlops_assets.modelling.evaluation import psi
from mlops_assets.modelling.ledger import champion_as_of
from mlops_assets.partitions import daily
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow


def day_by_day(
    context: dg.AssetCheckExecutionContext,
    judge: Callable[[str], Judgement],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """Judges the run's days one by one; the result is the run's, with a row for each day.

    Dagster evaluates a check once for a range of days, so each day's own evaluation is recorded here.
    """
    judged = {day: judge(day) for day in sorted(context.partition_keys)}
    failed = [day for day, (passed, _) in judged.items() if not passed]
    rows = {day: {"day": day, "passed": passed, **numbers} for day, (passed, numbers) in judged.items()}
    if not context.has_partition_key:
        (check,) = context.selected_asset_check_keys
        for day, (passed, _) in judged.items():
            evaluation = dg.AssetCheckEvaluation(
                asset_key=check.asset_key,
                check_name=check.name,
                passed=passed,
                severity=severity,
                partition=day,
                metadata={"days": metadata.table([rows[day]])},
            )
            # log_event takes evaluations too; only its annotation forgot them.
            context.op_execution_context.log_event(evaluation)  # type: ignore[arg-type]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=severity,
        description=f"failed for {', '.join(failed)}" if failed else None,
        metadata={"days": metadata.table(rows.values())},
    )


@dg.asset_check(asset="raw_clicks", partitions_def=daily, blocking=True)
def no_line_lost(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Lines of the landing file, counted by themselves = rows out + lines quarantined."""

    return day_by_day(context, lambda day: quality.no_line_lost(lake.lake(), day))


@dg.asset_check(asset="raw_clicks", partitions_def=daily, blocking=True)
def label_is_a_label(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The share of installs is one that a label column can have."""

    return day_by_day(context, lambda day: quality.label_is_a_label(lake.lake(), day))


@dg.asset_check(asset="raw_clicks", partitions_def=daily, blocking=True)
def day_has_installs(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """At least one click led to an install, or a person accepted the day without."""

    return day_by_day(context, lambda day: quality.BLOCKING[RAW_CLICKS]["day_has_installs"](lake.lake(), day))


@dg.asset_check(asset="raw_clicks", partitions_def=daily, blocking=True)
def day_is_whole(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Half of the usual clicks at least, and no hour without, or a person accepted the day as it is."""

    return day_by_day(context, lambda day: quality.BLOCKING[RAW_CLICKS]["day_is_whole"](lake.lake(), day))


@dg.asset_check(asset="raw_clicks", partitions_def=daily)
def label_rate_is_usual(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The share of installs is near that of other days."""
    low, high = THRESHOLDS.usual_installs_from, THRESHOLDS.usual_installs_to

    def judge(day: str) -> Judgement:
        rate = quality.label_rate(lake.lake(), day)
        return low <= rate <= high, {"installs per click": rate, "usual from": low, "to": high}

    return day_by_day(context, judge, dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset="raw_clicks", partitions_def=daily)
def few_duplicates(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Few clicks repeat an earlier one in every column, or come out of the order of their times."""

    def judge(day: str) -> Judgement:
        manifest = lake.lake().require(RAW_CLICKS, day)
        numbers = {name: manifest.metadata[name] for name in ("duplicates", "out_of_order")}
        return manifest.metadata["duplicates"] <= THRESHOLDS.most_duplicates * manifest.rows, {
            "clicks": manifest.rows,
            **numbers,
        }

    return day_by_day(context, judge, dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset="training_set", partitions_def=daily, blocking=True)
def every_click_has_features(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """As many rows and installs as the raw clicks have."""

    return day_by_day(context, lambda day: quality.every_click_has_features(lake.lake(), day))


@dg.asset_check(asset="training_set", partitions_def=daily)
def no_feature_drift(context: dg.AssetCheckExecutionContext, lake: LakeResource, mlflow: MLflow) -> dg.AssetCheckResult:
    """Each feature is distributed as in the data the day's champion was trained on, by its PSI."""
    entries = ledger(lake.lake())

    def judge(day: str) -> Judgement:
        champion = champion_as_of(entries, day)
        if champion is None:
            return True, {"champion": "none yet", "worst feature": None, "worst PSI": None}
        with TemporaryDirectory(prefix="drift-") as scratch:
            reference = Model.load(mlflow.model_folder(champion.run_id, Path(scratch))).description["reference"]
        clicks = holdout(lake.lake(), day)
        shifts = {
            name: psi(histogram, clicks.features[:, FEATURES.index(name)], clicks.weight)
            for name, histogram in reference.items()
        }
        worst = max(shifts, key=lambda name: shifts[name])
        numbers = {"champion": champion.model_version, "worst feature": worst, "worst PSI": shifts[worst]}
        return shifts[worst] < THRESHOLDS.most_drift, {
            **numbers,
            **{f"PSI {name}": value for name, value in shifts.items()},
        }

    return day_by_day(context, judge, dg.AssetCheckSeverity.WARN)


checks: Final = [
    no_line_lost,
    label_is_a_label,
    day_has_installs,
    day_is_whole,
    label_rate_is_usual,
    few_duplicates,
    every_click_has_features,
    no_feature_drift,
]
