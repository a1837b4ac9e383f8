"""How long nobody answers, early and late in the day, with snapshots of the counts and without: one broker, one log.

A worker answers all clicks since midnight. Then, with clicks coming in all the time, it is killed (kill -9) and started
again; then a second one joins and takes half of its partitions. A partition is silent from its last committed answer
to its next one: what is measured is the longest such silence of any partition.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.inference import SERVED, train
from benchmarks.inference_rig import DAY, Bench, Worker
from mlops_assets.cli.produce import generated_lines
from mlops_assets.resources.kafka import LocalBroker
from mlops_assets.resources.kafka_topics import INPUT_PARTITIONS

RATE: Final = 2_000  # clicks a second while workers go and come
SETTLE_SECONDS: Final = 35  # by then every partition has a snapshot of its steady state
ARMS: Final[dict[str, dict[str, str]]] = {"with": {}, "without": {"SNAPSHOT_SECONDS": "0"}}


@contextmanager
def traffic(bench: Bench, lines: Iterator[bytes]) -> Iterator[None]:
    """Clicks at RATE while the context lasts."""
    ended = threading.Event()

    def feed() -> None:
        while not ended.is_set():
            bench.fill("input", islice(lines, RATE // 2), RATE)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        yield
    finally:
        ended.set()
        feeding.join()


def silence(bench: Bench, group: str, over: Callable[[], bool], *running: Worker) -> float:
    """The longest time without an answer of any partition, from now until all have answered after it is `over`."""
    steps = bench.within(bench.offsets(group), running)
    start, before = next(steps)
    since, longest, waiting, ended = [start] * len(before), 0.0, set(range(len(before))), False
    while waiting:
        now, offsets = next(steps)
        for number, (old, new) in enumerate(zip(before, offsets, strict=True)):
            if new > old:
                longest, since[number] = max(longest, now - since[number]), now
                waiting -= {number} if ended else set()
        before, ended = offsets, ended or over()
    return longest


def measure(
    bench: Bench, group: str, total: int, lines: Iterator[bytes], *module: str, **changes: str
) -> dict[str, float]:
    """Answers the backlog, then survives a kill and a second worker."""
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        worker = stack.enter_context(bench.worker("input", group, *module, **changes))
        begin, behind, peak = 0.0, 0, 0.0
        for now, answered in bench.within(bench.committed(group), [worker]):
            peak = max(peak, worker.rss_mib)
            if not begin and answered:
                begin, behind = now, answered
            if answered >= total:
                figures["clicks_per_second"] = (answered - behind) / (now - begin) if now > begin else 0.0
                break
        figures |= {"rss_mib": peak, "keys": worker.metric("inference_count_keys")}
        stack.enter_context(traffic(bench, lines))
        time.sleep(SETTLE_SECONDS)
        written = worker.metric('inference_snapshots_total{outcome="written"}')
        size = worker.metric("inference_snapshot_bytes_total")
        figures["snapshot_bytes"] = INPUT_PARTITIONS * size / written if written else 0.0
        worker.process.kill()
        worker.process.wait(30)
        first = stack.enter_context(bench.worker("input", group, *module, **changes))
        figures["killed_s"] = silence(bench, group, first.ready, first)
        figures["recounted"] = first.metric("inference_replayed_total")
        figures["rss_recovered_mib"] = first.rss_mib
        second = stack.enter_context(bench.worker("input", group, *module, name="1", **changes))
        figures["rebalanced_s"] = silence(bench, group, lambda: shared(first, second), first, second)
    return figures


def shared(*workers: Worker) -> bool:
    return all(worker.ready() and 0 < worker.metric("inference_partitions") < INPUT_PARTITIONS for worker in workers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--millions", default="1,4,16", help="clicks since midnight (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".bench/recovery.json"))
    options = parser.parse_args(arguments)
    sizes = [int(float(each) * 1_000_000) for each in options.millions.split(",")]
    console, scratch = Console(), Path(tempfile.mkdtemp(prefix="bench-recovery-"))
    figures: dict[int, dict[str, dict[str, float]]] = {}
    with LocalBroker(scratch / "kafka") as broker, console.status("training") as status:
        bench, filled = Bench(broker, scratch), 0
        train(scratch, 100_000)
        # As many clicks an hour whatever the size: a day's clicks up to ever later hours.
        lines = generated_lines(max(sizes) * 3 // 2 + 2_000_000, 7, DAY)
        for size in sizes:
            status.update(f"{size:,} clicks since midnight")
            filled += bench.fill("input", islice(lines, max(0, size - filled)))
            for arm, changes in ARMS.items():
                status.update(f"{size:,} clicks since midnight, {arm} snapshots")
                module = ("mlops_assets.inference", "--model", str(scratch / SERVED))
                figures.setdefault(size, {})[arm] = measure(bench, arm, filled, lines, *module, **changes)
                filled = bench.size("input")
    show(console, figures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(scratch)  # after a failure its logs stay


def show(console: Console, figures: dict[int, dict[str, dict[str, Any]]]) -> None:
    columns = {
        "killed_s": "kill -9, s",
        "rebalanced_s": "rebalance, s",
        "recounted": "counted again",
        "clicks_per_second": "clicks/s",
        "rss_mib": "RSS, MiB",
        "rss_recovered_mib": "recovered, MiB",
        "keys": "live keys",
        "snapshot_bytes": "snapshots, bytes",
    }
    table = Table("since midnight", "snapshots", *columns.values(), title="Longest silence of a partition")
    for size, arms in figures.items():
        for arm, of in arms.items():
            cells = (f"{of[name]:.1f}" if name.endswith("_s") else f"{of[name]:,.0f}" for name in columns)
            table.add_row(f"{size:,}", arm, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
