"""The lake over an S3 that refuses, hangs, and breaks off in the middle of uploads and answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.lake import s3
from mlops_assets.lake.s3 import StorageError
from mlops_assets.lake.store import Lake
from mlops_assets_tests.integration.faulty_proxy import Fault, Proxy, first, proxy
from mlops_assets_tests.lake.test_store import DAY, arrivals, snapshot, write

pytestmark = pytest.mark.integration


@pytest.fixture
def faulty(s3_variables: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to S3, which a test may break; timeouts are short."""
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    with proxy(s3_variables["AWS_ENDPOINT_URL_S3"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        s3.client.cache_clear()
        yield running


@pytest.fixture
def lake(bucket: str) -> Lake:
    return Lake(f"s3://{bucket}/lake")


@pytest.mark.parametrize("fault", ["refuse", "hang", "lose the answer"])
@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("PUT", "_staging"),  # the upload of a part
        ("PUT", "clicks/date"),  # the claim of the partition, by a conditional write
        ("POST", "?delete"),  # the clean-up of what was superseded
    ],
)
def test_a_fault_that_passes_costs_nothing_but_time(
    faulty: Proxy, lake: Lake, tmp_path: Path, fault: Fault, method: str, part: str
) -> None:
    undisturbed = Lake(str(tmp_path))
    for each in (lake, undisturbed):
        write(each, 0, 100)
    faulty.plan = first(2, fault, method, part)
    assert write(lake, 20, 70) == write(undisturbed, 20, 70)
    assert lake.storage.list("clicks") == sorted(snapshot(tmp_path))
    assert arrivals(lake) == arrivals(undisturbed)


@pytest.mark.parametrize("fault", ["refuse", "hang", "lose the answer"])
@pytest.mark.parametrize(("method", "part"), [("PUT", "partNumber=2"), ("POST", "uploadId")])
def test_a_large_upload_goes_on_where_it_was_broken(
    faulty: Proxy, lake: Lake, fault: Fault, method: str, part: str
) -> None:
    data = bytes(range(256)) * (80 << 10)
    faulty.plan = first(1, fault, method, part)
    with lake.storage.open_output("large") as file:
        file.write(data)
    assert lake.storage.open_input("large").read() == data


def test_an_answer_that_breaks_off_is_asked_for_again(faulty: Proxy, lake: Lake) -> None:
    write(lake, 0, 100)
    faulty.plan = first(2, "cut the answer", "GET", "part-00000")
    assert arrivals(lake) == list(range(105))
    faulty.plan = first(2, "cut the answer", "GET", "_manifest.json")
    assert lake.manifest("clicks", DAY)


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_a_fault_that_lasts_is_said_in_time_and_keeps_the_old_partition(
    faulty: Proxy, lake: Lake, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(lake, 0, 100)
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    s3.client.cache_clear()
    faulty.plan = first(1000, fault, "PUT", "_staging")
    with pytest.raises(StorageError, match="SlowDown" if fault == "refuse" else "timed? ?out"):
        write(lake, 20, 70)
    faulty.plan = first(0, fault, "", "")
    assert lake.manifest("clicks", DAY) == before
    assert arrivals(lake) == list(range(105))
    write(lake, 20, 70)
    assert arrivals(lake) == list(range(20, 75))
    assert lake.storage.list("_staging") == []


def test_a_record_that_arrived_though_its_answer_was_lost_is_ours(faulty: Proxy, lake: Lake) -> None:
    faulty.plan = first(1, "lose the answer", "PUT", "log")
    assert lake.storage.put_if("log/1.json", b"mine", None)
    faulty.plan = first(1, "refuse", "PUT", "log")
    assert lake.storage.put_if("log/1.json", b"another's", None) is None
    assert lake.storage.get("log/1.json") == (b"mine", lake.storage.put_if("log/2.json", b"mine", None))


def test_no_server_is_said_with_its_address(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    s3.client.cache_clear()
    with pytest.raises(StorageError, match=f"Could not connect to the endpoint URL.*{address}"):
        lake.days("clicks")
