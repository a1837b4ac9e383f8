"""The memory limit of a pod follows from a figure: what one holds that has all partitions in the busiest hour."""

from pathlib import Path

import numpy as np
import yaml

from mlops_assets.clicks.synthetic import World
from mlops_assets.inference.partition import Partition

CLICKS = 60_000_000  # a day
PEAK = 0.056  # of a day's clicks are in its busiest hour
PARTITIONS = 12
RUNTIME_MIB = 100  # Python, librdkafka, onnxruntime and what is under way, as `make bench-inference` measures it
NOON = 17_480 * 86_400 + 12 * 3_600
DEPLOYMENT = Path(__file__).parents[2] / "k8s/base/workload/deployment.yaml"


def test_the_first_pod_back_can_hold_all_partitions_in_the_busiest_hour() -> None:
    """Two hours' counts are there at its end: clicks may be late by ten minutes."""
    world, random, partition = World.of(7, 0), np.random.default_rng(1), Partition(0, 0)
    most = offset = 0
    for second in np.array_split(np.arange(2 * 3_600), 60):  # the busiest hour, and the next one
        times = NOON + np.repeat(second, int(PEAK * CLICKS / 3_600))
        clicks = world.draw(random, times, 200)
        clicks = clicks.take(clicks.ip % PARTITIONS == 0).bare()
        partition.count(clicks, lambda index, first=offset: first + index)  # type: ignore[misc]
        offset += len(clicks)
        most = max(most, partition.nbytes)
    [container] = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert PARTITIONS * most / 2**20 + RUNTIME_MIB <= int(limit.removesuffix("Mi"))
    assert len(partition) > 400_000
