"""The service against the original's loop and against an echo: one broker, the same clicks, one run.

- service: what the pod runs, with transactions, one keyed message per click, counts and dead letters.
- original: the original's script made again, as plain as it was: polls of up to 30,000 messages with kafka-python,
  pandas for the CSV, the six counts by groupby and merge within the poll, scikit-learn, one joined message a poll.
- echo: the service's own consuming, producing and transactions without any work between: the practical limit.

Each works through the whole backlog in processes of its own; rates are taken from the first answer to the last. They
take turns for several rounds, and the medians are compared: the machine's other work hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.inference_rig import DAY, Bench
from mlops_assets.cli.produce import generated_lines
from mlops_assets.clicks.features import FEATURES, RunningCounts, features
from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.inference.model import DESCRIPTION_FILE, ONNX_FILE, session
from mlops_assets.modelling.candidates import fit
from mlops_assets.modelling.onnx import export
from mlops_assets.resources.kafka import LocalBroker

SERVED: Final = "LogisticRegression"  # the kind of model that the original serves
LARGER: Final = "HistGradientBoosting"
RATES: Final = (1_000, 20_000)  # clicks a second at which the latency is measured
CONTESTANTS: Final = "benchmarks.inference_contestants"


def train(folder: Path, clicks: int) -> None:
    """A model folder of either algorithm, and the original's pickled pipeline (a plain logistic regression)."""
    day = Clicks.concat(list(generate_day(date(2017, 11, 9), clicks, seed=6)))
    assert day.label is not None
    rows = features(day, RunningCounts().count(day))
    for algorithm in (SERVED, LARGER):
        onnx = export(fit(algorithm, rows, day.label, seed=1), 1.0)
        golden = session(onnx).run(["probability"], {"features": rows[:32]})[0]
        description = {
            "version": "0123456789ab",
            "algorithm": algorithm,
            "threshold": 0.05,
            "features": list(FEATURES),
            "golden": {"features": rows[:32].tolist(), "probability": golden.tolist()},
        }
        (folder / algorithm).mkdir()
        (folder / algorithm / ONNX_FILE).write_bytes(onnx)
        (folder / algorithm / DESCRIPTION_FILE).write_text(json.dumps(description))
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, day.label)
    (folder / "pipeline.pickle").write_bytes(pickle.dumps(plain))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--clicks", type=int, default=8_000_000, help="clicks of the backlog (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs (default %(default)s)")
    parser.add_argument("--train", type=int, default=200_000, help="clicks of the model's day (default %(default)s)")
    parser.add_argument("--latency-seconds", type=float, default=20, help="at each rate (default 20)")
    parser.add_argument("--out", type=Path, default=Path(".bench/inference.json"))
    options = parser.parse_args(arguments)
    console = Console()
    scratch = Path(tempfile.mkdtemp(prefix="bench-inference-"))
    with LocalBroker(scratch / "kafka") as broker, console.status("training") as status:
        bench = Bench(broker, scratch)
        train(scratch, options.train)
        served, larger = (
            ("mlops_assets.inference", "--model", str(scratch / algorithm)) for algorithm in (SERVED, LARGER)
        )
        status.update(f"writing {options.clicks:,} clicks")
        bench.fill("input", generated_lines(options.clicks, 7, DAY))
        contestants = {
            "original": ((CONTESTANTS, "original", str(scratch / "pipeline.pickle")), 1),
            "service": (served, 1),
            "service x 2": (served, 2),
            f"service, {LARGER}": (larger, 1),
            "echo": ((CONTESTANTS, "echo", str(scratch / SERVED)), 1),
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for number in range(options.rounds):
            for name, (module, workers) in contestants.items():
                status.update(f"round {number + 1} of {options.rounds}: {name}")
                group = "-".join(filter(str.isalnum, (*name.split(), str(number))))
                joined = name == "original"
                runs[name].append(bench.race(group, options.clicks, *module, workers=workers, joined=joined))
        status.update("recovery")
        recovery, replayed = bench.recovery("service-0", *served)
        status.update("memory")
        idle, loaded, keys = bench.memory(*served)
        status.update("latency")
        latency = {rate: bench.latency(rate, options.latency_seconds, *served) for rate in RATES}

    wall, cpu = ({name: median(each[i] for each in of) for name, of in runs.items()} for i in (0, 1))
    title = f"{options.clicks:,} clicks, one worker, {SERVED}, medians of {options.rounds}"
    table = Table("", "clicks/s", "of the original", "clicks/CPU s", "of the original", title=title)
    for name in runs:
        row = (
            f"{of[name]:,.0f}" if plain else f"{of[name] / of['original']:.1f}"
            for of in (wall, cpu)
            for plain in (1, 0)
        )
        table.add_row(name, *row)
    console.print(table)
    for rate, (p50, p99) in latency.items():
        console.print(f"latency at {rate:,} clicks/s: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    console.print(f"RSS: idle {idle:.0f} MiB, with {keys:,.0f} live keys {loaded:.0f} MiB")
    console.print(f"recovery after kill -9, {replayed:,.0f} clicks to count again: {recovery:.1f} s")
    figures: dict[str, Any] = {
        "speedup_over_original": wall["service"] / wall["original"],
        "speedup_over_original_cpu": cpu["service"] / cpu["original"],
        "speedup_over_original_larger_model": wall[f"service, {LARGER}"] / wall["original"],
        "fraction_of_echo": wall["service"] / wall["echo"],
        "latency_ms": {rate: {"p50": p50, "p99": p99} for rate, (p50, p99) in latency.items()},
        "rss_idle_mib": idle,
        "rss_loaded_mib": loaded,
        "live_keys": keys,
        "recovery_s": recovery,
        "clicks_per_second": wall,
        "clicks_per_cpu_second": cpu,
        "algorithm": SERVED,
        "clicks": options.clicks,
        "rounds": options.rounds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(scratch)  # after a failure its logs stay


if __name__ == "__main__":
    main()
