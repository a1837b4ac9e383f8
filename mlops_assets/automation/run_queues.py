"""Which runs wait for one another: those of days and backfills in one queue, each operators' job in a queue of its own.

The daemon starts at most so many runs of a queue at a time as deploy/dagster.yaml says, whatever waits in the others.
"""

from __future__ import annotations

from typing import Final

from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import PRIORITY_TAG

QUEUE: Final = "mlops-assets/queue"
DAYS: Final = "days"
"""The queue of whatever has not been given one: the days' runs, backfills, and what a person materializes in the UI."""


def operators(job: str) -> dict[str, str]:
    """The tags of an operators' job, which waits behind no day: its runs queue among themselves.

    By the priority, a run that waits for a pool is also the first to get it.
    """
    return {QUEUE: job, PRIORITY_TAG: "10"}


class RunQueues(QueuedRunCoordinator):
    """Dagster's own queue, for which every run has a tag with the name of its queue.

    Dagster limits runs by their tags, and a run without a tag has no limit. Runs of assets that are launched in the UI
    or by a backfill have no job whose tags they could carry.
    """

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Gives the run its queue, unless its job did, before the daemon can see it."""
        run = context.dagster_run
        if QUEUE not in run.tags:
            self._instance.add_run_tags(run.run_id, {QUEUE: DAYS})
        return super().submit_run(context)
