"""A click's way, against the arithmetic of the tiny model and a dictionary of counts."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.inference import scoring
from mlops_assets.inference.model import Model
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.scoring import Answers, Run, Scored, write
from mlops_assets_tests.inference.tiny_model import sigmoid, write_model

BAD = {
    b"": "empty line",
    b"1,2,3": "3 fields instead of 7",
    b"click_id,ip,app,device,os,channel,click_time": "click_id is not a whole number of at most 18 digits",
    b"1,4294967296,3,1,13,379,2017-11-10 04:00:00": "ip is not a whole number from 0 to 4294967295",
    b"1,2,65536,1,13,379,2017-11-10 04:00:00": "app is not a whole number from 0 to 65535",
    b"1,2,-3,1,13,379,2017-11-10 04:00:00": "app is not a whole number from 0 to 65535",
    b"1,2,3,1,13,379,10.11.2017 04:00": "click_time is not a time like 2017-11-06 14:32:21",
    b"1,2,3,1,13,379,2017-11-10T04:00:00Z": "click_time is not a time like 2017-11-06 14:32:21",
    b"\xff\xfe,2,3,1,13,379,2017-11-10 04:00:00": "click_id is not a whole number of at most 18 digits",
    b"1,2,3,1,13,379,2017-11-10 04:00:00\n2,2,3,1,13,379,2017-11-10 04:00:00": "more than one line",
    b"{": "not valid JSON",
    b'{"click_id": "\xff"}': "not valid JSON",
    b"[" * 100_000: "1 fields instead of 7",
    b"{" + b'"a":[' * 100_000: "not valid JSON",
    b'{"click_id": 1}': "JSON without a usable ip",
    b'{"click_id":true,"ip":2,"app":3,"device":1,"os":13,"channel":379,"click_time":"2017-11-10 04:00:00"}': (
        "JSON without a usable click_id"
    ),
    b'{"click_id":1,"ip":2,"app":3,"device":1,"os":13,"channel":379,"click_time":"2017-11-10 04:00:00\\n1"}': (
        "JSON without a usable click_time"
    ),
    b'{"click_id":1,"ip":2,"app":3,"device":1,"os":13,"channel":379,"click_time":"\\ud800"}': (
        "click_time is not a time like 2017-11-06 14:32:21"
    ),
    None: "no value",
}
GOOD = b"7,2,3,1,13,379,2017-11-10 04:00:00"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(write_model(tmp_path_factory.mktemp("model")))


def score(values: list[Any], model: Model, partition: Partition, first: int = 0) -> Scored:
    return scoring.score([Run(values, partition, first)], model)


def messages(answers: list[Answers]) -> list[tuple[bytes, bytes, int]]:
    return [message for part in answers for message in part.messages()]


def values(answers: list[Answers]) -> list[dict[str, Any]]:
    return [json.loads(value) for _, value, _ in messages(answers)]


def test_a_click_is_answered_with_the_probability_of_its_features(model: Model) -> None:
    scored = score([GOOD, GOOD.replace(b"7,", b"8,", 1)], model, Partition(0, 0))
    first, second = values(scored.answers)
    # 2017-11-10 is a Friday, day 4 of a week that begins with 0; the second click is the second of all its keys.
    categories = [3, 1, 13, 379, 4, 4]
    expected = sigmoid(np.array([[*categories, *[1] * 6], [*categories, *[2] * 6]]))
    assert [first["click_id"], second["click_id"]] == [7, 8]
    assert [first["probability"], second["probability"]] == pytest.approx(expected, abs=1e-7)
    assert {first["model_version"], second["model_version"]} == {"tiny-1"}
    assert [first["label"], second["label"]] == (expected >= 0.05).astype(int).tolist()
    assert [key for key, _, _ in messages(scored.answers)] == [b"7", b"8"]


def test_a_message_is_as_compact_as_json_can_be(model: Model) -> None:
    ((_, value, _),) = messages(score([GOOD], model, Partition(0, 0)).answers)
    assert b" " not in value
    assert list(json.loads(value)) == ["click_id", "probability", "label", "model_version"]


def test_json_and_line_ends_and_csv_are_one(model: Model) -> None:
    names = ("click_id", "ip", "app", "device", "os", "channel")
    click = dict(zip(names, (7, 2, 3, 1, 13, 379), strict=True)) | {"click_time": "2017-11-10 04:00:00", "more": [1]}
    ways = [GOOD, GOOD + b"\n", GOOD + b"\r\n", json.dumps(click).encode(), json.dumps(click, indent=1).encode()]
    answers = [messages(score([way], model, Partition(0, 0)).answers) for way in ways[:4]]
    assert all(answer == answers[0] for answer in answers)
    assert score(ways[4:], model, Partition(0, 0)).rejected == {(0, 0): "more than one line"}


def test_a_byte_order_mark_is_passed_over_wherever_it_comes_in_a_batch(model: Model) -> None:
    marked = b"\xef\xbb\xbf" + GOOD
    for batch in ([marked, GOOD], [GOOD, marked], [marked], [GOOD, b"1,2", marked]):
        scored = score(list(batch), model, Partition(0, 0))
        assert len(scored.rejected) == batch.count(b"1,2")
        assert sum(map(len, scored.answers)) == len(batch) - batch.count(b"1,2")


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:50])
def test_what_is_no_click_is_rejected_with_its_reason_and_the_rest_answered(model: Model, bad: bytes | None) -> None:
    scored = score([GOOD, bad, GOOD.replace(b"7,", b"8,", 1)], model, Partition(0, 0))
    assert scored.rejected == {(0, 1): BAD[bad]}
    assert [value["click_id"] for value in values(scored.answers)] == [7, 8]
    alone = score([bad], model, Partition(0, 0))
    assert (alone.rejected, alone.answers) == ({(0, 0): BAD[bad]}, [])


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.just(GOOD))))
def test_every_message_is_answered_or_rejected(model: Model, batch: list[bytes | None]) -> None:
    scored = score(batch, model, Partition(0, 0))
    assert sum(map(len, scored.answers)) + len(scored.rejected) == len(batch)
    assert sum(map(len, scored.answers)) >= batch.count(GOOD)


@given(st.lists(st.integers(0, 10**18 - 1), min_size=1), st.floats(0, 1, width=32))
def test_ids_of_any_length_and_probabilities_from_0_to_1_can_be_written(
    model: Model, ids: list[int], probability: float
) -> None:
    clicks = score([GOOD] * len(ids), model, Partition(0, 0)).clicks
    object.__setattr__(clicks, "click_id", np.array(ids, np.int64))
    written = messages(write(clicks, np.full(len(ids), probability, np.float32), np.zeros(len(ids), np.uint16), model))
    assert sorted(int(key) for key, _, _ in written) == sorted(ids)
    for key, value, _ in written:
        answer = json.loads(value)
        assert answer["click_id"] == int(key)
        assert answer["probability"] == pytest.approx(probability, abs=2e-9)
        assert answer["label"] == (np.float32(probability) >= np.float64(model.threshold))


@given(st.data())
def test_counting_again_without_answering_changes_nothing(model: Model, data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 100_000), min_size=1, max_size=40))
    batch = [
        f"{i},{i % 3},1,1,{i % 2},1,{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S}" for i, t in enumerate(times)
    ]
    lines: list[bytes | None] = [text.encode() for text in batch]
    whole = values(score(lines, model, Partition(0, 0)).answers)
    partition, cut = Partition(0, 0), data.draw(st.integers(0, len(lines)))
    begun = score(lines[:cut], model, partition, first=cut)
    assert begun.answers == []
    first = data.draw(st.integers(cut, len(lines)))
    rest = values(score(lines[cut:], model, partition, first=first - cut).answers)
    by_id = {answer["click_id"]: answer for answer in whole}
    assert {answer["click_id"]: answer for answer in rest} == {i: by_id[i] for i in range(first, len(lines))}


@given(st.data())
def test_runs_of_several_partitions_are_answered_as_each_alone(model: Model, data: st.DataObject) -> None:
    message = st.sampled_from([GOOD, GOOD.replace(b",2,", b",5,", 1), b"1,2", b"", None, b'{"a":1}'])
    batches = data.draw(st.lists(st.lists(message, min_size=1, max_size=6), min_size=1, max_size=5))
    firsts = [data.draw(st.integers(0, len(batch))) for batch in batches]
    numbered = [
        [b"%d%s" % (10 * i + j, v[1:]) if v and v[:2] == b"7," else v for j, v in enumerate(batch)]
        for i, batch in enumerate(batches)
    ]
    runs = [Run(b, Partition(0, 0), f, i) for i, (b, f) in enumerate(zip(numbered, firsts, strict=True))]
    together = scoring.score(runs, model)
    alone = [scoring.score([replace(run, partition=Partition(0, 0))], model) for run in runs]
    # Answers are grouped by the length of the click id.
    assert sorted(messages(together.answers), key=str) == sorted(
        (m for each in alone for m in messages(each.answers)), key=str
    )
    assert together.rejected == {(i, at): r for i, each in enumerate(alone) for (_, at), r in each.rejected.items()}
    assert together.new == [len(each.clicks) for each in alone]
