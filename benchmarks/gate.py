"""False promotions and power of the gate, against the plain t-test on bootstrap replicates and DeLong's test.

Simulated pairs of models score the same clicks, with the install rate of TalkingData. Candidate and champion see the
same signal, each with noise of its own, so their scores correlate as those of two models trained on overlapping
windows do. At a gain of 0 both have the same expected AUC, and every promotion is a false one; the gate's minimum gain
is 0 there, so that its statistics have to hold alpha by themselves.

In one world every click is an ip of its own. In the clustered ones clicks come from 5,000 ips by Zipf's law, and a
model's noise is shared by all clicks of an ip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest, norm

from mlops_assets.modelling.evaluation import Ranking
from mlops_assets.modelling.paired import paired_gain
from mlops_assets.modelling.promotion import Gate, judge

ALPHA: Final = 0.05
INSTALL_RATE: Final = 0.0025
CHAMPION_AUC: Final = 0.96
GAINS: Final = (0.002, 0.005, 0.01)
CLUSTERED_GAINS: Final = (0.005, 0.01, 0.02)
ZIPF: Final = (1.0, 1.2)
"""Of the clustered worlds: the ip with most clicks has 11 and 21 % of them."""
IPS: Final = 5_000
CLUSTERED_CORRELATION: Final = 0.7
CLUSTERED_CLICKS: Final = 50_000
CONTESTANTS: Final = {"t_test": "t-test alone", "delong": "DeLong alone", "gate": "our gate"}


def separation(auc: float) -> float:
    """Distance of the two classes' means, in standard deviations, of a binormal score of this AUC."""
    return float(np.sqrt(2) * norm.ppf(auc))


Holdout = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]
"""Labels, candidate's and champion's scores, and ips, each (clicks,)."""


def holdout(clicks: int, gain: float, correlation: float, random: np.random.Generator) -> Holdout:
    """Clicks of an ip each. Within a class the scores are normal, correlated."""
    label = random.random(clicks) < INSTALL_RATE
    label[:2], label[2:4] = True, False
    common = np.sqrt(correlation) * random.standard_normal(clicks)
    own = np.sqrt(1 - correlation) * random.standard_normal((2, clicks))
    candidate, champion = (
        common + noise + separation(auc) * label
        for noise, auc in zip(own, (CHAMPION_AUC + gain, CHAMPION_AUC), strict=True)
    )
    return label, candidate, champion, np.arange(clicks)


def clustered_holdout(
    clicks: int,
    installs: int,
    zipf: float,
    random: np.random.Generator,
    gain: float = 0.0,
    correlation: float = CLUSTERED_CORRELATION,
) -> Holdout:
    """Clicks of IPS ips, whose shares fall as rank ** -zipf. What the scores don't share is an error of the ip."""
    share = np.arange(1, IPS + 1) ** -zipf
    ip = random.choice(IPS, clicks, p=share / share.sum())
    label = np.zeros(clicks, dtype=bool)
    label[random.choice(clicks, installs, replace=False)] = True
    common = np.sqrt(correlation) * random.standard_normal(clicks)
    own = np.sqrt(1 - correlation) * random.standard_normal((2, IPS))[:, ip]
    candidate, champion = (
        common + noise + separation(auc) * label
        for noise, auc in zip(own, (CHAMPION_AUC + gain, CHAMPION_AUC), strict=True)
    )
    return label, candidate, champion, ip


@dataclass(frozen=True)
class World:
    """Holdouts of one kind: `make(gain, random)`. `number` keeps its seeds apart from the others'."""

    number: int
    name: str
    make: Callable[..., Holdout]
    gains: tuple[float, ...]

    def promoted(self, gain: float, seed: int, pair: int) -> dict[str, bool]:
        """Who promotes the candidate of one simulated pair."""
        random = np.random.default_rng([seed, self.number, round(gain * 1e6), pair])
        label, candidate, champion, ip = self.make(gain=gain, random=random)
        gate = Gate(floor=0.5, alpha=ALPHA) if gain else Gate(floor=0.5, alpha=ALPHA, minimum_gain=0)
        verdict = judge(label, candidate, champion, ip, gate, seed=pair)
        assert verdict.p_ttest is not None
        assert verdict.candidate_auc is not None
        assert verdict.champion_auc is not None
        rankings = [Ranking.of(label, score) for score in (candidate, champion)]
        by_click = paired_gain(rankings[0], rankings[1], label, np.arange(len(label)))
        return {
            "t_test": verdict.p_ttest < ALPHA and verdict.candidate_auc > verdict.champion_auc,
            "delong": bool(norm.sf(by_click.gain / np.sqrt(by_click.variance)) < ALPHA),
            "gate": verdict.promoted,
        }


def worlds(clicks: int, correlation: float, clustered_clicks: int) -> Iterator[World]:
    """The world without clusters first."""
    yield World(0, "independent", partial(holdout, clicks=clicks, correlation=correlation), GAINS)
    for number, zipf in enumerate(ZIPF, 1):
        installs = max(4, round(INSTALL_RATE * clustered_clicks))
        make = partial(clustered_holdout, clicks=clustered_clicks, installs=installs, zipf=zipf)
        yield World(number, f"Zipf {zipf}", make, CLUSTERED_GAINS)


def count(pool: Executor, console: Console, world: World, gain: float, seed: int, pairs: int) -> dict[str, int]:
    """How many of the pairs each contestant promotes."""
    promoted = dict.fromkeys(CONTESTANTS, 0)
    results = pool.map(partial(world.promoted, gain, seed), range(pairs), chunksize=5)
    for result in track(results, f"{world.name}, gain {gain}", total=pairs, console=console, transient=True):
        for name, promotes in result.items():
            promoted[name] += promotes
    return promoted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--clicks", type=int, default=100_000, help="clicks of a holdout (default %(default)s)")
    parser.add_argument(
        "--clustered-clicks", type=int, default=CLUSTERED_CLICKS, help="the same of a clustered one (%(default)s)"
    )
    parser.add_argument("--equal-pairs", type=int, default=1_000, help="pairs of equal models (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=150, help="pairs for each gain in AUC (default %(default)s)")
    parser.add_argument("--correlation", type=float, default=0.9, help="of the scores within a class (default 0.9)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, help="how many work side by side (default: as many as cores)")
    parser.add_argument("--out", type=Path, default=Path(".bench/gate.json"))
    options = parser.parse_args(arguments)

    console = Console()
    started = time.perf_counter()
    table = Table("world", "gain", "pairs", *CONTESTANTS.values(), box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.title = "% of candidates promoted; of equal models (no gain), each is a false promotion"
    shares: dict[tuple[str, float], dict[str, float]] = {}
    intervals: dict[tuple[str, float], dict[str, list[float]]] = {}
    first, *clustered = worlds(options.clicks, options.correlation, options.clustered_clicks)
    with ProcessPoolExecutor(options.processes) as pool:
        for world in (first, *clustered):
            for gain in (0.0, *world.gains):
                pairs = options.pairs if gain else options.equal_pairs
                promoted = count(pool, console, world, gain, options.seed, pairs)
                wilson = {name: binomtest(k, pairs).proportion_ci(0.95, "wilson") for name, k in promoted.items()}
                shares[world.name, gain] = {name: k / pairs for name, k in promoted.items()}
                intervals[world.name, gain] = {name: [round(w.low, 4), round(w.high, 4)] for name, w in wilson.items()}
                cells = [
                    f"{100 * promoted[name] / pairs:.1f} ({100 * w.low:.1f} to {100 * w.high:.1f})"
                    for name, w in wilson.items()
                ]
                table.add_row(world.name, f"{gain:+}" if gain else "none", str(pairs), *cells)
    console.print(table)
    console.print(f"95 % intervals by Wilson; alpha {ALPHA}; {time.perf_counter() - started:.0f} s")

    def figures(of: dict[tuple[str, float], dict[str, Any]]) -> dict[str, Any]:
        return {
            "false_promotions": of[first.name, 0.0],
            "power": {str(gain): of[first.name, gain] for gain in first.gains},
            "false_promotions_clustered": {
                name: {world.name: of[world.name, 0.0][name] for world in clustered} for name in CONTESTANTS
            },
            "power_clustered": {
                world.name: {str(gain): of[world.name, gain] for gain in world.gains} for world in clustered
            },
        }

    result = {
        **figures(shares),
        "intervals": figures(intervals),
        "settings": {
            "clicks": options.clicks,
            "clustered_clicks": options.clustered_clicks,
            "install_rate": INSTALL_RATE,
            "champion_auc": CHAMPION_AUC,
            "correlation": options.correlation,
            "clustered_correlation": CLUSTERED_CORRELATION,
            "ips": IPS,
            "equal_pairs": options.equal_pairs,
            "pairs": options.pairs,
            "alpha": ALPHA,
            "minimum_gain": Gate().minimum_gain,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
