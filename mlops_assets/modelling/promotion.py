"""The gate: whether a candidate replaces the champion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.modelling.evaluation import Ranking, bootstrap_auc, checked
from mlops_assets.modelling.paired import numbered, paired_gain

GATE_VERSION: Final = "2"
"""Raise it when the gate would judge the same clicks otherwise."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything that a verdict depends on but its clicks and models.

    `floor` is the least AUC of any champion, `minimum_gain` the least gain in AUC that is worth a roll of the fleet,
    however sure it is, and `alpha` how often an equally good model may be promoted. Raises ValueError naming a setting
    outside its range.
    """

    floor: float = 0.8
    minimum_gain: float = 0.001
    alpha: float = 0.05
    version: str = GATE_VERSION

    def __post_init__(self) -> None:
        for name, low, high in (("floor", 0, 1), ("minimum_gain", 0, 1), ("alpha", 0, 0.5)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"the gate's {name} is {value}, must be from {low} to {high}")

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Self:
        """MLOPS_GATE_FLOOR, MLOPS_GATE_MINIMUM_GAIN and MLOPS_GATE_ALPHA, each by default as above if empty or unset.

        Raises ValueError naming a variable that is no number, or a setting outside its range.
        """
        found: dict[str, Any] = {}
        for name in (field.name for field in fields(cls) if field.name != "version"):
            variable = f"MLOPS_GATE_{name.upper()}"
            if value := env.get(variable):
                try:
                    found[name] = float(value)
                except ValueError:
                    raise ValueError(f"{variable} is {value!r}, must be a number") from None
        return cls(**found)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a candidate and every number behind it; a number that is not defined is None.

    `candidate_auc` and `champion_auc` are means over the bootstrap replicates; `interval` bounds the gain in AUC,
    candidate over champion, with a confidence of 1 - 2 alpha, so that its lower end is a one-sided bound at alpha.
    `ips` is how many ips the clicks come from, `install_ips` how many those that led to an install.
    """

    promoted: bool
    reason: str
    clicks: int
    installs: int
    ips: int | None = None
    install_ips: int | None = None
    candidate_auc: float | None = None
    champion_auc: float | None = None
    p_ttest: float | None = None
    p_paired: float | None = None
    interval: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def t_test_promotes(candidate: NDArray[np.float64], champion: NDArray[np.float64], alpha: float) -> tuple[bool, float]:
    """The original system's gate: a two-sample t-test on bootstrap replicates, and its p-value.

    No gate alone: its sample size is the number of replicates, which says nothing about the number of clicks.
    """
    if np.array_equal(candidate, champion):
        return False, 1.0  # ttest_ind would answer NaN for two constants
    from scipy.stats import ttest_ind  # it takes seconds, in every process that has the graph

    p = float(ttest_ind(candidate, champion).pvalue)
    return p < alpha and bool(candidate.mean() > champion.mean()), p


def judge(
    label: ArrayLike,
    candidate: ArrayLike,
    champion: ArrayLike | None,
    ip: ArrayLike,
    gate: Gate,
    *,
    seed: int = 0,
) -> Verdict:
    """Judges a candidate's probabilities against the champion's on the same n clicks, which `ip` (n,) made.

    Promoted is a candidate whose mean bootstrap ROC-AUC reaches the floor, and which is better than the champion, if
    there is one, by the minimum gain, the t-test on the replicates, the one-sided paired test and the paired bootstrap
    interval; the last two over ips. A sample with thinned-out negatives is judged as it is: see `auc`. Raises
    ValueError for probabilities that are not finite or not one per click, and for other than one ip per click.
    """
    labels, candidate_score = checked(label, candidate)
    cluster = numbered(ip)
    if cluster.shape != labels.shape:
        raise ValueError(f"{labels.shape} labels and {cluster.shape} ips; want one ip per click")
    clicks, installs = len(labels), int(np.count_nonzero(labels))
    ips, install_ips = len(np.unique(cluster)), len(np.unique(cluster[labels]))

    def verdict(promoted: bool, reason: str, **numbers: Any) -> Verdict:
        return Verdict(promoted, reason, clicks, installs, ips, install_ips, **numbers)

    if installs in (0, clicks):
        return verdict(False, f"{installs} of {clicks} clicks led to an install: ROC-AUC needs both kinds of click")
    ranking = Ranking.of(labels, candidate_score)
    if champion is None:
        mean = float(bootstrap_auc([ranking], seed).mean())
        if mean < gate.floor:
            return verdict(False, f"AUC {mean:.4f} is below the floor {gate.floor}", candidate_auc=mean)
        return verdict(True, f"the first champion: AUC {mean:.4f} reaches the floor {gate.floor}", candidate_auc=mean)

    champion_ranking = Ranking.of(labels, checked(label, champion)[1])
    rankings = [ranking, champion_ranking]
    replicates = bootstrap_auc(rankings, seed)
    better, p_ttest = t_test_promotes(replicates[:, 0], replicates[:, 1], gate.alpha)
    p_paired = paired_gain(ranking, champion_ranking, labels, cluster).p_value
    resampled = bootstrap_auc(rankings, seed, cluster=cluster)
    low, high = np.quantile(resampled[:, 0] - resampled[:, 1], [gate.alpha, 1 - gate.alpha])
    means = replicates.mean(axis=0)
    gain = means[0] - means[1]
    undefined = f"its clicks come from {ips} ips, its installs from {install_ips}: too few to tell a gain from luck"
    objections = [
        objection
        for holds, objection in (
            (means[0] >= gate.floor, f"AUC {means[0]:.4f} is below the floor {gate.floor}"),
            (gain >= gate.minimum_gain, f"a gain of {gain:+.4f} AUC is below the minimum of {gate.minimum_gain}"),
            (better, f"the t-test on the replicates does not find it better (p {p_ttest:.3g})"),
            (not np.isnan(p_paired), undefined),
            (not p_paired >= gate.alpha, f"the paired test over ips does not find it better (p {p_paired:.3g})"),
            (low > 0, f"the interval of its gain, {low:+.4f} to {high:+.4f}, is not above 0"),
        )
        if not holds
    ]
    return verdict(
        not objections,
        "; ".join(objections) or f"better than the champion by {gain:.4f} AUC: all tests agree",
        candidate_auc=float(means[0]),
        champion_auc=float(means[1]),
        p_ttest=p_ttest,
        p_paired=None if np.isnan(p_paired) else p_paired,
        interval=(float(low), float(high)),
    )
