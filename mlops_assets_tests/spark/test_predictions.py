"""Batch predictions: every click of a day, scored as the model folder says."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pyspark.sql import SparkSession

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import ModelError
from mlops_assets.lake.store import Lake
from mlops_assets.lake.tables import BATCH_PREDICTIONS
from mlops_assets.modelling.training import version_of
from mlops_assets.spark import predictions, training_set
from mlops_assets_tests.inference.tiny_model import sigmoid, write_model
from mlops_assets_tests.spark.raw_days import DAYS, write_raw


def model_folder(folder: Path, threshold: float = 0.05) -> Path:
    write_model(folder, threshold=threshold)
    description = json.loads((folder / "model.json").read_text())
    description["version"] = version_of((folder / "model.onnx").read_bytes(), description)
    (folder / "model.json").write_text(json.dumps(description))
    return folder


def test_every_click_gets_the_models_probability(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "ROWS_PER_PART", 1_000)
    lake, model = Lake(str(tmp_path / "lake")), model_folder(tmp_path / "model")
    write_raw(lake, DAYS[0])
    (features,) = training_set.run(spark, lake.root, [DAYS[0]])
    (manifest,) = predictions.run(spark, lake.root, [DAYS[0]], model=str(model))
    scored = pl.read_parquet(f"{lake.root}/batch_predictions/**/*.parquet", hive_partitioning=False).sort("arrival")
    rows = pl.read_parquet(f"{lake.root}/training_set/**/*.parquet", hive_partitioning=False).sort("arrival")
    assert scored.columns == BATCH_PREDICTIONS.names
    assert scored.drop("probability").equals(rows.select(scored.columns[:-1]))
    expected = sigmoid(rows.select(FEATURES).to_numpy().astype(np.float32))
    np.testing.assert_allclose(scored["probability"].to_numpy(), expected, rtol=1e-4, atol=1e-6)
    assert [file.rows for file in manifest.files] == [file.rows for file in features.files]
    assert len(manifest.files) > 1


def test_days_are_scored_again_only_for_another_model(spark: SparkSession, tmp_path: Path) -> None:
    lake, one, two = (tmp_path / name for name in ("lake", "one", "two"))
    model_folder(one), model_folder(two, threshold=0.1)
    write_raw(Lake(str(lake)), DAYS[0], clicks=300)
    training_set.run(spark, str(lake), [DAYS[0]])
    (first,) = predictions.run(spark, str(lake), [DAYS[0]], model=str(one))
    assert predictions.finished(Lake(str(lake)), DAYS[0], model=str(one)) == first
    assert predictions.finished(Lake(str(lake)), DAYS[0], model=str(two)) is None
    (second,) = predictions.run(spark, str(lake), [DAYS[0]], model=str(two))
    assert second.inputs["model"] != first.inputs["model"]
    assert second.version == first.version  # the same probabilities


def test_a_folder_that_is_no_model_is_said(tmp_path: Path) -> None:
    write_raw(Lake(str(tmp_path)), DAYS[0], clicks=300)
    with pytest.raises(ModelError, match="no model folder"):
        predictions.finished(Lake(str(tmp_path)), DAYS[0], model=str(tmp_path / "nothing"))
