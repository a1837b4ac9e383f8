"""P(install) for every click of a day, by the ONNX file that the pods run.

    python -m mlops_assets.spark.predictions --lake ROOT --days 2017-11-06 --model FOLDER

The features are the training set's, so nothing is shuffled: a task scores one of its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import DESCRIPTION_FILE, ONNX_FILE, Model
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.storage import Storage, open_storage
from mlops_assets.lake.store import Lake, Staging
from mlops_assets.lake.tables import BATCH_PREDICTIONS, column
from mlops_assets.spark.days import REPORT, OnDay, arguments, report, run_days
from mlops_assets.spark.session import say, session

DATASET: Final = "batch_predictions"
PREDICTIONS_VERSION: Final = "1"
"""Raise it when the predictions of the same model change: every day is then computed again."""

MODEL_FILES: Final = (ONNX_FILE, DESCRIPTION_FILE)

_CLICK: Final = BATCH_PREDICTIONS.names[:-1]


def run(
    spark: SparkSession, lake_root: str, days: Iterable[str], on_day: OnDay | None = None, *, model: str
) -> list[Manifest]:
    """Scores each day whose training set or model has changed, with the model of a folder. See run_days."""
    lake = Lake(lake_root)
    return run_days(
        lake,
        DATASET,
        days,
        code_version=PREDICTIONS_VERSION,
        inputs=lambda day: _inputs(lake, day, model),
        compute=lambda staging, day: predictions(spark, lake.require("training_set", day), staging, Path(model)),
        on_day=on_day,
    )


def finished(lake: Lake, day: str, *, model: str) -> Manifest | None:
    """The day's predictions, if nothing changed since. Raises MissingPartitionError, and ModelError."""
    return lake.finished(DATASET, day, _inputs(lake, day, model), PREDICTIONS_VERSION)


def _inputs(lake: Lake, day: str, model: str) -> dict[str, str]:
    return {"model": Model.load(model).version, "training_set": lake.require("training_set", day).version}


def predictions(spark: SparkSession, training_set: Manifest, staging: Staging, model: Path) -> DataFrame:
    """The job that stages a day's predictions and returns REPORT rows."""
    onnx, description = (model / ONNX_FILE).read_bytes(), Model.load(model).description
    parts = len(training_set.files)

    def stage(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        model = Model(onnx, description)
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            installs = 0
            with staging.part(BATCH_PREDICTIONS, number) as part:
                for rows in staging.lake.read_part(training_set, number, [*_CLICK, *FEATURES[4:], "is_attributed"]):
                    features = np.stack([column(rows, name) for name in FEATURES], axis=1).astype(np.float32)
                    probability = pa.array(model.probability(features))
                    columns = [*(rows.column(name) for name in _CLICK), probability]
                    part.write_rows(pa.record_batch(columns, schema=BATCH_PREDICTIONS))
                    installs += int(np.count_nonzero(column(rows, "is_attributed")))
            yield report(part.staged, installs)

    return spark.range(0, parts, 1, parts).mapInArrow(stage, REPORT)


def upload(storage: Storage, folder: Path, to: str) -> None:
    """Copies a model folder to keys below `to`, for an application that runs elsewhere."""
    for file in MODEL_FILES:
        with storage.open_output(f"{to}/{file}") as target:
            target.write((folder / file).read_bytes())


@contextmanager
def local_folder(model: str) -> Iterator[Path]:
    """The model folder `model` itself or, if it is an address like s3://bucket/prefix, a copy for the block."""
    if "://" not in model:
        yield Path(model)
        return
    storage = open_storage(model)
    with TemporaryDirectory(prefix="mlops-assets-model-") as folder:
        for file in MODEL_FILES:
            with storage.open_input(file) as source:
                Path(folder, file).write_bytes(source.read())
        yield Path(folder)


if __name__ == "__main__":
    parser = arguments(DATASET)
    parser.add_argument("--model", required=True, help="model folder, or its address like s3://bucket/prefix")
    options = parser.parse_args()
    with local_folder(options.model) as folder, session(DATASET, options.lake) as spark:
        run(spark, options.lake, options.days.split(","), say, model=str(folder))
