"""Runs that a code server took with it are ended, whatever they were doing. test_stack.py sees it happen."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.automation.lost_runs import fail_lost_runs, running

STATUS = dg.DagsterRunStatus


@dg.op
def nothing() -> None:
    """Nothing."""


@dg.job
def some() -> None:
    nothing()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (STATUS.STARTING, STATUS.STARTING),
        (STATUS.STARTED, STATUS.FAILURE),
        (STATUS.CANCELING, STATUS.CANCELED),
        (STATUS.NOT_STARTED, STATUS.NOT_STARTED),
        (STATUS.SUCCESS, STATUS.SUCCESS),
        (STATUS.FAILURE, STATUS.FAILURE),
        (STATUS.CANCELED, STATUS.CANCELED),
    ],
)
def test_a_run_that_went_on_is_ended_and_no_other(
    before: dg.DagsterRunStatus, after: dg.DagsterRunStatus, tmp_path: Path
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run_id = instance.create_run_for_job(some, status=before).run_id
        assert running(instance) == ([run_id] if before is not after else [])
        fail_lost_runs(instance, [run_id])
        run = instance.get_run_by_id(run_id)
        assert run
        assert run.status is after
