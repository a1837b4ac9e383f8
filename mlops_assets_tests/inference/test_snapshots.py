"""Which snapshots are used and which are refused, on the cluster that librdkafka plays."""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition, Uuid

from mlops_assets.clicks.clock import SPAN
from mlops_assets.inference import snapshots as module
from mlops_assets.inference.config import Settings
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.snapshots import Snapshot, SnapshotError, Snapshots
from mlops_assets_tests.inference.test_partition import MONDAY, clicks, feed

TOPIC = "input.snapshots"
CLUSTERS: list[Producer] = []  # they live as long as their producer


@pytest.fixture(scope="module")
def servers() -> str:
    cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    CLUSTERS.append(cluster)
    return ",".join(f"{each.host}:{each.port}" for each in cluster.list_topics(timeout=10).brokers.values())


class Rig:
    """Workers on a cluster; each test has a group, and so snapshots, of its own."""

    def __init__(self, servers: str, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.group, self.servers = group, servers
        monkeypatch.setattr(module, "CHUNK_BYTES", 2_000)
        monkeypatch.setattr(module, "LEAST_CLICKS", 10)
        self.producer = Producer({"bootstrap.servers": servers, "log_level": 0})

    def worker(self, topic_id: str = "this", **changes: str) -> Snapshots:
        env = {"KAFKA_BOOTSTRAP_SERVERS": self.servers, "GROUP_ID": self.group} | changes
        snapshots = Snapshots(Settings.from_environment(env), Metrics("1", "none"))

        def meet() -> bool:
            snapshots._topic_id, snapshots._numbers = topic_id, 4
            return True

        snapshots._meet = meet  # type: ignore[method-assign]
        meet()
        return snapshots

    def write(self, worker: Snapshots, offset: int, number: int = 0) -> None:
        worker._write(self.producer, Snapshot(number, worker._topic_id, offset, partition(offset).save()))

    def send(self, key: bytes, value: bytes | None, header: Any) -> None:
        self.producer.produce(TOPIC, value, key, 0, headers=header)
        self.producer.flush(10)

    def log(self) -> dict[bytes, Any]:
        """The group's messages that compaction would leave, by key."""
        reader = Consumer(
            {"bootstrap.servers": self.servers, "group.id": "reader", "enable.partition.eof": True, "log_level": 0}
        )
        reader.assign([TopicPartition(TOPIC, 0, 0)])
        found: dict[bytes, Any] = {}
        while (message := reader.poll(10)) is not None and message.error() is None:
            key = message.key() or b""
            if key.startswith(self.group.encode()):
                found.pop(key, None)
                if message.value() is not None:
                    found[key] = message
        reader.close()
        return found


@pytest.fixture
def rig(servers: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(servers, request.node.name, monkeypatch)


def partition(offset: int) -> Partition:
    """A partition of which so many clicks are counted."""
    result = Partition(0, 0)
    feed(result, clicks(np.full(offset, MONDAY + 3_600), np.arange(offset) % 500), 0)
    return result


def newest(worker: Snapshots, committed: int, metadata: str = "0", number: int = 0) -> Partition | None:
    with worker.reading() as find:
        return find(TopicPartition("input", number, committed, metadata=metadata))


def refused(worker: Snapshots) -> float:
    return worker._metrics.registry.get_sample_value("inference_snapshots_total", {"outcome": "refused"}) or 0


def test_the_newest_snapshot_comes_back_as_it_was(rig: Rig) -> None:
    writer = rig.worker()
    for offset in (1_000, 2_000, 3_000):
        rig.write(writer, offset)
    found = newest(rig.worker(), 3_000)
    assert found is not None
    assert found.position == 3_000
    loaded, whole = found.save(), partition(3_000).save()
    assert all(np.array_equal(np.sort(loaded[name], axis=None), np.sort(whole[name], axis=None)) for name in whole)


def test_superseded_snapshots_are_deleted(rig: Rig) -> None:
    first = rig.worker()
    rig.write(first, 1_000)
    rig.write(first, 2_000)
    chunks = len(rig.log())
    assert chunks > 2
    second = rig.worker()
    assert newest(second, 2_000) is not None
    rig.write(second, 2_500)
    assert {message.key().split(b"/")[2] for message in rig.log().values()} == {
        next(iter(second._keys[0])).split(b"/")[2]
    }


def test_half_a_snapshot_of_a_killed_worker_is_refused_and_later_deleted(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = rig.worker()
    rig.write(writer, 1_000)
    sent = []

    def killed(*_: Any) -> None:
        sent.append(1)
        if len(sent) == 3:
            raise KeyboardInterrupt
        send(*_)

    send = writer._send
    monkeypatch.setattr(writer, "_send", killed)
    with pytest.raises(KeyboardInterrupt):
        rig.write(writer, 2_000)
    successor = rig.worker()
    found = newest(successor, 2_000)
    assert found is not None
    assert found.position == 1_000
    assert "no use of a snapshot of offset 2000: it has 2 of" in caplog.text
    rig.write(successor, 2_100)
    assert len({key.split(b"/")[2] for key in rig.log()}) == 1


def test_one_that_is_newer_than_the_committed_offset_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.write(rig.worker(), 1_000)
    rig.write(rig.worker(), 2_000)  # by another worker, so that the older one stays
    worker = rig.worker()
    found = newest(worker, 1_999)
    assert found is not None
    assert found.position == 1_000
    assert newest(worker, 999) is None
    assert "no use of a snapshot of offset 2000: the committed offset, 1999, is before it" in caplog.text


def test_one_of_a_topic_that_was_made_anew_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.write(rig.worker("before"), 1_000)
    worker = rig.worker("anew")
    assert newest(worker, 2_000) is None
    assert refused(worker) == 1
    assert "it is of a topic that was deleted since" in caplog.text


def test_one_of_another_version_is_refused(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.write(rig.worker(), 1_000)
    monkeypatch.setattr(module, "RULES", "other")
    assert newest(rig.worker(), 2_000) is None
    assert "it was counted by another version of the service" in caplog.text


def test_two_versions_side_by_side_do_not_delete_each_other_s(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary of another version takes a partition and is undone: the old version needs its snapshot then."""
    rig.write(rig.worker(), 1_000)
    with monkeypatch.context() as other:
        other.setattr(module, "RULES", "other")
        canary = rig.worker()
        assert newest(canary, 2_000) is None
        rig.write(canary, 2_000)
        assert newest(rig.worker(), 2_000) is not None
    found = newest(rig.worker(), 2_000)
    assert found is not None
    assert found.position == 1_000


def test_looking_through_many_useless_ones_takes_little_memory(rig: Rig) -> None:
    """Before a new version's first snapshot, and where the topic is not compacted, there may be gigabytes of them."""
    about = {"topic_id": "this", "offset": 1_000, "rules": "other", "chunks": 1, "crc32": 0}
    for number in range(200):
        key = f"{rig.group}/3/{number}/0".encode()
        rig.producer.produce(TOPIC, bytes(20_000), key, 3, headers={"snapshot": json.dumps(about)})
    rig.producer.flush(10)
    worker = rig.worker()
    tracemalloc.start()
    assert newest(worker, 2_000, number=3) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused(worker) == 200
    assert peak < 1_000_000


def test_a_topic_that_takes_no_snapshots_fills_no_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """For days on end: no right to write, a small max.message.bytes."""
    worker = rig.worker()

    def refuse(*_: Any) -> None:
        raise SnapshotError("Broker: Message size too large")

    monkeypatch.setattr(worker, "_send", refuse)
    for _ in range(3_000):
        with pytest.raises(SnapshotError):
            worker._write(rig.producer, Snapshot(0, "this", 0, {}))
    assert len(worker._keys[0]) < 2_000


def test_those_of_other_partitions_and_groups_are_not_looked_at(rig: Rig) -> None:
    rig.write(rig.worker(), 1_000, number=4)  # the same partition of the snapshots' topic
    rig.write(rig.worker(GROUP_ID=f"{rig.group}-other"), 1_000)
    worker = rig.worker()
    assert newest(worker, 2_000) is None
    assert refused(worker) == 0
    assert newest(worker, 2_000, number=4) is not None


@pytest.mark.parametrize("damage", ["bit", "header", "no header", "not JSON"])
def test_a_damaged_one_is_refused(rig: Rig, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    rig.write(rig.worker(), 1_000)
    rig.write(rig.worker(), 2_000)
    last = max(rig.log().values(), key=lambda message: message.offset())
    value, header = bytearray(last.value()), dict(last.headers())
    value[len(value) // 2] ^= damage == "bit"
    if damage == "header":
        header["snapshot"] = header["snapshot"].replace(b'"crc32": ', b'"crc32": 1')
    elif damage != "bit":
        header = {"snapshot": b"{"} if damage == "not JSON" else {}
    rig.send(last.key(), bytes(value), header)
    found = newest(rig.worker(), 2_000)
    assert found is not None
    assert (found.position == 1_000) == (damage == "bit")  # of the header, the other chunks have one too
    assert ("it is damaged" in caplog.text) == (damage == "bit")
    assert np.array_equal(np.sort(found.save()["counts"]), np.sort(partition(found.position).save()["counts"]))


def test_chunks_of_two_workers_at_the_same_time_make_no_snapshot_of_both(rig: Rig) -> None:
    rig.write(rig.worker(), 1_000)
    rig.write(rig.worker(), 2_000)
    by_name: dict[bytes, list[Any]] = {}
    for message in rig.log().values():
        by_name.setdefault(message.key().split(b"/")[2], []).append(message)
    one, other = by_name.values()
    for mine, yours in zip(one, other, strict=False):  # written again, alternately, as if at the same time
        for message in (mine, yours):
            rig.send(message.key(), message.value(), message.headers())
    found = newest(rig.worker(), 5_000)
    assert found is not None
    assert found.position in (1_000, 2_000)
    at = found.position
    assert np.array_equal(np.sort(found.save()["counts"]), np.sort(partition(at).save()["counts"]))


def test_nothing_is_read_where_little_would_have_to_be_counted_again(rig: Rig) -> None:
    rig.write(rig.worker(), 1_000)
    assert newest(rig.worker(), 2_000, metadata="1995") is None
    assert newest(rig.worker(), 2_000, metadata="") is not None
    assert newest(rig.worker(), -1_001) is None


def test_zero_seconds_turn_snapshots_off(rig: Rig) -> None:
    rig.write(rig.worker(), 1_000)
    worker = rig.worker(SNAPSHOT_SECONDS="0")
    worker._topic_id = ""
    assert newest(worker, 2_000) is None
    assert worker.take({0: partition(5_000)}) is None


def test_a_partition_s_turn_comes_when_much_would_have_to_be_counted_again(rig: Rig) -> None:
    worker, little, much = rig.worker(), partition(SPAN), partition(20 * SPAN)
    behind = partition(40 * SPAN)
    behind.first = behind.position + 1
    own = {1: little, 2: much, 3: behind}
    first = worker.take(own)
    assert first is not None
    assert (first.number, first.offset) == (2, 20 * SPAN)
    assert worker.take(own) is None, "one at a time"
    worker._next = 0.0
    second = worker.take(own)
    assert second is not None
    assert second.number == 1
    worker._next = 0.0
    assert worker.take(own) is None, "nothing was counted since"


def test_a_kafka_that_is_away_costs_no_more_than_counting_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    worker = rig.worker()

    def away() -> bool:
        raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))

    worker._meet = away  # type: ignore[method-assign]
    assert newest(worker, 2_000) is None
    assert "snapshots cannot be used, so the log is counted again" in caplog.text


def test_one_that_cannot_be_loaded_ends_no_worker(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    worker = rig.worker()
    worker._write(rig.producer, Snapshot(0, "this", 1_000, {"nothing": np.zeros(1)}))
    assert newest(worker, 2_000) is None
    assert "snapshots cannot be read, so the log is counted again" in caplog.text


def test_a_write_that_fails_meanwhile_refuses_and_deletes_nothing(rig: Rig) -> None:
    """A broker is lost: partitions move, and the other thread's snapshot fails."""
    rig.write(rig.worker(), 1_000)
    worker = rig.worker()
    with worker.reading() as find:
        worker._topic_id = ""  # until Kafka has been asked again
        assert find(TopicPartition("input", 0, 2_000, metadata="0")) is not None


def test_one_that_cannot_be_read_costs_the_other_partitions_nothing(rig: Rig) -> None:
    rig.write(rig.worker(), 1_000, number=0)
    rig.write(rig.worker(), 1_000, number=1)
    worker = rig.worker()
    worker._write(rig.producer, Snapshot(0, "this", 1_500, {"nothing": np.zeros(1)}))
    with worker.reading() as find:
        assert find(TopicPartition("input", 0, 2_000, metadata="0")) is None
        assert find(TopicPartition("input", 1, 2_000, metadata="0")) is not None


class Admin:
    """Kafka's administration, as far as the snapshots need it."""

    def __init__(self, topics: list[str], policy: str | Exception = "compact,delete", topic_id: Uuid | None = None):
        self.topics, self.policy, self.topic_id = topics, policy, topic_id or Uuid(1, 2)
        self.made: list[Any] = []

    def list_topics(self, timeout: float) -> Any:
        about = SimpleNamespace(partitions={number: SimpleNamespace(replicas=[1, 2, 3]) for number in range(12)})
        return SimpleNamespace(topics=dict.fromkeys(self.topics, about))

    def create_topics(self, new: list[Any], **_: float) -> dict[str, Future[None]]:
        self.made += new
        return {new[0].topic: done(None)}

    def describe_topics(self, names: Any, **_: float) -> dict[str, Future[Any]]:
        return {"input": done(SimpleNamespace(topic_id=self.topic_id))}

    def describe_configs(self, resources: list[Any], **_: float) -> dict[Any, Future[Any]]:
        return {resources[0]: done({"cleanup.policy": SimpleNamespace(value=self.policy)}, self.policy)}


def done(result: Any, error: object = None) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.set_result(result)
    return future


@pytest.fixture
def meets(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a worker meet Kafka; the worker."""

    def meet(admin: Admin) -> Snapshots:
        monkeypatch.setattr(module, "AdminClient", lambda _: admin)
        worker = rig.worker(topic_id="")
        Snapshots._meet(worker)
        return worker

    return meet


def test_the_topic_is_made_with_as_many_partitions_and_replicas_as_the_input(meets: Any) -> None:
    admin = Admin(["input"])
    assert meets(admin)._topic_id
    assert [(new.topic, new.num_partitions, new.replication_factor) for new in admin.made] == [(TOPIC, 12, 3)]


def test_nothing_is_written_to_a_topic_that_would_keep_all_of_it(meets: Any) -> None:
    with pytest.raises(SnapshotError, match=r"cleanup\.policy=delete.*cleanup\.policy=\[compact,delete\]"):
        meets(Admin(["input", TOPIC], policy="delete"))
    denied = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert meets(Admin(["input", TOPIC], policy=denied))._topic_id, "who may not see it trusts who made it"


def test_a_kafka_without_topic_ids_cannot_tell_a_topic_that_was_made_anew(meets: Any) -> None:
    with pytest.raises(SnapshotError, match="SNAPSHOT_SECONDS=0"):
        meets(Admin(["input", TOPIC], topic_id=Uuid(0, 0)))
