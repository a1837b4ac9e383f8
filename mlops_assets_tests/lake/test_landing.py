"""Landing files: versions that follow the content, nothing half-written, and no day overwritten by chance."""

import gzip
import shutil
from pathlib import Path

import pytest

from mlops_assets.clicks import csv
from mlops_assets.lake.landing import HEADER, LandedError, Landing

LINE = b"1,2,3,4,5,2017-11-06 16:00:00,,0\n"


def land(landing: Landing, day: str, lines: bytes, replace: bool = False) -> list[str]:
    with landing.stage(day) as file:
        file.write(lines)
        return landing.publish([file], replace)


def test_a_landed_day_can_be_read(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path))
    assert landing.days() == {}
    assert land(landing, "2017-11-07", LINE) == ["2017-11-07"]
    assert land(landing, "2017-11-06", LINE * 3) == ["2017-11-06"]
    assert list(landing.days()) == ["2017-11-06", "2017-11-07"]
    with landing.open("2017-11-06") as stream:
        assert stream.read() == HEADER + LINE * 3
    assert Path(landing.uri("2017-11-06")) == tmp_path / "landing" / "2017-11-06.csv.gz"
    with pytest.raises(FileNotFoundError):
        landing.open("2017-11-05")


def test_the_same_clicks_change_nothing(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path))
    land(landing, "2017-11-06", LINE)
    before, time = landing.days(), (tmp_path / "landing/2017-11-06.csv.gz").stat().st_mtime_ns
    assert land(landing, "2017-11-06", LINE) == []
    assert landing.days() == before
    assert (tmp_path / "landing/2017-11-06.csv.gz").stat().st_mtime_ns == time


def test_other_clicks_need_replace_and_change_the_version(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path))
    land(landing, "2017-11-06", LINE)
    before = landing.days()
    with landing.stage("2017-11-06") as old, landing.stage("2017-11-07") as new:
        old.write(LINE.replace(b"1", b"7"))
        with pytest.raises(LandedError, match=r"2017-11-06: already landed .* --replace"):
            landing.publish([old, new], replace=False)
    assert landing.days() == before  # not even the new day
    assert land(landing, "2017-11-06", LINE.replace(b"1", b"7"), replace=True) == ["2017-11-06"]
    assert landing.days() != before


def test_a_copied_or_delivered_file_has_the_version_of_its_content(tmp_path: Path) -> None:
    landing, copy = Landing(str(tmp_path / "a")), Landing(str(tmp_path / "b"))
    land(landing, "2017-11-06", LINE)
    shutil.copytree(tmp_path / "a/landing", tmp_path / "b/landing")
    assert copy.days() == landing.days()
    for lines in (LINE.replace(b"2", b"8"), LINE * 2):
        (tmp_path / "b/landing/2017-11-06.csv.gz").write_bytes(gzip.compress(HEADER + lines))
        assert copy.days() != landing.days()


def test_what_was_not_published_leaves_nothing_behind(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path))

    def interrupted() -> None:
        with landing.stage("2017-11-06") as file:
            file.write(LINE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert landing.days() == {}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_files_are_no_days_and_a_damaged_one_still_is(tmp_path: Path) -> None:
    folder = tmp_path / "landing"
    (folder / "rejects").mkdir(parents=True)
    for name in ("readme.txt", ".2017-11-06.csv.gz", "rejects/2017-11-06.csv.gz", "2017-11-06.csv"):
        (folder / name).write_bytes(b"x")
    landing = Landing(str(tmp_path))
    assert landing.days() == {}
    (folder / "2017-11-06.csv.gz").write_bytes(b"")
    assert list(landing.days()) == ["2017-11-06"]
    with landing.open("2017-11-06") as stream, pytest.raises(ValueError, match="the file is empty"):
        csv.read(stream, "x")


def test_a_day_is_a_date(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="month must be"):
        Landing(str(tmp_path)).stage("2017-13-06")
