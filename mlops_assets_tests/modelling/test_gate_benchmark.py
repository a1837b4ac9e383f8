from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import gate


def test_the_simulated_models_have_the_stated_aucs_and_correlation() -> None:
    label, candidate, champion = gate.holdout(2_000_000, 0.01, 0.9, np.random.default_rng(1))
    assert roc_auc_score(label, champion) == pytest.approx(gate.CHAMPION_AUC, abs=0.004)
    assert roc_auc_score(label, candidate) == pytest.approx(gate.CHAMPION_AUC + 0.01, abs=0.004)
    assert np.corrcoef(candidate[~label], champion[~label]).flat[1] == pytest.approx(0.9, abs=0.01)


def test_the_benchmark_writes_the_figures_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gate.json"
    gate.main(["--clicks", "2000", "--equal-pairs", "3", "--pairs", "2", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["false_promotions"].keys() == {"t_test", "gate"}
    assert figures["power"].keys() == {"0.002", "0.005", "0.01"}
    assert all(0 <= share <= 1 for gain in figures["power"].values() for share in gain.values())
    assert "equal models" in capsys.readouterr().out
