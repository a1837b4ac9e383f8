"""The golden test: a day through Spark and through the service gives the same probability, click by click."""

import datetime
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.cli.produce import lines_of
from mlops_assets.clicks.csv import write
from mlops_assets.clicks.features import FEATURES
from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake.ingest import ingest
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.sample import sample
from mlops_assets.modelling.training import train_candidate
from mlops_assets.resources.spark import LocalSpark
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import Message

pytestmark = [pytest.mark.kafka, pytest.mark.integration]

DAY = "2017-11-07"
CLICKS = 30_000


def test_the_service_answers_every_click_as_spark_does(stream: NewStream, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    every, landed = arrived(), Landing(lake.root)
    with landed.stage(DAY) as file:
        file.write(write(every))
        landed.publish([file], replace=True)
    ingested = ingest(landed, lake, DAY)
    assert 0 < CLICKS - ingested.rows < CLICKS // 20  # of other days: in the quarantine, but the service answers them
    ids = np.flatnonzero(every.time // SECONDS_PER_DAY == np.datetime64(DAY).astype(int))
    spark = LocalSpark()
    spark.training_set(lake.root, [DAY], on_day=lambda manifest: None)
    columns = [*FEATURES, "is_attributed", "ip"]
    batches = [
        np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in columns])
        for batch in lake.read("training_set", DAY, columns)
    ]
    window = sample(
        (batch[:, :-2].astype(np.float32), batch[:, -2].astype(np.uint8), batch[:, -1].astype(np.uint32))
        for batch in batches
    )
    model = tmp_path / "trained"
    train_candidate(window, day=DAY, trained_on=[DAY]).write(model)
    spark.predictions(lake.root, [DAY], str(model), on_day=lambda manifest: None)
    expected = np.full(CLICKS, np.nan)
    for batch in lake.read("batch_predictions", DAY, ["arrival", "probability"]):
        expected[ids[batch.column("arrival").to_numpy()]] = batch.column("probability").to_numpy()

    clicks = stream()
    clicks.model = model
    messages: list[Message] = [(line.split(b",", 2)[1], line) for line in lines_of(every, 0)]
    # Batches of random sizes, and partitions that move: a second worker comes, the first is killed and comes back.
    sizes = random.Random(11)
    workers = [clicks.worker(WORKER_ID="a", BATCH_CLICKS=str(sizes.randint(50, 900))).wait_ready()]
    for number, start in enumerate(range(0, CLICKS, CLICKS // 6)):
        clicks.produce(messages[start : start + CLICKS // 6])
        time.sleep(0.5)
        if number == 1:
            workers.append(clicks.worker(WORKER_ID="b", BATCH_CLICKS=str(sizes.randint(50, 900))))
        if number == 3:
            workers[0].kill()
            workers.append(clicks.worker(WORKER_ID="a", BATCH_CLICKS=str(sizes.randint(50, 900))))
    answers = [json.loads(message.value()) for message in clicks.read(clicks.topics[1], CLICKS)]
    assert len(answers) == CLICKS
    got = np.full(CLICKS, np.nan)
    got[[answer["click_id"] for answer in answers]] = [answer["probability"] for answer in answers]
    # How a matrix product rounds depends on the size of the batch; one count more or less changes much more.
    np.testing.assert_allclose(got[ids], expected[ids], rtol=0, atol=2e-8)
    assert len(np.unique(expected)) > 1_000


def arrived() -> Clicks:
    """A day's clicks in the order of their arrival: of every 40 ips one has a clock 8 hours fast, one 8 hours slow; and
    so, or by days, have some clicks of all others."""
    every = Clicks.concat(list(generate_day(datetime.date.fromisoformat(DAY), CLICKS, seed=7)))
    random = np.random.default_rng(3)
    fast = (every.ip % 40 == 0) | (random.random(CLICKS) < 0.005)
    slow = ~fast & ((every.ip % 40 == 1) | (random.random(CLICKS) < 0.005))
    days = np.where(random.random(CLICKS) < 0.001, random.integers(-2_000, 2_000, CLICKS), 0)
    hours = 8 * (fast.astype(int) - slow.astype(int))
    return replace(every, time=every.time + SECONDS_PER_HOUR * hours + SECONDS_PER_DAY * days)
