from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from mlops_assets.modelling.promotion import judge


def scores(
    gain: float, seed: int = 0, n: int = 20_000
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    label = random.random(n) < 0.02
    shared = random.normal(size=n) + 1.5 * label
    return label, shared + gain * label + 0.3 * random.normal(size=n), shared + 0.3 * random.normal(size=n)


def test_a_clearly_better_candidate_is_promoted_with_every_number() -> None:
    label, candidate, champion = scores(gain=1.0)
    verdict = judge(label, candidate, champion, floor=0.8)
    assert verdict.promoted
    assert verdict.candidate_auc is not None
    assert verdict.champion_auc is not None
    assert verdict.candidate_auc > verdict.champion_auc
    assert verdict.interval is not None
    assert verdict.interval[0] > 0
    assert json.loads(json.dumps(verdict.as_dict()))["p_paired"] < 1e-6


def test_a_worse_one_is_not_and_the_reason_names_each_objection() -> None:
    label, candidate, champion = scores(gain=1.0)
    verdict = judge(label, champion, candidate, floor=0.99)
    assert not verdict.promoted
    for words in ("below the floor 0.99", "t-test", "DeLong", "interval of its gain"):
        assert words in verdict.reason


def test_a_t_test_alone_does_not_promote() -> None:
    verdicts = [judge(*scores(gain=0.0, seed=seed, n=4_000), floor=0.5) for seed in range(40)]
    t_test = [
        v
        for v in verdicts
        if v.p_ttest is not None and v.p_ttest < 0.05 and (v.candidate_auc or 0) > (v.champion_auc or 0)
    ]
    assert len(t_test) > 4, "the plain test promotes equal models far more often than its alpha of 0.05"
    assert sum(v.promoted for v in verdicts) <= 5, "40 trials at 0.05 exceed 5 once in 70"


def test_the_champion_itself_is_no_better_than_itself() -> None:
    label, candidate, _ = scores(gain=0.5)
    verdict = judge(label, candidate, candidate, floor=0.5)
    assert not verdict.promoted
    assert (verdict.p_ttest, verdict.p_paired, verdict.interval) == (1.0, 1.0, (0.0, 0.0))


def test_the_first_champion_needs_the_floor_only() -> None:
    label, candidate, _ = scores(gain=0.5)
    assert judge(label, candidate, None, floor=0.8).promoted
    refused = judge(label, candidate, None, floor=0.999)
    assert not refused.promoted
    assert "below the floor" in refused.reason


@pytest.mark.parametrize("constant", [0, 1])
def test_a_day_with_one_kind_of_click_promotes_nobody(constant: int) -> None:
    verdict = judge(np.full(100, constant), np.linspace(0, 1, 100), None, floor=0.5)
    assert not verdict.promoted
    assert "needs both kinds" in verdict.reason
    assert verdict.candidate_auc is None


def test_a_single_install_is_no_evidence() -> None:
    label = np.zeros(1_000)
    label[10] = 1
    candidate, champion = np.zeros(1_000), np.zeros(1_000)
    candidate[10], champion[:500] = 1, 1
    verdict = judge(label, candidate, champion, floor=0.5)
    assert not verdict.promoted
    assert verdict.p_paired is None


def test_the_same_seed_gives_the_same_verdict() -> None:
    label, candidate, champion = scores(gain=0.1)
    assert judge(label, candidate, champion, floor=0.5, seed=3) == judge(label, candidate, champion, floor=0.5, seed=3)


def test_scores_that_are_no_numbers_are_refused() -> None:
    label, candidate, champion = scores(gain=0.1)
    champion[5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        judge(label, candidate, champion, floor=0.5)
