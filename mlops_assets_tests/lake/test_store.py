"""The lake: a partition is whole or absent, whatever happens to the job that writes it."""

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mlops_assets.lake import store
from mlops_assets.lake.manifest import ConflictError, Manifest, MissingPartitionError
from mlops_assets.lake.storage import Folder
from mlops_assets.lake.store import Lake

DAY = "2017-11-06"
SCHEMA = pa.schema({"arrival": pa.uint32(), "app": pa.uint16()})


def rows(start: int, stop: int) -> pa.RecordBatch:
    numbers = list(range(start, stop))
    return pa.record_batch([numbers, [n % 7 for n in numbers]], schema=SCHEMA)


def write(lake: Lake, start: int = 0, stop: int = 100, *, inputs: str = "v1", batch: int = 1000) -> Manifest:
    with lake.stage("clicks", DAY) as staging:
        with staging.part(SCHEMA, 1) as second:
            second.write_rows(rows(stop, stop + 5))
        with staging.part(SCHEMA, 0) as first:
            for begin in range(start, stop, batch):
                first.write_rows(rows(begin, min(begin + batch, stop)))
        return staging.commit([second.staged, first.staged], inputs={"landing": inputs}, code_version="1")


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def arrivals(lake: Lake) -> list[int]:
    return [arrival for batch in lake.read("clicks", DAY, ["arrival"]) for arrival in batch["arrival"].to_pylist()]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_rows_come_back_in_the_order_of_the_parts_and_to_any_other_tool(lake: Lake) -> None:
    manifest = write(lake, 0, 100)
    assert arrivals(lake) == list(range(105))
    assert manifest == lake.manifest("clicks", DAY)
    assert (manifest.rows, lake.days("clicks")) == (105, [DAY])
    plain = pl.read_parquet(f"{lake.root}/clicks/**/*.parquet", hive_partitioning=True)
    assert plain["arrival"].sort().to_list() == list(range(105))
    assert plain["date"].unique().to_list() == [pl.Series([DAY]).str.to_date()[0]]


def test_equal_rows_make_an_equal_lake_whatever_the_batches(lake: Lake, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("mlops_assets.lake.part.ROW_GROUP_ROWS", 30)
    other = Lake(str(tmp_path / "other"))
    write(lake, batch=7)
    write(other, batch=64)
    assert snapshot(Path(lake.root)) == snapshot(Path(other.root))


def test_committing_the_same_again_touches_nothing(lake: Lake) -> None:
    write(lake)
    before = {path: path.stat().st_mtime_ns for path in Path(lake.root).rglob("*.*")}
    write(lake)
    assert {path: path.stat().st_mtime_ns for path in Path(lake.root).rglob("*.*")} == before


def test_equal_rows_of_another_input_keep_the_version(lake: Lake) -> None:
    first, second = write(lake), write(lake, inputs="v2")
    assert first.version == second.version
    assert lake.finished("clicks", DAY, {"landing": "v1"}, "1") is None
    assert lake.finished("clicks", DAY, {"landing": "v2"}, "2") is None
    assert lake.finished("clicks", DAY, {"landing": "v2"}, "1") == second


def test_a_replaced_partition_leaves_no_old_file(lake: Lake, tmp_path: Path) -> None:
    write(lake, 0, 100)
    write(lake, 50, 80)
    undisturbed = Lake(str(tmp_path / "undisturbed"))
    write(undisturbed, 50, 80)
    assert snapshot(Path(lake.root)) == snapshot(Path(undisturbed.root))


def test_a_job_that_fails_leaves_the_old_partition_and_no_litter(lake: Lake) -> None:
    write(lake)
    before = snapshot(Path(lake.root))
    with suppress(ZeroDivisionError), lake.stage("clicks", DAY) as staging, staging.part(SCHEMA, 0) as part:
        part.write_rows(rows(0, 3))
        raise ZeroDivisionError
    assert snapshot(Path(lake.root)) == before


def test_only_the_reported_parts_count(lake: Lake) -> None:
    with lake.stage("clicks", DAY) as staging:
        executor = pickle.loads(pickle.dumps(staging))
        attempts = []
        for _ in range(2):  # a task that ran twice
            with executor.part(SCHEMA, 0) as part:
                part.write_rows(rows(0, 9))
            attempts.append(part.staged)
        staging.commit(attempts[1:], inputs={}, code_version="1")
    assert arrivals(lake) == list(range(9))
    assert not (Path(lake.root) / "_staging").exists()


def test_of_two_jobs_at_once_one_wins_whole(lake: Lake) -> None:
    with lake.stage("clicks", DAY) as slow:
        with slow.part(SCHEMA, 0) as part:
            part.write_rows(rows(0, 9))
        winner = write(lake, 0, 50)
        with pytest.raises(ConflictError, match=r"2017-11-06.*run this one again"):
            slow.commit([part.staged], inputs={}, code_version="1")
    assert lake.manifest("clicks", DAY) == winner
    assert arrivals(lake) == list(range(55))


def test_jobs_that_race_leave_a_whole_partition_and_no_litter(lake: Lake) -> None:
    def job(number: int) -> int:
        wins = 0
        for _ in range(5):
            with suppress(ConflictError):
                write(lake, 0, 20 + number)
                wins += 1
        return wins

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(job, range(4))) > 0
    manifest = lake.require("clicks", DAY)
    assert arrivals(lake) == list(range(manifest.rows))
    write(lake, 0, 7)  # a job that was overtaken while it moved a file leaves it to the next replacement
    assert len(list(Path(lake.root).rglob("*.*"))) == 3


def test_a_job_overtaken_inside_its_commit_loses(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    move = Folder.move

    def overtaken(self: Folder, source: str, target: str) -> None:
        monkeypatch.setattr(Folder, "move", move)
        write(lake, 0, 50)
        move(self, source, target)

    monkeypatch.setattr(Folder, "move", overtaken)
    with pytest.raises(ConflictError):
        write(lake, 0, 9)
    assert arrivals(lake) == list(range(55))


def write_killed(lake: Lake, after: int) -> None:
    """Writes 20 to 70 in a process that is killed at the storage call after `after` ones."""

    def write_and_die() -> None:
        calls, storage = count(), type(lake.storage)

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def killed(*args: Any) -> Any:
                if next(calls) == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)

            return killed

        for name in ("put_if", "move", "delete", "open_output"):
            setattr(storage, name, dying(getattr(storage, name)))
        write(lake, 20, 70)

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("rerun", ["the same job", "another job"])
def test_killed_anywhere_the_old_partition_or_the_new_is_whole(
    lake: Lake, after: int, rerun: str, tmp_path: Path
) -> None:
    write(lake, 0, 100)
    write_killed(lake, after)
    assert arrivals(lake) in ([*range(105)], [*range(20, 75)])

    stop = 70 if rerun == "the same job" else 60
    if not (rerun == "the same job" and lake.finished("clicks", DAY, {"landing": "v2"}, "1")):
        write(lake, 20, stop)
    undisturbed = Lake(str(tmp_path / "undisturbed"))
    write(undisturbed, 20, stop)
    assert snapshot(Path(lake.root)) == snapshot(Path(undisturbed.root))


def test_a_resumed_job_cleans_up_after_a_killed_commit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Folder, keys: list[str]) -> None:
        raise KeyboardInterrupt

    write(lake, 0, 100)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Folder, "delete", killed)
        write(lake, 20, 70)
    assert len(list(Path(lake.root).rglob("*.parquet"))) > 2
    assert lake.finished("clicks", DAY, {"landing": "v1"}, "1")
    assert pl.read_parquet(f"{lake.root}/clicks/*/*.parquet")["arrival"].sort().to_list() == list(range(20, 75))


def test_a_partition_replaced_while_it_is_found_finished_is_not_put_back(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lake, 0, 100)
    settle = store.Staging.settle

    def overtaken(self: store.Staging, *args: Any) -> None:
        monkeypatch.setattr(store.Staging, "settle", settle)
        write(lake, 20, 70)
        settle(self, *args)

    monkeypatch.setattr(store.Staging, "settle", overtaken)
    with pytest.raises(ConflictError):
        lake.finished("clicks", DAY, {"landing": "v1"}, "1")
    assert arrivals(lake) == list(range(20, 75))


def test_a_missing_partition_says_what_to_do(lake: Lake) -> None:
    assert lake.manifest("clicks", DAY) is None
    with pytest.raises(MissingPartitionError, match="no clicks of 2017-11-06; materialize clicks"):
        next(lake.read("clicks", DAY))


def test_a_partition_replaced_while_read_is_said(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BATCH_ROWS", 10)
    write(lake, 0, 100)
    batches = lake.read("clicks", DAY)
    next(batches)
    write(lake, 50, 80)
    with pytest.raises(ConflictError, match="read it again"):
        list(batches)


def test_others_lie_beside_the_data_and_out_of_its_way(lake: Lake) -> None:
    with lake.stage("clicks", DAY) as staging:
        with staging.part(SCHEMA, 0) as part:
            part.write_rows(rows(0, 9))
        with staging.other("_quarantine", ".jsonl.gz") as quarantine:
            quarantine.write(b"bad rows")
        manifest = staging.commit([part.staged], inputs={}, code_version="1", others=[quarantine.staged])
    assert lake.open_other(manifest, "_quarantine").read() == b"bad rows"
    assert manifest.rows == pl.read_parquet(f"{lake.root}/clicks/**/*.parquet").height == 9
    with pytest.raises(FileNotFoundError, match="no file _nothing"):
        lake.open_other(manifest, "_nothing")


def test_a_log_is_append_only_and_sorted(lake: Lake) -> None:
    lake.append_record("promotions", "0002", {"champion": "b"})
    lake.append_record("promotions", "0001", {"champion": "a"})
    lake.append_record("promotions", "0001", {"champion": "a"})
    with pytest.raises(ConflictError, match="already holds another record 0001"):
        lake.append_record("promotions", "0001", {"champion": "c"})
    assert lake.records("promotions") == [{"champion": "a"}, {"champion": "b"}]
    assert lake.records("nothing") == []


def test_the_manifest_is_plain_json_without_times_or_places(lake: Lake) -> None:
    write(lake)
    text = (Path(lake.root) / "clicks" / f"date={DAY}" / "_manifest.json").read_text()
    assert lake.root not in text
    assert json.loads(text)["partition"]["rows"] == 105
