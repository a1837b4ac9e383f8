"""What a day must be before anything is made of it. The blocking checks show it; the assets themselves insist on it.

Dagster runs a blocking check once for all days of a run, and one bad day would stop them all. So the asset judges each
day as soon as it is made, and who reads it judges it again.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Final

import dagster as dg
import numpy as np

from mlops_assets.assets import metadata
from mlops_assets.assets.thresholds import THRESHOLDS, Thresholds
from mlops_assets.lake.ingest import DATASET as RAW_CLICKS
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.partitions import FIRST_DAY, LAST_DAY, training_window
from mlops_assets.spark.training_set import DATASET as TRAINING_SET

Judgement = tuple[bool, Mapping[str, Any]]
"""Whether a day passes, and the numbers that say why."""

ACCEPTED: Final = "accepted_days"
"""The lake's log of days that a person takes as they are."""

FEW_DAYS: Final = 3
"""With fewer days before it, how a day's clicks spread over the hours is not known."""


def no_line_lost(lake: Lake, day: str) -> Judgement:
    """As many lines in the landing file, counted by themselves, as rows and quarantined lines together.

    Where the file was replaced or removed since, only what the ingest counted can be compared.
    """
    manifest, landing = lake.require(RAW_CLICKS, day), Landing(lake.root)
    version = manifest.inputs["landing"]
    is_there = landing.version(day) == version
    lines = _lines(lake.root, day, version) if is_there else manifest.metadata["rows_in"]
    quarantined = sum(manifest.metadata["quarantined"].values())
    numbers = {"lines": lines, "rows": manifest.rows, "quarantined": quarantined, "counted in the file": is_there}
    return lines == manifest.rows + quarantined, numbers


@lru_cache(maxsize=64)
def _lines(root: str, day: str, version: str) -> int:  # the version is there to count another file anew
    return Landing(root).lines(day)


def label_is_a_label(lake: Lake, day: str, thresholds: Thresholds = THRESHOLDS) -> Judgement:
    """The share of installs is one that a label column can have."""
    rate = label_rate(lake, day)
    return rate < thresholds.most_installs, {"installs per click": rate, "must be below": thresholds.most_installs}


def day_has_installs(lake: Lake, day: str) -> Judgement:
    """At least one click led to an install: labels that are missing would teach seven candidates that none does."""
    manifest = lake.require(RAW_CLICKS, day)
    return manifest.metadata["installs"] > 0, {"clicks": manifest.rows, "installs": manifest.metadata["installs"]}


def day_is_whole(
    lake: Lake,
    day: str,
    thresholds: Thresholds = THRESHOLDS,
    begins: str = FIRST_DAY,
    ends: str | None = LAST_DAY,
) -> Judgement:
    """Not far fewer clicks than usual, and no hour without clicks that usually has some.

    The first of all days may begin in its middle, and the last one, of data that has an end, may end there. What is
    usual is said by the days of the week before, as far as the lake holds them; without any, clicks are not compared.
    """
    manifest = lake.require(RAW_CLICKS, day)
    found = [lake.manifest(RAW_CLICKS, each) for each in training_window(day)]
    before = [each for each in found if each]
    usual = float(np.median([each.rows for each in before])) if before else None
    missing = _missing_hours(manifest, before, thresholds.expected_in_an_hour)
    hours = np.flatnonzero(manifest.metadata.get("clicks_by_hour", []))
    if len(hours):
        first = hours[0] if day == begins else 0
        last = hours[-1] if day == ends else 23
        missing = [hour for hour in missing if first <= hour <= last]
    enough = usual is None or manifest.rows >= thresholds.least_of_usual_clicks * usual
    numbers = {
        "clicks": manifest.rows,
        "usual clicks": usual,
        "days that say what is usual": len(before),
        "hours without clicks (UTC)": ", ".join(map(str, missing)) or "none",
    }
    return enough and not missing, numbers


def _missing_hours(manifest: Manifest, before: Sequence[Manifest], least: float) -> list[int]:
    """The hours without a click in which at least so many are expected, from the share that they usually have.

    While few days say what is usual, a tenth of the mean hour is expected in each; TalkingData's quietest has a sixth.
    """
    empty = np.zeros(24)
    clicks = np.asarray(manifest.metadata.get("clicks_by_hour", empty + 1))  # a day ingested before hours were counted
    usual = sum((np.asarray(each.metadata.get("clicks_by_hour", empty)) for each in before), empty)
    share = usual / max(usual.sum(), 1)
    if len(before) < FEW_DAYS:
        share = np.maximum(share, 1 / 240)
    return [int(hour) for hour in np.flatnonzero((clicks == 0) & (share * manifest.rows >= least))]


def every_click_has_features(lake: Lake, day: str) -> Judgement:
    """As many rows and installs as the raw clicks have."""
    raw, features = lake.require(RAW_CLICKS, day), lake.require(TRAINING_SET, day)
    numbers = {
        "clicks": raw.rows,
        "rows": features.rows,
        "installs of clicks": raw.metadata["installs"],
        "installs of rows": features.metadata["installs"],
    }
    return raw.rows == features.rows and raw.metadata["installs"] == features.metadata["installs"], numbers


def label_rate(lake: Lake, day: str) -> float:
    """Installs per click of a day."""
    manifest = lake.require(RAW_CLICKS, day)
    return float(manifest.metadata["installs"] / manifest.rows) if manifest.rows else 0.0


def accept(lake: Lake, day: str, by: str, reason: str) -> str:
    """A person takes the day's clicks as they are, with few or no installs, clicks or hours. Returns their version.

    That holds for these clicks: a day that is delivered anew is judged anew. Raises MissingPartitionError.
    """
    version = lake.require(RAW_CLICKS, day).version
    time = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"day": day, "version": version, "by": by, "reason": reason, "time": time}
    if _accepted(lake, day) is None:
        lake.append_record(ACCEPTED, f"{day}-{version[:16]}", record)
    return version


def _accepted(lake: Lake, day: str) -> dict[str, Any] | None:
    version = lake.require(RAW_CLICKS, day).version
    return next((each for each in lake.records(ACCEPTED) if (each["day"], each["version"]) == (day, version)), None)


def or_accepted(judge: Callable[[Lake, str], Judgement], lake: Lake, day: str) -> Judgement:
    """The judgement, passed also if a person accepted the day as it is."""
    passed, numbers = judge(lake, day)
    word = None if passed else _accepted(lake, day)
    return (True, {**numbers, "accepted by": word["by"], "reason": word["reason"]}) if word else (passed, numbers)


ACCEPTABLE: Final[Mapping[str, Callable[[Lake, str], Judgement]]] = {
    "day_has_installs": day_has_installs,
    "day_is_whole": day_is_whole,
}
"""What a person may take as it is: real days are like that now and then."""

BLOCKING: Final[Mapping[str, Mapping[str, Callable[[Lake, str], Judgement]]]] = {
    RAW_CLICKS: {
        "no_line_lost": no_line_lost,
        "label_is_a_label": label_is_a_label,
        **{name: partial(or_accepted, judge) for name, judge in ACCEPTABLE.items()},
    },
    TRAINING_SET: {"every_click_has_features": every_click_has_features},
}
"""The blocking judgements of a day, by asset and name of the check."""


def is_fit_to_learn_from(lake: Lake, training_set: Manifest) -> bool:
    """Whether a day's training set passes its blocking checks.

    They compare it with the raw clicks that it was made of. Where these are gone, or others have replaced them and were
    refused, it passed when it was made, and stays.
    """
    raw, day = lake.manifest(RAW_CLICKS, training_set.date), training_set.date
    if raw is None or training_set.inputs.get(RAW_CLICKS) != raw.version:
        return True
    return all(judge(lake, day)[0] for judge in BLOCKING[TRAINING_SET].values())


def insist(context: dg.AssetExecutionContext, lake: Lake, asset: str, day: str) -> None:
    """Raises dg.Failure if a day of `asset` fails one of its blocking checks, and records that the check failed."""
    for check, judge in BLOCKING[asset].items():
        passed, numbers = judge(lake, day)
        if not passed:
            evaluation = dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset),
                check_name=check,
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                partition=day,
                metadata={"days": metadata.table([{"day": day, "passed": False, **numbers}])},
            )
            # log_event takes evaluations too; only its annotation forgot them.
            context.op_execution_context.log_event(evaluation)  # type: ignore[arg-type]
            said = ", ".join(f"{name} {value}" for name, value in numbers.items())
            remedy = "; if it is right as it is, run `accept_day`" if check in ACCEPTABLE else ""
            raise dg.Failure(f"{asset} of {day} fails its check {check} ({said}){remedy}", allow_retries=False)
