"""The gate: whether a candidate replaces the champion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_ind

from mlops_assets.modelling.evaluation import bootstrap_auc, checked, p_better


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a candidate and every number behind it; a number that is not defined is None.

    `candidate_auc` and `champion_auc` are means over the bootstrap replicates; `interval` bounds the gain in AUC,
    candidate over champion, with a confidence of 1 - 2 alpha, so that its lower end is a one-sided bound at alpha.
    """

    promoted: bool
    reason: str
    clicks: int
    installs: int
    floor: float
    alpha: float
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
    p = float(ttest_ind(candidate, champion).pvalue)
    return p < alpha and bool(candidate.mean() > champion.mean()), p


def judge(
    label: ArrayLike,
    candidate: ArrayLike,
    champion: ArrayLike | None,
    *,
    floor: float,
    alpha: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """Judges a candidate's probabilities against the champion's on the same n clicks.

    Promoted is a candidate whose mean bootstrap ROC-AUC reaches the floor, and which is better than the champion, if
    there is one, by the t-test on the replicates, DeLong's one-sided paired test and the paired bootstrap interval.
    Raises ValueError for probabilities that are not finite or not one per click.
    """
    labels, candidate_score = checked(label, candidate)
    clicks, installs = len(labels), int(np.count_nonzero(labels))

    def verdict(promoted: bool, reason: str, **numbers: Any) -> Verdict:
        return Verdict(promoted, reason, clicks, installs, floor, alpha, **numbers)

    if installs in (0, clicks):
        return verdict(False, f"{installs} of {clicks} clicks led to an install: ROC-AUC needs both kinds of click")
    if champion is None:
        mean = float(bootstrap_auc(labels, [candidate_score], seed).mean())
        if mean < floor:
            return verdict(False, f"AUC {mean:.4f} is below the floor {floor}", candidate_auc=mean)
        return verdict(True, f"the first champion: AUC {mean:.4f} reaches the floor {floor}", candidate_auc=mean)

    _, champion_score = checked(label, champion)
    replicates = bootstrap_auc(labels, [candidate_score, champion_score], seed)
    better, p_ttest = t_test_promotes(replicates[:, 0], replicates[:, 1], alpha)
    p_paired = p_better(labels, candidate_score, champion_score)
    low, high = np.quantile(replicates[:, 0] - replicates[:, 1], [alpha, 1 - alpha])
    means = replicates.mean(axis=0)
    objections = [
        objection
        for holds, objection in (
            (means[0] >= floor, f"AUC {means[0]:.4f} is below the floor {floor}"),
            (better, f"the t-test on the replicates does not find it better (p {p_ttest:.3g})"),
            (p_paired < alpha, f"DeLong's paired test does not find it better (p {p_paired:.3g})"),
            (low > 0, f"the interval of its gain, {low:+.4f} to {high:+.4f}, is not above 0"),
        )
        if not holds
    ]
    return verdict(
        not objections,
        "; ".join(objections) or f"better than the champion by {means[0] - means[1]:.4f} AUC: all tests agree",
        candidate_auc=float(means[0]),
        champion_auc=float(means[1]),
        p_ttest=p_ttest,
        p_paired=None if np.isnan(p_paired) else p_paired,
        interval=(float(low), float(high)),
    )
