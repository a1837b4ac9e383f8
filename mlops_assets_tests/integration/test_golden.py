"""The golden test: a day through Spark and through the service gives the same probability, click by click."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.clicks.features import FEATURES
from mlops_assets.lake.ingest import ingest
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.sample import sample
from mlops_assets.modelling.training import train_candidate
from mlops_assets.resources.spark import LocalSpark
from mlops_assets_tests.assets.graph import land
from mlops_assets_tests.integration.conftest import NewStream
from mlops_assets_tests.integration.kafka_harness import Message

pytestmark = [pytest.mark.kafka, pytest.mark.integration]

DAY = "2017-11-07"
CLICKS = 30_000


def test_the_service_answers_every_click_as_spark_does(stream: NewStream, tmp_path: Path) -> None:
    land(tmp_path, DAY, CLICKS)
    lake = Lake(str(tmp_path / "lake"))
    ingest(Landing(lake.root), lake, DAY)
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
        expected[batch.column("arrival").to_numpy()] = batch.column("probability").to_numpy()

    clicks = stream()
    clicks.model = model
    messages = as_messages(lake)
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
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-8)
    assert len(np.unique(expected)) > 1_000


def as_messages(lake: Lake) -> list[Message]:
    """The day's raw clicks in the order of their arrival, as lines keyed by ip, with the arrival as click id."""
    columns = ["arrival", "ip", "app", "device", "os", "channel", "click_time"]
    rows = [row for batch in lake.read("raw_clicks", DAY, columns) for row in batch.to_pylist()]
    return [
        (
            str(row["ip"]).encode(),
            "{arrival},{ip},{app},{device},{os},{channel},{click_time:%Y-%m-%d %H:%M:%S}".format_map(row).encode(),
        )
        for row in rows
    ]
