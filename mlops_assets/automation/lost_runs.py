"""Runs whose process is gone: they are failed, so that they hold no place and no pool, and Dagster starts them again.

    python -m mlops_assets.automation.lost_runs COMMAND ...     the same, then becomes the command

Dagster's default launcher starts runs as children of the code server, and can't tell whether one lives that an earlier
code server started. So whoever starts the first one of a machine or container says it: nothing can be running yet.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import dagster as dg

MESSAGE: Final = "Its process ended with the code server that had started it."
IN_PROGRESS: Final = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def fail_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends all runs that are said to be in progress, and returns their ids. Call it only while none can be.

    A run that was being cancelled is cancelled; another has failed, and is retried as `run_retries` says.
    """
    lost = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
    for run in lost:
        end = (
            instance.report_run_canceled if run.status is dg.DagsterRunStatus.CANCELING else instance.report_run_failed
        )
        end(run, MESSAGE)
    return [run.run_id for run in lost]


if __name__ == "__main__":
    with dg.DagsterInstance.get() as here:
        for run_id in fail_lost_runs(here):
            print(f"run {run_id} was lost: {MESSAGE}", flush=True)  # noqa: T201 - the container's log
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - so that signals reach the command
