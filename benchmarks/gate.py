"""False promotions and power of the gate, against the plain t-test on bootstrap replicates.

Simulated pairs of models score the same clicks, with the install rate of TalkingData. Candidate and champion see the
same signal, each with noise of its own, so their scores correlate as those of two models trained on overlapping
windows do. At a gain of 0 both have the same expected AUC, and every promotion is a false one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest, norm

from mlops_assets.modelling.promotion import Verdict, judge

ALPHA: Final = 0.05
INSTALL_RATE: Final = 0.0025
CHAMPION_AUC: Final = 0.96
GAINS: Final = (0.0, 0.002, 0.005, 0.01)


def separation(auc: float) -> float:
    """Distance of the two classes' means, in standard deviations, of a binormal score of this AUC."""
    return float(np.sqrt(2) * norm.ppf(auc))


def holdout(
    clicks: int, gain: float, correlation: float, random: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Labels, candidate's and champion's scores, each (clicks,). Within a class the scores are normal, correlated."""
    label = random.random(clicks) < INSTALL_RATE
    label[:2], label[2:4] = True, False
    common = np.sqrt(correlation) * random.standard_normal(clicks)
    own = np.sqrt(1 - correlation) * random.standard_normal((2, clicks))
    candidate, champion = (
        common + noise + separation(auc) * label
        for noise, auc in zip(own, (CHAMPION_AUC + gain, CHAMPION_AUC), strict=True)
    )
    return label, candidate, champion


def t_test_promotes(verdict: Verdict) -> bool:
    """What the original system would have done."""
    assert verdict.p_ttest is not None
    assert verdict.candidate_auc is not None
    assert verdict.champion_auc is not None
    return verdict.p_ttest < ALPHA and verdict.candidate_auc > verdict.champion_auc


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--clicks", type=int, default=100_000, help="clicks of a holdout (default %(default)s)")
    parser.add_argument("--equal-pairs", type=int, default=800, help="pairs of equal models (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=150, help="pairs for each gain in AUC (default %(default)s)")
    parser.add_argument("--correlation", type=float, default=0.9, help="of the scores within a class (default 0.9)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".bench/gate.json"))
    options = parser.parse_args(arguments)

    console = Console()
    started = time.perf_counter()
    table = Table(
        "gain in AUC", "pairs", "t-test alone promotes", "our gate promotes", title=f"{options.clicks:,} clicks"
    )
    shares: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for index, gain in enumerate(GAINS):
        pairs = options.pairs if gain else options.equal_pairs
        promoted = {"t_test": 0, "gate": 0}
        for pair in track(range(pairs), description=f"gain {gain}", console=console, transient=True):
            random = np.random.default_rng([options.seed, index, pair])
            label, candidate, champion = holdout(options.clicks, gain, options.correlation, random)
            verdict = judge(label, candidate, champion, floor=0.5, alpha=ALPHA, seed=pair)
            promoted["t_test"] += t_test_promotes(verdict)
            promoted["gate"] += verdict.promoted
        cells = []
        for name, count in promoted.items():
            interval = binomtest(count, pairs).proportion_ci(0.95, method="wilson")
            shares.setdefault(str(gain), {})[name] = count / pairs
            intervals.setdefault(str(gain), {})[name] = [round(interval.low, 4), round(interval.high, 4)]
            cells.append(f"{count / pairs:6.1%}  ({interval.low:.1%} to {interval.high:.1%})")
        table.add_row("none: equal models" if not gain else f"{gain:+}", str(pairs), *cells)
    console.print(table)
    console.print(f"95 % intervals by Wilson; alpha {ALPHA}; {time.perf_counter() - started:.0f} s")

    no_gain, *gains = (str(gain) for gain in GAINS)
    result = {
        "false_promotions": shares[no_gain],
        "power": {gain: shares[gain] for gain in gains},
        "intervals": {"false_promotions": intervals[no_gain], "power": {gain: intervals[gain] for gain in gains}},
        "settings": {
            "clicks": options.clicks,
            "install_rate": INSTALL_RATE,
            "champion_auc": CHAMPION_AUC,
            "correlation": options.correlation,
            "equal_pairs": options.equal_pairs,
            "pairs": options.pairs,
            "alpha": ALPHA,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
