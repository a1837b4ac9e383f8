"""Warnings about the champion and its predictions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mlops_assets.assets.thresholds import Thresholds
from mlops_assets.checks import models
from mlops_assets.checks.models import champion_age, champion_auc, clicks_scored
from mlops_assets.inference.model import Model
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry
from mlops_assets.modelling.sample import Sample
from mlops_assets_tests.assets.test_quality import ingested
from mlops_assets_tests.modelling.windows import day as features_of_day
from mlops_assets_tests.modelling.windows import ips


def verdict(day: str, model: str, promoted: bool, before: str | None, **numbers: float | None) -> Entry:
    return Entry(
        day=day,
        kind="verdict",
        decided_by="the gate",
        reason="a test",
        model_version=model,
        run_id=f"run of {model}",
        promoted=promoted,
        champion_before=before,
        verdict=dict(numbers),
    )


FIRST = verdict("2017-11-07", "a", True, None, candidate_auc=0.9)
KEPT = verdict("2017-11-08", "b", False, "a", candidate_auc=0.7, champion_auc=0.75)


def test_the_champions_auc_is_its_verdicts() -> None:
    lake, mlflow = cast("Lake", None), cast("Any", None)
    assert champion_auc(lake, mlflow, [FIRST], "2017-11-07") == 0.9
    assert champion_auc(lake, mlflow, [FIRST, KEPT], "2017-11-08") == 0.75, "the champion's, not the candidate's"


def test_it_is_computed_where_the_verdict_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    features, label = features_of_day(500, 0, seed=3)
    clicks = Sample(features, label, ips(len(label)))
    monkeypatch.setattr(models, "holdout", lambda lake, day: clicks)
    perfect = SimpleNamespace(probability=lambda features: label.astype(np.float32))
    monkeypatch.setattr(Model, "load", lambda folder: perfect)
    mlflow = cast("Any", SimpleNamespace(model_folder=lambda run_id, to: tmp_path))
    itself = verdict("2017-11-08", "a", False, "a")
    assert champion_auc(cast("Lake", None), mlflow, [FIRST, itself], "2017-11-08") == 1.0
    assert champion_auc(cast("Lake", None), mlflow, [FIRST], "2017-11-09") == 1.0, "a day without a verdict"
    clicks = Sample(features, np.zeros(500, np.uint8), clicks.ip)
    assert champion_auc(cast("Lake", None), mlflow, [FIRST], "2017-11-09") is None


def test_a_champion_is_old_after_so_many_days() -> None:
    week = Thresholds(champion_days=7)
    assert champion_age([FIRST, KEPT], "2017-11-14", week)[0]
    passed, numbers = champion_age([FIRST, KEPT], "2017-11-15", week)
    assert not passed
    assert numbers["days old"] == 8
    assert champion_age([], "2017-11-15", week)[0], "no champion is not old"


def test_each_click_needs_a_prediction_once_there_is_a_champion(tmp_path: Path) -> None:
    lake = ingested(tmp_path, "2017-11-08", clicks=240)
    assert clicks_scored(lake, [], "2017-11-08")[0]
    passed, numbers = clicks_scored(lake, [FIRST], "2017-11-08")
    assert not passed
    assert (numbers["clicks"], numbers["predictions"]) == (240, 0)
    with lake.stage("batch_predictions", "2017-11-08") as staging:
        rows = next(lake.read("raw_clicks", "2017-11-08"))
        with staging.part(rows.schema, 0) as part:
            part.write_rows(rows)
        staging.commit([part.staged], inputs={}, code_version="1")
    assert clicks_scored(lake, [FIRST], "2017-11-08")[0]
