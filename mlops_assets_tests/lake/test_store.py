"""The lake: a day of a table is whole or absent, whatever happens to the job that writes it."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_assets.lake import catalog, store
from mlops_assets.lake.manifest import ConflictError, Manifest, MissingPartitionError
from mlops_assets.lake.storage import Folder
from mlops_assets.lake.store import Lake
from mlops_assets.lake.tables import RAW_CLICKS

DAY, OTHER_DAY = "2017-11-06", "2017-11-07"
TABLE = "raw_clicks"


def rows(start: int, stop: int, day: str = DAY) -> pa.RecordBatch:
    noon = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    common = {"day": date.fromisoformat(day), "click_time": noon, "is_attributed": 0}
    ids = ("ip", "app", "device", "os", "channel")
    each = ({**common, "arrival": n, **dict.fromkeys(ids, n % 7)} for n in range(start, stop))
    return pa.RecordBatch.from_pylist(list(each), schema=RAW_CLICKS)


def write(
    lake: Lake, start: int = 0, stop: int = 100, *, inputs: str = "v1", batch: int = 1000, day: str = DAY
) -> Manifest:
    with lake.stage(TABLE, day, inputs={"landing": inputs}, code_version="1") as staging:
        with staging.part(1) as second:
            second.write_rows(rows(stop, stop + 5, day))
            second.notes["installs"] = 2
        with staging.part(0) as first:
            for begin in range(start, stop, batch):
                first.write_rows(rows(begin, min(begin + batch, stop), day))
            first.notes |= {"installs": 1, "hours": [1, 2]}
        return staging.commit([second.file, first.file])


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def arrivals(lake: Lake, day: str = DAY) -> list[int]:
    return [arrival for batch in lake.read(TABLE, day, ["arrival"]) for arrival in batch["arrival"].to_pylist()]


def parquet(lake: Lake) -> list[str]:
    return [key for key in lake.storage.list(TABLE) if key.endswith(".parquet")]


def committed(lake: Lake) -> set[str]:
    return {file.key for day in lake.days(TABLE) for file in lake.require(TABLE, day).files}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_rows_come_back_in_the_order_of_the_parts_and_to_any_other_tool(lake: Lake) -> None:
    manifest = write(lake, 0, 100)
    assert arrivals(lake) == list(range(105))
    assert manifest == lake.manifest(TABLE, DAY)
    assert manifest.metadata == {"installs": 3, "hours": [1, 2]}
    assert (manifest.rows, lake.days(TABLE)) == (105, [DAY])
    table = catalog.load(lake.root, TABLE)
    assert table
    by_name = pl.scan_iceberg(table.metadata_location).collect()
    assert by_name["arrival"].sort().to_list() == list(range(105))
    assert by_name["day"].unique().to_list() == [date.fromisoformat(DAY)]


def test_files_carry_the_field_ids_and_what_a_column_is_stands_in_the_table(lake: Lake) -> None:
    (first, _) = write(lake).files
    with lake.storage.open_input(first.key) as file:
        ids = {field.name: int(field.metadata[b"PARQUET:field_id"]) for field in pq.read_schema(file)}
    table = catalog.load(lake.root, TABLE)
    assert table
    assert {field.name: field.field_id for field in table.schema().fields} == ids
    assert table.schema().find_field("ip").doc == "anonymised address of the click"
    assert [field.name for field in table.spec().fields] == ["day"]
    assert table.schema().find_column_name(table.sort_order().fields[0].source_id) == "arrival"


def test_equal_rows_make_an_equal_version_whatever_the_batches(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.lake.part.ROW_GROUP_ROWS", 30)
    other = Lake(str(tmp_path / "other"))
    assert write(lake, batch=7) == write(other, batch=64)
    assert write(lake, 0, 101) != write(other)


def test_the_last_row_counts(lake: Lake) -> None:
    versions = set()
    for last in (5, 6):
        with lake.stage(TABLE, DAY, inputs={}, code_version="1") as staging:
            with staging.part(0) as part:
                part.write_rows(pa.Table.from_batches([rows(0, 4), rows(last, last + 1)]))
            versions.add(staging.commit([part.file]).version)
    assert len(versions) == 2


def test_committing_the_same_again_touches_nothing(lake: Lake) -> None:
    write(lake)
    before = {path: path.stat().st_mtime_ns for path in Path(lake.root).rglob("*.*")}
    write(lake)
    assert {path: path.stat().st_mtime_ns for path in Path(lake.root).rglob("*.*")} == before


def test_equal_rows_of_another_input_keep_the_version(lake: Lake) -> None:
    first, second = write(lake), write(lake, inputs="v2")
    assert first.version == second.version
    assert lake.finished(TABLE, DAY, {"landing": "v1"}, "1") is None
    assert lake.finished(TABLE, DAY, {"landing": "v2"}, "2") is None
    assert lake.finished(TABLE, DAY, {"landing": "v2"}, "1") == second


def test_a_day_can_be_emptied(lake: Lake) -> None:
    write(lake)
    write(lake, day=OTHER_DAY)
    with lake.stage(TABLE, DAY, inputs={}, code_version="1") as staging:
        staging.commit([])
    assert (lake.manifest(TABLE, DAY), lake.days(TABLE)) == (None, [OTHER_DAY])


def test_a_job_that_fails_leaves_the_old_day_and_no_litter(lake: Lake) -> None:
    write(lake)
    before = snapshot(Path(lake.root))
    with (
        suppress(ZeroDivisionError),
        lake.stage(TABLE, DAY, inputs={}, code_version="1") as staging,
        staging.part(0) as part,
    ):
        part.write_rows(rows(0, 3))
        raise ZeroDivisionError
    assert snapshot(Path(lake.root)) == before


def test_only_the_reported_parts_count(lake: Lake) -> None:
    with lake.stage(TABLE, DAY, inputs={}, code_version="1") as staging:
        executor = pickle.loads(pickle.dumps(staging))
        attempts = []
        for _ in range(2):  # a task that ran twice
            with executor.part(0) as part:
                part.write_rows(rows(0, 9))
            attempts.append(part.file)
        staging.commit(attempts[1:])
    assert arrivals(lake) == list(range(9))
    assert parquet(lake) == [attempts[1].key]


def test_of_two_jobs_at_once_one_wins_whole(lake: Lake) -> None:
    with lake.stage(TABLE, DAY, inputs={}, code_version="1") as slow:
        with slow.part(0) as part:
            part.write_rows(rows(0, 9))
        winner = write(lake, 0, 50)
        with pytest.raises(ConflictError, match=r"2017-11-06.*run this one again"):
            slow.commit([part.file])
    assert lake.manifest(TABLE, DAY) == winner
    assert arrivals(lake) == list(range(55))
    assert set(parquet(lake)) == committed(lake)


def race(lake: Lake, days: list[str], number_of_race: int = 0) -> list[Manifest | None]:
    """As many jobs as days that commit at the same moment; None for one that said that it was overtaken."""
    ready = threading.Barrier(len(days))

    def job(number: int) -> Manifest | None:
        with lake.stage(TABLE, days[number], inputs={"job": f"{number_of_race}-{number}"}, code_version="1") as staging:
            with staging.part(0) as part:
                part.write_rows(rows(0, 20 + number, days[number]))
            ready.wait(60)
            try:
                return staging.commit([part.file])
            except ConflictError:
                return None

    with ThreadPoolExecutor(len(days)) as pool:
        return list(pool.map(job, range(len(days))))


@pytest.mark.parametrize("there", [False, True])
def test_of_jobs_that_race_for_a_day_one_wins_whole_and_leaves_no_litter(lake: Lake, there: bool) -> None:
    if there:
        write(lake)
    for number in range(3):
        before = set(parquet(lake))
        (winner,) = [manifest for manifest in race(lake, [DAY] * 4, number) if manifest]
        assert lake.require(TABLE, DAY) == winner
        assert arrivals(lake) == list(range(winner.rows))
        assert set(parquet(lake)) - before == committed(lake)


def test_days_that_race_are_committed_all(lake: Lake) -> None:
    days = [f"2017-11-{number:02}" for number in range(6, 12)]
    assert all(race(lake, days))
    assert lake.days(TABLE) == days
    assert all(race(lake, days[::-1], 1))
    assert [arrivals(lake, day) for day in days[::-1]] == [list(range(20 + number)) for number in range(len(days))]


def write_killed(lake: Lake, after: int) -> int:
    """Writes 20 to 70 in a process that is killed at the call to storage or catalog after `after` ones.

    Returns its exit code: that of the kill, or 0 if it was done before.
    """

    def write_and_die() -> None:
        calls, storage = count(), type(lake.storage)

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def killed(*args: Any, **more: Any) -> Any:
                if next(calls) == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)

            return killed

        for name in ("delete", "open_output"):
            setattr(storage, name, dying(getattr(storage, name)))
        sql = type(catalog._catalog(lake.root))
        for name in ("load_table", "commit_table"):
            setattr(sql, name, dying(getattr(sql, name)))
        write(lake, 20, 70)

    process = multiprocessing.get_context("fork").Process(target=write_and_die)
    process.start()
    process.join(60)
    return process.exitcode or 0


def test_killed_anywhere_the_old_day_or_the_new_is_whole(lake: Lake) -> None:
    write(lake, 0, 100)
    outcomes, after = list[list[int]](), 0
    while write_killed(lake, after) == -signal.SIGKILL:
        after += 1
        outcomes.append(arrivals(lake))
        assert outcomes[-1] in ([*range(105)], [*range(20, 75)]), f"killed before call {after}"
        assert set(parquet(lake)) >= committed(lake)
        write(lake, 0, 100)
    assert arrivals(lake) == [*range(20, 75)]
    assert after > 10
    assert [*range(20, 75)] in outcomes, "also killed after the commit"


def test_a_commit_whose_answer_is_lost_is_found_by_its_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    write(lake, 0, 100)
    sql = type(catalog._catalog(lake.root))
    commit = sql.commit_table

    def lost(self: Any, *args: Any) -> None:
        commit(self, *args)
        raise OperationalError("UPDATE", {}, OSError("the server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(sql, "commit_table", lost)
        assert write(lake, 20, 70).rows == 55
    assert arrivals(lake) == list(range(20, 75))


def test_a_commit_that_the_database_refuses_is_said_and_deletes_nothing_that_may_count(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    write(lake, 0, 100)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(catalog._catalog(lake.root)),
            "commit_table",
            lambda *_: (_ for _ in ()).throw(OperationalError("UPDATE", {}, OSError("disk full"))),
        )
        with pytest.raises(catalog.CatalogError, match="disk full"):
            write(lake, 20, 70)
    assert arrivals(lake) == list(range(105))
    assert arrivals(Lake(lake.root)) == list(range(105))


def test_a_missing_day_says_what_to_do(lake: Lake) -> None:
    assert lake.manifest(TABLE, DAY) is None
    with pytest.raises(MissingPartitionError, match="no raw_clicks of 2017-11-06; materialize raw_clicks"):
        next(lake.read(TABLE, DAY))


def test_a_day_replaced_while_it_is_read_is_read_to_its_end(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BATCH_ROWS", 10)
    write(lake, 0, 100)
    batches = lake.read(TABLE, DAY, ["arrival"])
    first = next(batches)
    write(lake, 50, 80)
    rest = [arrival for batch in batches for arrival in batch["arrival"].to_pylist()]
    assert [*first["arrival"].to_pylist(), *rest] == list(range(105))


def test_a_lake_that_stands_still_is_the_one_in_which_it_was_first_read(lake: Lake) -> None:
    write(lake, 0, 100)
    still = lake.still()
    assert still.days(TABLE) == [DAY]
    write(lake, 50, 80)
    write(lake, day=OTHER_DAY)
    assert arrivals(still) == list(range(105))
    assert still.days(TABLE) == [DAY]
    assert lake.days(TABLE) == [DAY, OTHER_DAY]


def test_old_snapshots_are_forgotten_but_for_those_with_a_name(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MOST_SNAPSHOTS", 6)
    monkeypatch.setattr(catalog, "KEPT_SNAPSHOTS", 3)
    monkeypatch.setattr(catalog, "KEPT_SECONDS", 0)
    first = write(lake)
    table = catalog.load(lake.root, TABLE)
    assert table
    named = table.metadata.snapshots[0].snapshot_id
    table.manage_snapshots().create_tag(named, "kept").commit()
    write(lake, 5, 9, day=OTHER_DAY)
    for number in range(8):
        write(lake, 0, 10 + number, inputs=str(number))
        assert arrivals(lake) == list(range(15 + number))
    table = catalog.load(lake.root, TABLE)
    assert table
    assert len(table.metadata.snapshots) <= 7
    assert table.scan(snapshot_id=named).to_arrow()["arrival"].to_pylist() == list(range(first.rows))
    assert arrivals(lake, OTHER_DAY) == list(range(5, 14)), "what a day was made of outlives the snapshot that made it"
    assert lake.finished(TABLE, OTHER_DAY, {"landing": "v1"}, "1")


def test_files_of_another_tool_count_as_unfinished(lake: Lake) -> None:
    write(lake)
    key = f"{TABLE}/data/compacted.parquet"
    with lake.storage.open_output(key) as sink:
        pq.write_table(pa.Table.from_batches([rows(0, 105)]), sink)
    table = catalog.load(lake.root, TABLE)
    assert table
    catalog.replace(table, DAY, catalog.files(table, DAY), [lake.storage.uri(key)])
    assert arrivals(lake) == list(range(105))
    assert lake.finished(TABLE, DAY, {"landing": "v1"}, "1") is None
    assert write(lake) == lake.require(TABLE, DAY)


def test_a_catalog_that_holds_another_lakes_tables_is_refused(lake: Lake, tmp_path: Path) -> None:
    write(lake)
    copy = Path(tmp_path / "copy")
    copy.mkdir()
    (copy / "catalog.db").write_bytes(Path(lake.root, "catalog.db").read_bytes())
    with pytest.raises(ValueError, match="each lake has a catalog of its own"):
        write(Lake(str(copy)))


def test_a_lake_on_s3_without_a_catalog_says_what_to_set() -> None:
    with pytest.raises(ValueError, match="s3://bucket/lake has no catalog: set PYICEBERG_CATALOG__LAKE__URI"):
        Lake("s3://bucket/lake").manifest(TABLE, DAY)


def test_what_executors_need_is_imported_without_pyiceberg() -> None:
    code = "import sys, mlops_assets.spark.both; assert not [m for m in sys.modules if m.startswith('pyiceberg')]"
    process = multiprocessing.get_context("spawn").Process(target=exec, args=(code,))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_a_log_is_append_only_and_sorted(lake: Lake) -> None:
    lake.append_record("promotions", "0002", {"champion": "b"})
    lake.append_record("promotions", "0001", {"champion": "a"})
    lake.append_record("promotions", "0001", {"champion": "a"})
    with pytest.raises(ConflictError, match="already holds another record 0001"):
        lake.append_record("promotions", "0001", {"champion": "c"})
    assert lake.records("promotions") == [{"champion": "a"}, {"champion": "b"}]
    assert lake.records("nothing") == []


def test_a_storage_knows_its_own_addresses_only(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    assert storage.key(storage.uri("a/b")) == "a/b"
    with pytest.raises(ValueError, match="does not lie in"):
        storage.key("/elsewhere/a")
