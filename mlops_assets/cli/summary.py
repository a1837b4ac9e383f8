"""What the graph decided, day by day, read from the stores themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mlops_assets.assets.candidate_model import data_versions
from mlops_assets.assets.deployed_image import recorded_image
from mlops_assets.assets.promoted_model import ledger
from mlops_assets.lake.ingest import DATASET as RAW_CLICKS
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import champion_as_of, verdict_of
from mlops_assets.spark.training_set import DATASET as TRAINING_SET

COLUMNS = ("candidate_auc", "champion_auc", "p_ttest", "p_paired")


def is_done(lake: Lake, landing: Landing, day: str) -> bool:
    """Whether every asset of the day is made of what lies in the landing area now."""
    raw, features = lake.manifest(RAW_CLICKS, day), lake.manifest(TRAINING_SET, day)
    if raw is None or features is None:
        return False
    if raw.inputs["landing"] != landing.version(day) or features.inputs["raw_clicks"] != raw.version:
        return False
    entries = ledger(lake)
    verdict = verdict_of(entries, day)
    if verdict is None or verdict.data_versions != data_versions(lake, day):
        return False
    champion = champion_as_of(entries, day)
    return champion is None or recorded_image(lake, champion.model_version) is not None


def summary(lake: Lake, days: Iterable[str]) -> list[dict[str, Any]]:
    """A plain record per day: rows, AUCs, p-values, verdict, champion and image."""
    entries = ledger(lake)
    result = []
    for day in days:
        verdict = verdict_of(entries, day)
        if verdict is None:
            raise LookupError(f"the promotion ledger has no verdict of {day}: materialize promoted_model for that day")
        champion = champion_as_of(entries, day)
        numbers = {name: verdict.verdict[name] for name in COLUMNS}
        result.append(
            {
                "date": day,
                "rows": lake.require(TRAINING_SET, day).rows,
                **numbers,
                "promoted": verdict.promoted,
                "champion": champion and champion.model_version,
                "image": champion and recorded_image(lake, champion.model_version),
                "reason": verdict.reason,
            }
        )
    return result


def table(days: Iterable[dict[str, Any]]) -> Table:
    """The summary for a terminal."""
    result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in ("date", "rows", "cand.\nAUC", "champ.\nAUC", "t-test\np", "paired\np"):
        result.add_column(name, justify="left" if name == "date" else "right", no_wrap=True)
    for name in ("pro-\nmoted", "champion", "image\nsha256"):
        result.add_column(name, no_wrap=True)
    for day in days:
        aucs = ["-" if day[name] is None else f"{day[name]:.4f}" for name in COLUMNS[:2]]
        p_values = ["-" if day[name] is None else f"{day[name]:.1g}" for name in COLUMNS[2:]]
        image = (day["image"] or "-").removeprefix("sha256:")[:10]
        promoted = "yes" if day["promoted"] else "no"
        result.add_row(day["date"], f"{day['rows']:,}", *aucs, *p_values, promoted, day["champion"] or "-", image)
    return result
