from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import session
from mlops_assets.modelling.candidates import CANDIDATES, fit
from mlops_assets.modelling.onnx import ParityError, check_parity, export
from mlops_assets_tests.modelling.windows import day, window


@pytest.fixture(scope="module", params=list(CANDIDATES))
def fitted(request: pytest.FixtureRequest) -> Pipeline:
    data = window(4_000)
    return fit(request.param, data.features, data.label, seed=0)


@pytest.mark.parametrize("negative_rate", [1.0, 0.05])
def test_onnx_computes_what_scikit_learn_computes_with_the_odds_corrected(
    fitted: Pipeline, negative_rate: float
) -> None:
    features, _ = day(3_000, 3, seed=77)
    features[:1_000, 0] = 60_000  # an app nobody saw, beyond every table
    features[500:1_500, 1] = 60
    features[:200, 4] = 23
    features[:50, 6:] = 16_000_000
    onnx = export(fitted, negative_rate)
    (probability,) = session(onnx).run(["probability"], {"features": features})
    assert probability.dtype == np.float32
    assert probability.shape == (3_000,)
    sampled = fitted.predict_proba(features)[:, 1]
    odds = sampled / (1 - sampled) * negative_rate
    assert probability == pytest.approx(odds / (1 + odds), rel=1e-4, abs=1e-6)
    assert check_parity(onnx, fitted, features, negative_rate) < 1e-5


def test_every_id_between_the_known_ones_is_scored_like_an_unknown_one(fitted: Pipeline) -> None:
    rows = np.ones((70, len(FEATURES)), dtype=np.float32)
    rows[:, 0] = np.arange(70)  # the window has apps 0 to 39
    (probability,) = session(export(fitted, 1.0)).run(["probability"], {"features": rows})
    assert probability == pytest.approx(fitted.predict_proba(rows)[:, 1], rel=1e-4, abs=1e-6)
    assert len(set(probability[40:].tolist())) == 1


def test_a_model_that_differs_is_refused_with_the_click_and_both_answers(fitted: Pipeline) -> None:
    features, _ = day(200, 0, seed=3)
    with pytest.raises(ParityError, match=r"ONNX gives .*, scikit-learn .* for \{'app': .*lock file"):
        check_parity(export(fitted, 0.5), fitted, features, 1.0)


_PRINT_HASHES = """
import hashlib
from mlops_assets.modelling.candidates import CANDIDATES, fit
from mlops_assets.modelling.onnx import export
from mlops_assets_tests.modelling.windows import window
data = window(1_500)
for name in CANDIDATES:
    print(hashlib.sha256(export(fit(name, data.features, data.label, seed=0), 0.3)).hexdigest())
"""


def test_the_files_are_small_and_the_same_in_another_process_with_other_threads() -> None:
    data = window(1_500)
    files = [export(fit(name, data.features, data.label, seed=0), 0.3) for name in CANDIDATES]
    assert max(map(len, files)) < 1_000_000
    command = [sys.executable, "-c", _PRINT_HASHES]
    environment = os.environ | {"OMP_NUM_THREADS": "3"}  # as on a machine of three cores
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=environment)
    assert other.stdout.split() == [hashlib.sha256(file).hexdigest() for file in files]
