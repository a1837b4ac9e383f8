from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gate import clustered_holdout
from mlops_assets.modelling.promotion import Gate, judge

Scores = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def scores(gain: float, seed: int = 0, n: int = 20_000) -> Scores:
    """Labels, a candidate's and a champion's scores, and ips, each of a few clicks."""
    random = np.random.default_rng(seed)
    label = random.random(n) < 0.02
    shared = random.normal(size=n) + 1.5 * label
    candidate, champion = shared + gain * label + 0.3 * random.normal(size=n), shared + 0.3 * random.normal(size=n)
    return label, candidate, champion, random.integers(0, n // 3, n)


def test_a_clearly_better_candidate_is_promoted_with_every_number() -> None:
    label, candidate, champion, ip = scores(gain=1.0)
    verdict = judge(label, candidate, champion, ip, Gate())
    assert verdict.promoted
    assert verdict.candidate_auc is not None
    assert verdict.champion_auc is not None
    assert verdict.candidate_auc > verdict.champion_auc
    assert verdict.interval is not None
    assert verdict.interval[0] > 0
    assert verdict.ips == len(np.unique(ip))
    assert verdict.install_ips == len(np.unique(ip[label]))
    assert json.loads(json.dumps(verdict.as_dict()))["p_paired"] < 1e-6


def test_a_worse_one_is_not_and_the_reason_names_each_objection() -> None:
    label, candidate, champion, ip = scores(gain=1.0)
    verdict = judge(label, champion, candidate, ip, Gate(floor=0.99))
    assert not verdict.promoted
    for words in (
        "below the floor 0.99",
        "below the minimum",
        "t-test",
        "paired test over ips",
        "interval of its gain",
    ):
        assert words in verdict.reason


def test_a_t_test_alone_does_not_promote() -> None:
    verdicts = [judge(*scores(gain=0.0, seed=seed, n=4_000), Gate(floor=0.5)) for seed in range(40)]
    t_test = [
        v
        for v in verdicts
        if v.p_ttest is not None and v.p_ttest < 0.05 and (v.candidate_auc or 0) > (v.champion_auc or 0)
    ]
    assert len(t_test) > 4, "the plain test promotes equal models far more often than its alpha of 0.05"
    assert sum(v.promoted for v in verdicts) <= 5, "40 trials at 0.05 exceed 5 once in 70"


def test_equal_models_whose_errors_are_shared_within_heavy_ips_are_promoted_as_rarely_as_alpha_says() -> None:
    gate = Gate(floor=0.5, minimum_gain=0)
    promoted = 0
    for seed in range(100):
        label, candidate, champion, ip = clustered_holdout(3_000, 50, 1.2, np.random.default_rng([3, seed]))
        promoted += judge(label, candidate, champion, ip, gate, seed=seed).promoted
    assert promoted <= 10, "100 trials at 0.05 exceed 10 once in 90; taking clicks for independent promotes thrice that"


def test_a_sure_but_tiny_gain_is_not_worth_a_roll() -> None:
    label, candidate, champion, ip = scores(gain=0.06, n=100_000)
    refused = judge(label, candidate, champion, ip, Gate(minimum_gain=0.02))
    assert not refused.promoted
    assert refused.p_paired is not None
    assert refused.p_paired < 1e-4, "it is better beyond doubt"
    assert "below the minimum of 0.02" in refused.reason
    assert judge(label, candidate, champion, ip, Gate(minimum_gain=0)).promoted


def test_the_champion_itself_is_no_better_than_itself() -> None:
    label, candidate, _, ip = scores(gain=0.5)
    verdict = judge(label, candidate, candidate, ip, Gate(floor=0.5, minimum_gain=0))
    assert not verdict.promoted
    assert (verdict.p_ttest, verdict.p_paired, verdict.interval) == (1.0, 1.0, (0.0, 0.0))


def test_the_first_champion_needs_the_floor_only() -> None:
    label, candidate, _, ip = scores(gain=0.5)
    assert judge(label, candidate, None, ip, Gate()).promoted
    refused = judge(label, candidate, None, ip, Gate(floor=0.999))
    assert not refused.promoted
    assert "below the floor" in refused.reason


@pytest.mark.parametrize("constant", [0, 1])
def test_a_day_with_one_kind_of_click_promotes_nobody(constant: int) -> None:
    verdict = judge(np.full(100, constant), np.linspace(0, 1, 100), None, np.arange(100), Gate(floor=0.5))
    assert not verdict.promoted
    assert "needs both kinds" in verdict.reason
    assert verdict.candidate_auc is None


def perfect_day(install_ip: list[int], n: int = 1_000) -> Scores:
    """A candidate that ranks every install first, and a champion that guesses; one install of each given ip."""
    label, ip = np.zeros(n, dtype=bool), np.arange(n) + 1_000
    label[: len(install_ip)] = True
    ip[: len(install_ip)] = install_ip
    return label, label.astype(float), np.random.default_rng(1).random(n), ip


@pytest.mark.parametrize(
    ("install_ip", "why"), [([5], "a single install"), ([5] * 40, "one ip has all installs, however many")]
)
def test_installs_of_a_single_ip_are_no_evidence(install_ip: list[int], why: str) -> None:
    verdict = judge(*perfect_day(install_ip), Gate(floor=0.5))
    assert not verdict.promoted, why
    assert verdict.p_paired is None
    assert "installs from 1: too few" in verdict.reason
    assert "paired test over ips" not in verdict.reason
    assert judge(*perfect_day([*range(40)]), Gate(floor=0.5)).promoted, "of 40 ips they are"


def test_a_day_of_a_single_ip_is_no_evidence() -> None:
    label, candidate, champion, _ = scores(gain=1.0)
    verdict = judge(label, candidate, champion, np.full(len(label), 9), Gate(floor=0.5))
    assert not verdict.promoted
    assert "its clicks come from 1 ips" in verdict.reason


def test_models_that_give_a_constant_are_judged_too() -> None:
    label, candidate, _, ip = scores(gain=0.5)
    constant = np.full(len(label), 0.5)
    assert not judge(label, constant, constant, ip, Gate(floor=0.5)).promoted
    assert not judge(label, constant, candidate, ip, Gate(floor=0.5)).promoted
    assert judge(label, candidate, constant, ip, Gate(floor=0.5)).promoted


def test_the_same_seed_gives_the_same_verdict() -> None:
    day = scores(gain=0.1)
    assert judge(*day, Gate(), seed=3) == judge(*day, Gate(), seed=3)


def test_scores_that_are_no_numbers_and_ips_that_are_missing_are_refused() -> None:
    label, candidate, champion, ip = scores(gain=0.1)
    with pytest.raises(ValueError, match="one ip per click"):
        judge(label, candidate, champion, ip[1:], Gate())
    champion[5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        judge(label, candidate, champion, ip, Gate())


def test_the_settings_come_from_the_environment_and_a_wrong_one_is_named() -> None:
    assert Gate.from_environment({}) == Gate()
    found = Gate.from_environment(
        {"MLOPS_GATE_ALPHA": "0.01", "MLOPS_GATE_MINIMUM_GAIN": "", "MLOPS_GATE_FLOOR": "0.9"}
    )
    assert found == Gate(alpha=0.01, floor=0.9)
    with pytest.raises(ValueError, match="MLOPS_GATE_ALPHA is 'five', must be a number"):
        Gate.from_environment({"MLOPS_GATE_ALPHA": "five"})
    with pytest.raises(ValueError, match="alpha is 5"):
        Gate.from_environment({"MLOPS_GATE_ALPHA": "5"})
    with pytest.raises(ValueError, match="floor is nan"):
        Gate.from_environment({"MLOPS_GATE_FLOOR": "nan"})
