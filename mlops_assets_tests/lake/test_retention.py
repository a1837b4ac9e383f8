"""What the lake deletes: never what a snapshot has, nor what a job under way has just written."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.automation.retention import retention as job
from mlops_assets.lake import catalog, retention
from mlops_assets.lake.store import Lake
from mlops_assets.resources.lake import LakeResource
from mlops_assets_tests.lake.test_store import DAY, OTHER_DAY, TABLE, arrivals, committed, parquet, write

AGE = timedelta(days=3)
LATER = datetime.now(UTC) + timedelta(days=4)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def orphans(lake: Lake, now: datetime = LATER) -> set[str]:
    return {each.key for each in retention.orphans(lake, TABLE, AGE, now)}


def write_and_die(lake: Lake) -> str:
    """Writes a file that nobody ever commits, as a job does that is killed; its key."""
    staging = lake.stage(TABLE, OTHER_DAY, inputs={}, code_version="1")
    with staging.part(0) as part:
        pass
    return part.file.key


def test_what_a_killed_job_left_goes_and_what_a_snapshot_has_stays(lake: Lake) -> None:
    for stop in (10, 20, 30):
        write(lake, 0, stop)
    everything, left = set(parquet(lake)), write_and_die(lake)
    assert orphans(lake) == {left}
    assert orphans(lake, datetime.now(UTC)) == set()  # its job may be under way
    table = catalog.load(lake.root, TABLE)
    assert table
    assert everything == {lake.storage.key(uri) for uri in catalog.needed(table) if uri.endswith(".parquet")}


def test_replaced_files_go_when_their_snapshots_have_expired(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MOST_SNAPSHOTS": 4, "KEPT_SNAPSHOTS": 3, "KEPT_SECONDS": 0}.items():
        monkeypatch.setattr(catalog, name, value)
    for stop in range(10, 60, 10):
        write(lake, 0, stop)
        write(lake, 0, stop, day=OTHER_DAY)
    found = orphans(lake)
    assert len([key for key in found if key.endswith(".parquet")]) >= 8
    assert found.isdisjoint(committed(lake))
    lake.storage.delete(sorted(found))
    assert orphans(lake) == set()
    fresh = Lake(lake.root)
    assert arrivals(fresh) == arrivals(fresh, OTHER_DAY) == list(range(55))
    table = catalog.load(lake.root, TABLE)
    assert table
    assert [table.scan(snapshot_id=each.snapshot_id).to_arrow().num_rows for each in table.snapshots()]
    write(fresh, 0, 70)
    assert arrivals(fresh) == list(range(75))


def test_a_snapshot_that_a_run_may_read_does_not_expire(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MOST_SNAPSHOTS", 2)
    monkeypatch.setattr(catalog, "KEPT_SNAPSHOTS", 1)
    write(lake, 0, 10)
    still = lake.still()
    assert still.manifest(TABLE, DAY)
    for stop in range(20, 60, 10):
        write(lake, 0, stop)
    lake.storage.delete(sorted(orphans(lake)))
    assert arrivals(still) == list(range(15))


def test_a_job_under_way_is_given_time(lake: Lake) -> None:
    with pytest.raises(ValueError, match="2 days old at least"):
        retention.orphans(lake, TABLE, timedelta(days=1))


def test_nothing_is_judged_by_a_catalog_that_was_lost_or_restored(lake: Lake, tmp_path: Path) -> None:
    write(lake, 0, 10)
    shutil.copy(tmp_path / "lake/catalog.db", tmp_path / "backup.db")
    for stop in (20, 30):
        write(lake, 0, stop)
    shutil.copy(tmp_path / "backup.db", tmp_path / "lake/catalog.db")
    with pytest.raises(retention.CatalogBehindError, match=r"version 1 .* version 3 lies in the lake"):
        orphans(lake)
    (tmp_path / "lake/catalog.db").unlink()
    catalog._opened.cache_clear()
    with pytest.raises(retention.CatalogBehindError, match="knows no snapshot"):
        orphans(lake)


def test_the_job_says_what_it_would_delete_before_it_does(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lake, 0, 10)
    left, before = write_and_die(lake), len(parquet(lake))
    monkeypatch.setattr(retention, "LEAST_AGE", timedelta(0))
    monkeypatch.setattr("mlops_assets.lake.retention.datetime", _Later)

    def run(**config: object) -> dg.ExecuteInProcessResult:
        operation = {"delete_orphan_files": {"config": config}} if config else {}
        return job.execute_in_process(run_config={"ops": operation}, resources={"lake": LakeResource(root=lake.root)})

    (said,) = [event for event in run().all_events if event.is_successful_output]
    metadata = said.step_output_data.metadata
    assert metadata["dry run"].value is True
    assert metadata[f"{TABLE}/files"].value == 1
    assert len(parquet(lake)) == before
    run(dry_run=False)
    assert left not in parquet(lake)
    assert arrivals(lake) == list(range(15))


class _Later(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return LATER
