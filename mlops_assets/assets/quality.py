"""What a day must be before anything is made of it. The blocking checks show it; the assets themselves insist on it.

Dagster runs a blocking check once for all days of a run, and one bad day would stop them all. So the asset judges each
day as soon as it is made, and who reads it judges it again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.lake.ingest import DATASET as RAW_CLICKS
from mlops_assets.lake.store import Lake
from mlops_assets.spark.training_set import DATASET as TRAINING_SET

Judgement = tuple[bool, Mapping[str, Any]]
"""Whether a day passes, and the numbers that say why."""

IMPOSSIBLE_LABEL_RATE: Final = 0.1
"""About 1 click in 400 leads to an install. At 1 in 10 the label column is not what it says."""


def no_line_lost(lake: Lake, day: str) -> Judgement:
    """Lines in = rows out + lines quarantined."""
    manifest = lake.require(RAW_CLICKS, day)
    quarantined = sum(manifest.metadata["quarantined"].values())
    lines = manifest.metadata["rows_in"]
    return lines == manifest.rows + quarantined, {"lines": lines, "rows": manifest.rows, "quarantined": quarantined}


def label_is_a_label(lake: Lake, day: str) -> Judgement:
    """The share of installs is one that a label column can have."""
    rate = label_rate(lake, day)
    return rate < IMPOSSIBLE_LABEL_RATE, {"installs per click": rate, "must be below": IMPOSSIBLE_LABEL_RATE}


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


BLOCKING: Final[Mapping[str, Mapping[str, Callable[[Lake, str], Judgement]]]] = {
    RAW_CLICKS: {"no_line_lost": no_line_lost, "label_is_a_label": label_is_a_label},
    TRAINING_SET: {"every_click_has_features": every_click_has_features},
}
"""The blocking judgements of a day, by asset and name of the check."""


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
            raise dg.Failure(f"{asset} of {day} fails its check {check} ({said})", allow_retries=False)
