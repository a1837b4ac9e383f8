from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import Model, ModelError
from mlops_assets.modelling.training import Candidate, train_candidate
from mlops_assets_tests.modelling.windows import day, window


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    return train_candidate(window(3_000), day="2017-11-08", trained_on=["2017-11-06", "2017-11-07"])


@pytest.fixture
def folder(candidate: Candidate, tmp_path: Path) -> Path:
    candidate.write(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(description))


def test_a_folder_answers_as_the_candidate_in_memory(candidate: Candidate, folder: Path) -> None:
    model = Model.load(folder)
    assert model.version == candidate.version
    assert model.threshold == candidate.description["threshold"]
    features, _ = day(500, 0, seed=4)
    probability = model.probability(features)
    assert probability.dtype == np.float32
    assert np.array_equal(probability, candidate.model.probability(features))
    assert model.probability(features[:0]).shape == (0,)


def test_the_answer_to_a_click_does_not_depend_on_its_batch(candidate: Candidate) -> None:
    features, _ = day(70_000, 0, seed=4)
    whole = candidate.model.probability(features)
    assert len(whole) == 70_000
    assert whole[-3:] == pytest.approx(candidate.model.probability(features[-3:]), rel=1e-6)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere is no model folder: No such file.*model\.onnx"):
        Model.load(tmp_path / "nowhere")
    (folder / "model.json").unlink()
    with pytest.raises(ModelError, match=r"No such file.*model\.json"):
        Model.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"version": 3}'])
def test_a_description_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json"):
        Model.load(folder)


def test_a_truncated_or_swapped_onnx_file_is_refused(folder: Path, tmp_path: Path) -> None:
    onnx = (folder / "model.onnx").read_bytes()
    train_candidate(window(3_000, seed=9), day="2017-11-08", trained_on=["2017-11-07"]).write(tmp_path / "other")
    (folder / "model.onnx").write_bytes((tmp_path / "other" / "model.onnx").read_bytes())
    with pytest.raises(ModelError, match="golden row"):
        Model.load(folder)
    (folder / "model.onnx").write_bytes(onnx[: len(onnx) // 2])
    with pytest.raises(ModelError, match=r"onnxruntime can't read model\.onnx"):
        Model.load(folder)


def test_other_features_are_refused(folder: Path) -> None:
    rewrite(folder, features=[*FEATURES[:-1], "ip_week"])
    with pytest.raises(ModelError, match=r"trained on features .*ip_week.*train a model with this version"):
        Model.load(folder)


def test_a_golden_row_with_another_answer_is_refused(candidate: Candidate, folder: Path) -> None:
    golden = candidate.description["golden"]
    rewrite(folder, golden={**golden, "probability": [golden["probability"][0] * 1.01, *golden["probability"][1:]]})
    with pytest.raises(ModelError, match="golden row 0 gets"):
        Model.load(folder)


@pytest.mark.parametrize(
    "golden", [{}, {"features": [], "probability": []}, {"features": [[1, 2]], "probability": [1]}]
)
def test_golden_rows_that_can_not_be_scored_are_refused(folder: Path, golden: dict[str, Any]) -> None:
    rewrite(folder, golden=golden)
    with pytest.raises(ModelError, match="golden"):
        Model.load(folder)


def test_loading_a_model_needs_no_training_library(folder: Path) -> None:
    code = (
        "import sys; from mlops_assets.inference.model import Model; Model.load(sys.argv[1])\n"
        "print({'sklearn', 'scipy', 'onnx', 'mlflow', 'dagster', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "set()"
