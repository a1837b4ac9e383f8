from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import gate


def test_the_simulated_models_have_the_stated_aucs_and_correlation() -> None:
    label, candidate, champion, _ = gate.holdout(1_000_000, 0.01, 0.9, np.random.default_rng(1))
    assert roc_auc_score(label, champion) == pytest.approx(gate.CHAMPION_AUC, abs=0.005)
    assert roc_auc_score(label, candidate) == pytest.approx(gate.CHAMPION_AUC + 0.01, abs=0.005)
    assert np.corrcoef(candidate[~label], champion[~label]).flat[1] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("zipf", "share"), [(1.0, 0.11), (1.2, 0.21)])
def test_the_clustered_worlds_have_the_stated_aucs_and_heaviest_ip(zipf: float, share: float) -> None:
    label, candidate, champion, ip = gate.clustered_holdout(
        400_000, 50_000, zipf, np.random.default_rng(1), gain=0.01, correlation=0.999
    )
    assert roc_auc_score(label, champion) == pytest.approx(gate.CHAMPION_AUC, abs=0.003)
    assert roc_auc_score(label, candidate) == pytest.approx(gate.CHAMPION_AUC + 0.01, abs=0.003)
    assert np.bincount(ip).max() / len(ip) == pytest.approx(share, abs=0.01)
    label, candidate, champion, ip = gate.clustered_holdout(400_000, 1_000, zipf, np.random.default_rng(2))
    error = (candidate - champion)[~label]
    of_busiest = error[ip[~label] == np.bincount(ip).argmax()]
    assert of_busiest.std() == pytest.approx(0, abs=1e-9), "an error is shared by all clicks of an ip"
    assert np.unique(error).size > gate.IPS / 2


def test_the_benchmark_writes_the_figures_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gate.json"
    sizes = ["--clicks", "2000", "--clustered-clicks", "3000", "--equal-pairs", "3", "--pairs", "2"]
    gate.main([*sizes, "--processes", "1", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["false_promotions"].keys() == {"t_test", "delong", "gate"}
    assert figures["power"].keys() == {"0.002", "0.005", "0.01"}
    clustered = figures["false_promotions_clustered"]
    assert clustered.keys() == {"t_test", "delong", "gate"}
    assert all(found.keys() == {"Zipf 1.0", "Zipf 1.2"} for found in clustered.values())
    assert figures["power_clustered"]["Zipf 1.2"].keys() == {"0.005", "0.01", "0.02"}
    assert all(0 <= share <= 1 for gain in figures["power"].values() for share in gain.values())
    assert "equal models" in capsys.readouterr().out
