"""Yesterday missing is noticed, whatever old days were made today."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from mlops_assets.assets.raw_clicks import raw_clicks
from mlops_assets.checks import freshness
from mlops_assets.checks.freshness import newest_due
from mlops_assets.resources.environment import systems


def test_a_day_is_due_at_nine_of_the_day_after_it_as_long_as_there_is_data() -> None:
    def due(now: str, ends: str | None = None) -> str | None:
        return newest_due(datetime.fromisoformat(now).replace(tzinfo=UTC), "2017-11-06", ends)

    assert due("2017-11-09 08:59") == "2017-11-07"
    assert due("2017-11-09 09:00") == "2017-11-08"
    assert due("2018-03-01 12:00", ends="2017-11-09") == "2017-11-09"
    assert due("2017-11-07 08:59") is None


def test_a_backfill_of_an_old_day_does_not_hide_a_missing_yesterday(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    job = dg.Definitions(
        assets=[raw_clicks],
        asset_checks=freshness.checks[:1],
        resources=systems("embedded", home),
        jobs=[dg.define_asset_job("fresh", dg.AssetSelection.checks(*freshness.checks[:1]))],
        executor=dg.in_process_executor,
    ).resolve_job_def("fresh")
    with dg.DagsterInstance.ephemeral() as instance:

        def is_fresh() -> bool:
            (evaluation,) = job.execute_in_process(instance=instance).get_asset_check_evaluations()
            return evaluation.passed

        def made(day: str) -> None:
            instance.report_runless_asset_event(dg.AssetMaterialization("raw_clicks", partition=day))

        due = newest_due(datetime.now(UTC))
        assert due
        made("2017-11-05")
        assert not is_fresh()
        made(due)
        assert is_fresh()
        made("2017-11-05")
        assert is_fresh(), "and is not hidden either"
