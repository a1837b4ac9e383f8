"""What `mlops-assets import` and `generate` print and leave behind."""

import gzip
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlops_assets.cli import main
from mlops_assets.clicks import csv
from mlops_assets.clicks.csv import TRAIN_COLUMNS
from mlops_assets.lake.landing import HEADER, Landing

LINE = b"1,2,3,4,5,2017-11-06 16:00:00,,0\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_generate_lands_valid_days_and_again_changes_nothing(tmp_path: Path) -> None:
    arguments = ("generate", "--days", 2, "--clicks", 70_000, "--home", tmp_path)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "2017-11-07         70,000 clicks  landed" in result.output
    assert "140,000 lines = 140,000 landed + 0 rejected" in result.output
    landing = Landing(str(tmp_path / "lake"))
    before = landing.days()
    assert list(before) == ["2017-11-06", "2017-11-07"]
    with landing.open("2017-11-06") as stream:
        parsed = csv.parse(stream.read().removeprefix(HEADER), TRAIN_COLUMNS)
    assert len(parsed.clicks) == 70_000
    assert parsed.rejected == []
    assert "2017-11-07         70,000 clicks  unchanged" in run(*arguments).output
    assert landing.days() == before

    refused = run(*arguments, "--drift", 0.5)
    assert refused.exit_code == 1
    assert "2017-11-06, 2017-11-07: already landed" in refused.output
    assert landing.days() == before
    assert run(*arguments, "--drift", 0.5, "--replace").exit_code == 0
    assert all(landing.days()[day] != version for day, version in before.items())


def test_import_reports_where_every_line_went(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(HEADER + LINE * 2 + b"nonsense\n" + LINE.replace(b"-06 ", b"-07 "))
    result = run("import", tmp_path / "train.csv", "--home", tmp_path)
    assert result.exit_code == 0, result.output
    assert "2017-11-06              2 clicks  landed" in result.output
    assert "1 lines of train.csv belong to no day; they are kept in " in result.output
    assert "4 lines = 3 landed + 1 rejected" in result.output


def test_import_explains_what_it_cannot_read(tmp_path: Path) -> None:
    source = tmp_path / "train.csv.gz"
    source.write_bytes(gzip.compress(HEADER + LINE * 9)[:-12])
    result = run("import", source, "--home", tmp_path)
    assert result.exit_code == 1
    assert f"Error: {source}: the gzip stream is truncated or damaged after line" in result.output
    source.write_bytes(gzip.compress(HEADER))
    result = run("import", source, "--home", tmp_path)
    assert result.exit_code == 1
    assert "not one click of a day" in result.output
    assert run("import", tmp_path / "missing.csv").exit_code == 2


def test_real_clicks_land_untouched(tmp_path: Path) -> None:
    sample = os.environ.get("CLICKS_SAMPLE")
    if not sample:
        pytest.skip("CLICKS_SAMPLE names no folder of real clicks")
    assert run("import", sample, "--home", tmp_path).exit_code == 0
    for source in sorted(Path(sample).glob("*.csv")):
        with Landing(str(tmp_path / "lake")).open(source.stem) as stream:
            assert stream.read() == source.read_bytes()
