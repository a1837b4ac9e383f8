"""The lake on a real S3 is the lake of a folder: the same objects, whole partitions, and clear errors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from mlops_assets.clicks.csv import write as csv_lines
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake import s3
from mlops_assets.lake.ingest import ingest
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.manifest import ConflictError, Manifest
from mlops_assets.lake.s3 import S3, StorageError
from mlops_assets.lake.store import Lake
from mlops_assets_tests.lake.test_ingest import DAY as LANDED_DAY
from mlops_assets_tests.lake.test_store import DAY, arrivals, snapshot, write, write_killed

pytestmark = pytest.mark.integration


@pytest.fixture
def lake(bucket: str) -> Lake:
    return Lake(f"s3://{bucket}/some/lake")


def objects(lake: Lake) -> dict[str, bytes]:
    """What another client of S3 sees below the lake's root."""
    root = lake.root.removeprefix("s3://")
    other = fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL_S3"].removeprefix("http://"), scheme="http", region="us-east-1"
    )
    infos = other.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info.path for info in infos if info.type == fs.FileType.File]
    return {path.removeprefix(f"{root}/"): other.open_input_file(path).read() for path in sorted(files)}


def test_the_same_rows_make_the_same_objects_as_in_a_folder(lake: Lake, tmp_path: Path) -> None:
    folder = Lake(str(tmp_path / "lake"))
    assert [write(lake, 0, 100), write(lake, 50, 80)] == [write(folder, 0, 100), write(folder, 50, 80)]
    for each in (lake, folder):
        each.append_record("promotions", "0002", {"champion": "b"})
        each.append_record("promotions", "0001", {"champion": "a"})
    assert objects(lake) == snapshot(Path(folder.root))
    assert arrivals(lake) == arrivals(folder)
    assert (lake.days("clicks"), lake.records("promotions")) == ([DAY], folder.records("promotions"))
    assert lake.uris(lake.require("clicks", DAY))[0].startswith(f"{lake.root}/clicks/date={DAY}/part-00000-")
    with pytest.raises(ConflictError, match="already holds another record 0001"):
        lake.append_record("promotions", "0001", {"champion": "c"})


def test_large_files_go_up_in_parts_and_are_moved_and_read_whole(
    lake: Lake, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = pickle.loads(pickle.dumps(lake.storage))  # as executors get it
    monkeypatch.setattr(s3.COPY, "multipart_threshold", 8 << 20)
    monkeypatch.setattr(s3.COPY, "multipart_chunksize", 8 << 20)
    data = np.random.default_rng(7).bytes((40 << 20) + 3)
    with storage.open_output("drafts/large") as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
    storage.move("drafts/large", "large")
    assert storage.list("drafts") == []
    parts = s3.client().head_object(Bucket=bucket, Key="some/lake/large", PartNumber=1)["PartsCount"]
    assert parts == 6
    with storage.open_input("large") as file:
        assert file.read() == data
        for position in (0, 1, (4 << 20) - 1, (4 << 20) + 1, len(data) - 8, len(data)):
            assert file.seek(position) == file.tell() == position
            assert file.read(5) == data[position : position + 5]
        assert file.seek(-8, os.SEEK_END) == len(data) - 8
        assert file.read() == data[-8:]


def test_a_file_whose_writing_fails_is_not_uploaded(lake: Lake) -> None:
    with suppress(ZeroDivisionError), lake.storage.open_output("half") as file:
        file.write(b"half a f")
        raise ZeroDivisionError
    lake.storage.open_output("never closed").write(b"nor this")
    assert objects(lake) == {}


def test_an_object_replaced_while_it_is_read_is_never_mixed(lake: Lake) -> None:
    for content in (b"old " * (2 << 20), b"new " * (2 << 20)):
        with lake.storage.open_output("object") as file:
            file.write(content)
        if content.startswith(b"old"):
            reading = lake.storage.open_input("object")
            assert reading.read(4) == b"old "
    with pytest.raises(StorageError, match="object was replaced while it was read: read it again"):
        reading.read()


def test_of_jobs_that_race_one_wins_whole(lake: Lake) -> None:
    def job(number: int) -> Manifest | None:
        try:
            return write(lake, 0, 20 + number)
        except ConflictError:
            return None

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            done = [manifest for manifest in pool.map(job, range(4)) if manifest]
            manifest = lake.require("clicks", DAY)
            assert manifest in done, "one of them won"
            assert arrivals(lake) == list(range(manifest.rows)), "whole"
    write(lake, 0, 7)  # a job that was overtaken while it copied a file leaves it to the next
    assert len(objects(lake)) == 3, "two parts and the manifest"


def test_killed_anywhere_the_old_partition_or_the_new_is_whole(bucket: str, tmp_path: Path) -> None:
    undisturbed = Lake(str(tmp_path / "undisturbed"))
    write(undisturbed, 20, 70)
    for after in range(9):
        lake = Lake(f"s3://{bucket}/{after}")
        write(lake, 0, 100)
        write_killed(lake, after)
        assert arrivals(lake) in ([*range(105)], [*range(20, 75)])
        if not lake.finished("clicks", DAY, {"landing": "v2"}, "1"):
            write(lake, 20, 70)
        assert objects(lake) == snapshot(Path(undisturbed.root)), f"killed before call {after}"


def test_a_landing_file_on_s3_is_ingested_and_seen_when_it_changes(lake: Lake, tmp_path: Path) -> None:
    manifests = []
    for root in (lake.root, str(tmp_path)):
        landing = Landing(root)
        versions = []
        for seed in (1, 1, 2):
            with landing.stage(LANDED_DAY) as file:
                for clicks in generate_day(date.fromisoformat(LANDED_DAY), 5_000, seed):
                    file.write(csv_lines(clicks))
                landing.publish([file], replace=True)
            versions.append(landing.days()[LANDED_DAY])
        assert versions[0] == versions[1] != versions[2]
        manifests.append(ingest(landing, Lake(root), LANDED_DAY))
    assert manifests[0] == manifests[1]
    assert not lake.storage.list("_staging")


def test_a_missing_bucket_and_a_missing_object_are_named(lake: Lake) -> None:
    reads: list[Callable[[S3], object]] = [lambda storage: storage.get("key"), lambda storage: storage.list("folder")]
    for call in reads:
        with pytest.raises(StorageError, match=r"no bucket nowhere at http://.*create it, or correct .*MLOPS_LAKE"):
            call(S3("nowhere"))
    with pytest.raises(StorageError, match="no bucket nowhere"):
        write(Lake("s3://nowhere/lake"))
    with pytest.raises(FileNotFoundError, match="some/lake/key does not exist"):
        lake.storage.open_input("key")
    with pytest.raises(FileNotFoundError, match="some/lake/key does not exist"):
        lake.storage.move("key", "other")
    lake.storage.delete(["key"])


def test_wrong_keys_are_said_with_what_to_check(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(lake)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.client.cache_clear()
    calls: list[Callable[[], object]] = [
        lambda: lake.manifest("clicks", DAY),
        lambda: lake.days("clicks"),
        lambda: list(lake.read_part(manifest, 0)),
        lambda: lake.append_record("log", "1", {}),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=r"refuses these credentials.*check AWS_ACCESS_KEY_ID"):
            call()
