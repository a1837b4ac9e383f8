"""What a killed run could not delete: Spark clusters that nobody waits for any more, found by their labels."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from mlops_assets.assets.notices import notice
from mlops_assets.automation.run_queues import operators
from mlops_assets.resources.environment import EPHEMERAL_SPARK, SCHEDULES_START
from mlops_assets.resources.ephemeral import JOBS, Cluster, ClusterError, EphemeralSpark
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.spark import Spark

GRACE: Final = timedelta(minutes=10)
"""In which a run that is at its deadline deletes its cluster by itself."""


ENDED: Final = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def why_orphaned(cluster: Cluster, status: dg.DagsterRunStatus | None, age_limit: timedelta, now: datetime) -> str:
    """Why nobody needs the cluster of a run with that status (None: unknown to this instance); empty if somebody may.

    A run whose process was killed may be said to go on for long. But none waits longer than its deadline.
    """
    if status and status in ENDED:
        return f"its run {cluster.run_id} has ended: {status.value}"
    age = now - cluster.created
    if age > age_limit:
        whose = f"run {cluster.run_id}, which is {status.value}" if status else f"an unknown run {cluster.run_id!r}"
        return f"{whose}, should have deleted it by now: it is {age.total_seconds() / 60:.0f} minutes old"
    return ""


@dg.op(description="Deletes the Spark clusters whose run has ended, or should have.")
def delete_orphans(context: dg.OpExecutionContext, spark: dg.ResourceParam[Spark], lake: LakeResource) -> None:
    """Fails if a cluster does not go: it costs money, so somebody has to look."""
    if not isinstance(spark, EphemeralSpark):
        context.log.info(f"{type(spark).__name__} makes no clusters")
        return

    def status_of(run_id: str) -> dg.DagsterRunStatus | None:
        run = context.instance.get_run_by_id(run_id)
        return run.status if run else None

    limit, now = timedelta(minutes=spark.deadline_minutes) + GRACE, datetime.now(UTC)
    found = {cluster: why_orphaned(cluster, status_of(cluster.run_id), limit, now) for cluster in spark.clusters()}
    orphans = {cluster.id: reason for cluster, reason in found.items() if reason}
    for cluster, reason in found.items():
        context.log.info(f"{cluster.id}: {f'deleting it, {reason}' if reason else f'of run {cluster.run_id}, stays'}")
        if reason:  # noted before: whoever pays for it is told also if this is killed next
            context.log_event(_left_behind(cluster, reason))
    errors = _delete(spark, orphans)
    _forget_jobs(context, lake, status_of)
    if errors:
        remedy = "delete it in the cloud's console if the next run of this job fails too"
        raise dg.Failure(f"not deleted: {'; '.join(errors)}. {remedy}")
    context.log.info(f"{len(orphans)} of {len(found)} clusters deleted")


def _left_behind(cluster: Cluster, reason: str) -> dg.AssetObservation:
    return notice(
        kind="orphan clusters",
        key=f"orphan {cluster.id}",
        title=f"Spark cluster {cluster.id} was left behind, and is deleted",
        text=f"{reason[0].upper()}{reason[1:]}. It was made at {cluster.created:%Y-%m-%d %H:%M} UTC and was paid "
        "for until now. If the reaper fails to, you are told. See why its run did not delete it.",
        path=f"runs/{cluster.run_id}",
    )


def _delete(spark: EphemeralSpark, orphans: Iterable[str]) -> list[str]:
    """Deletes them all, and says which did not go."""
    errors = {}
    for cluster in orphans:
        try:
            spark.delete(cluster)
        except ClusterError as error:
            errors[cluster] = f"{cluster}: {error}"
    left = {cluster.id for cluster in spark.clusters()} if orphans else set()
    return [errors.get(cluster, f"{cluster} is still there") for cluster in orphans if cluster in {*left, *errors}]


def _forget_jobs(
    context: dg.OpExecutionContext, lake: LakeResource, status_of: Callable[[str], dg.DagsterRunStatus | None]
) -> None:
    """Deletes what killed runs had put into the lake for their jobs."""
    storage = lake.lake().storage
    keys = [key for key in storage.list(JOBS) if status_of(key.split("/")[1]) in ENDED]
    if keys:
        context.log.info(f"deleting {', '.join(keys)}")
        storage.delete(keys)


@dg.job(
    description="Deletes Spark clusters that a killed run left behind.",
    tags=operators("reap_clusters"),  # what is left costs money
)
def reap_clusters() -> None:
    """One look."""
    delete_orphans()


schedules = [
    dg.ScheduleDefinition(
        job=reap_clusters,
        cron_schedule="*/10 * * * *",
        default_status=SCHEDULES_START if EPHEMERAL_SPARK else dg.DefaultScheduleStatus.STOPPED,
    )
]
