"""A pod refuses a model folder that it cannot serve, and says why."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import Model, ModelError
from mlops_assets_tests.inference.tiny_model import sigmoid, write_model


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = json.loads((folder / "model.json").read_text()) | changes
        (folder / "model.json").write_text(json.dumps({k: v for k, v in text.items() if v is not None}))

    return change


GOLDEN = {"features": [[0.0] * len(FEATURES)], "probability": [0.9]}
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "No such file"),
    "no onnx": (lambda folder: (folder / "model.onnx").unlink(), "No such file.*model.onnx"),
    "truncated onnx": (lambda folder: os.truncate(folder / "model.onnx", 99), "can't read model.onnx"),
    "empty onnx": (lambda folder: (folder / "model.onnx").write_bytes(b""), "model.onnx"),
    "truncated json": (lambda folder: (folder / "model.json").write_text('{"version"'), "model.json is not JSON"),
    "json of another kind": (lambda folder: (folder / "model.json").write_text("[]"), "holds no JSON object"),
    "no version": (edit(version=None), "no usable 'version'"),
    "other features": (edit(features=["ip"]), "trained on features"),
    "other answers": (edit(golden=GOLDEN), "golden row 0 gets"),
    "no golden rows": (edit(golden={"features": [], "probability": []}), "0 golden probabilities"),
    "threshold of another type": (edit(threshold="high"), "no usable 'threshold'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path: Path, fault: str) -> None:
    damage, reason = FAULTS[fault]
    damage(write_model(tmp_path / "model"))
    with pytest.raises(ModelError, match=reason):
        Model.load(tmp_path / "model")


def test_a_model_answers_as_its_formula(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).uniform(0, 100, (50, len(FEATURES))).astype(np.float32)
    model = Model.load(write_model(tmp_path, version="v", threshold=0.25))
    assert model.probability(rows) == pytest.approx(sigmoid(rows), abs=1e-6)
    assert (model.version, model.threshold) == ("v", 0.25)
