"""Which runs wait for one another: those of days and backfills in one queue, each operators' job in a queue of its own.

The daemon starts at most so many runs of a queue at a time as deploy/dagster.yaml says, whatever waits in the others.
"""

from __future__ import annotations

from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import MAX_RUNTIME_SECONDS_TAG, PRIORITY_TAG

from mlops_assets.assets.order import ASIDE, BACKFILLS, DAYS, HALF_A_DAY, QUEUE, WAITS_FOR, days_of, priority, queue_of

HOUR = 3600  # a day of a backfill takes minutes; the time of all of them is what run monitoring counts


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
        """Gives the run its queue, unless its job did, and its place there, before the daemon can see it."""
        run = context.dagster_run
        of_days = run.tags.get(QUEUE) in (None, DAYS, BACKFILLS, ASIDE)
        tags = {QUEUE: queue_of(run.tags), WAITS_FOR: ""} if of_days else {}
        if tags and PRIORITY_TAG not in run.tags and (first := priority(run.tags)):
            tags[PRIORITY_TAG] = first
        if tags and (days := len(days_of(run.tags))) > 1:
            tags[MAX_RUNTIME_SECONDS_TAG] = str(HALF_A_DAY + HOUR * days)
        if tags:
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)
