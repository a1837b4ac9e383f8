"""Somebody is told: one sensor reads what happened, and sends it to the recipients of MLOPS_NOTIFY_URLS."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic, time
from typing import Final

import dagster as dg

from mlops_assets.assets.notices import NOTICES
from mlops_assets.assets.promoted_model import LEDGER, ledger
from mlops_assets.automation.happenings import (
    FAILED_CHECK,
    ROLLOUT,
    SENSOR,
    FailedCheck,
    FailedRun,
    Roll,
    of_check,
    of_days,
    of_ledger,
    of_notice,
    of_roll,
    of_run,
    told_day_by_day,
)
from mlops_assets.automation.outbox import Message, Outbox, letter
from mlops_assets.automation.rollout import digest_of, story_of
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.notifier import URLS, Notifier, NotifyError, link

STATE: Final = "mlops-assets/notifications"
"""The key of the outbox in Dagster's own storage."""
EVENTS: Final = 500
"""Read of a source in one evaluation; the rest follows in the next."""
TICK_SECONDS: Final = 20.0
"""After which no further message is begun: Dagster gives up on an evaluation after 60."""
SETTLED_SECONDS: Final = 60.0
"""Events younger than this are read again: their numbers are given before they can be seen, so one may still appear
before another. What was taken is known by its key."""
DEPLOYMENT: Final = dg.AssetKey("inference_deployment")
STEPS: Final = 20

Source = Callable[[dg.SensorEvaluationContext, LakeResource, Outbox, float], tuple[list[Message], bool]]
"""Reads messages from where `positions` says, and moves that on. The second result says that there is more to read."""

_log = logging.getLogger(__name__)
_said: set[str] = set()


def read_outbox(instance: dg.DagsterInstance) -> Outbox | None:
    """The outbox as it was last saved; None if nobody was ever to be told."""
    return Outbox.decode(instance.daemon_cursor_storage.get_cursor_values({STATE}).get(STATE))


def _save(instance: dg.DagsterInstance, outbox: Outbox) -> None:
    instance.daemon_cursor_storage.set_cursor_values({STATE: outbox.encode()})


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells people what happened: failed runs and blocking checks, promotions, rollbacks, notices. Launches "
    "nothing. Each message is sent once to each recipient of MLOPS_NOTIFY_URLS; what one refuses is sent again.",
)
def tell_people(
    context: dg.SensorEvaluationContext, lake: LakeResource, notifier: dg.ResourceParam[Notifier]
) -> dg.SkipReason:
    """One look at what is new, and the messages that are due.

    1. What is new is read from the outbox's positions, and taken into it by key: read twice, it is taken once.
    2. The outbox is saved, before anything is sent.
    3. Each message is sent and noted as sent at once. Killed in between, this sends that one message again.

    A recipient that refuses is tried again later, and the others are told all the same. Nothing here launches, stops
    or fails a run.
    """
    recipients = notifier.recipients()
    if not recipients:
        if URLS not in _said:
            _said.add(URLS)
            _log.warning(f"{URLS} is not set: nobody is told of failures")
        if read_outbox(context.instance):  # who is set later is told of what happens later
            context.instance.daemon_cursor_storage.set_cursor_values({STATE: ""})
        return dg.SkipReason(f"{URLS} is not set: nobody is told")
    now = time()
    outbox = read_outbox(context.instance)
    fresh = outbox is None
    outbox = outbox or Outbox()
    outbox.looked_at = now
    outbox.keep_recipients(recipients)
    troubles, behind = _read(context, lake, outbox, now, fresh=fresh)
    outbox.tidy(now)
    _save(context.instance, outbox)
    if fresh:
        return dg.SkipReason("; ".join(["what happens from now on is told", *troubles]))
    sent = 0 if behind else _send(context, notifier, outbox, now, troubles)
    summary = f"{sent} sent, {outbox.waiting} waiting"
    return dg.SkipReason("; ".join([summary, *troubles]))


def _read(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float, *, fresh: bool
) -> tuple[list[str], bool]:
    """Takes what is new from every source; the sources that could not be read, and whether one has more."""
    troubles, behind = [], False
    for name, source in SOURCES.items():
        try:
            found, more = source(context, lake, outbox, now)
        except Exception as error:  # noqa: BLE001 - one source that is out of reach must not silence the others
            context.log.warning(f"{name} could not be read: {error}")
            troubles.append(f"{name} could not be read")
            continue
        behind |= more
        for message in () if fresh else found:
            outbox.take(message)
    return troubles, behind


def _send(
    context: dg.SensorEvaluationContext, notifier: Notifier, outbox: Outbox, now: float, troubles: list[str]
) -> int:
    """Sends what is due, within the tick's time; how many messages went out."""
    sent, began = 0, monotonic()
    for recipient, queue in list(outbox.due(now, lambda group: _is_under_way(context.instance, group))):
        if monotonic() - began > TICK_SECONDS:
            break
        count, made = len(queue.messages), letter(queue)
        try:
            notifier.send(recipient, made.title, made.text)
        except NotifyError as error:
            outbox.failed_at = time()
            lost = queue.refused(outbox.failed_at)
            outbox.lost += lost
            troubles.append(str(error))
            context.log.warning(f"{error}; {f'{lost} messages are given up' if lost else 'it is sent again later'}")
        else:
            sent += 1
            outbox.sent += 1
            queue.delivered(count, time())
        _save(context.instance, outbox)
    return sent


def _is_under_way(instance: dg.DagsterInstance, group: str) -> bool:
    """Whether the group is that of a backfill which has not ended yet, so that more may come."""
    kind, _, backfill_id = group.partition(" ")
    if kind != "backfill":
        return False
    backfill = instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status.value in ("REQUESTED", "CANCELING", "FAILING")


def _events(
    instance: dg.DagsterInstance, outbox: Outbox, kind: dg.DagsterEventType, now: float
) -> tuple[Sequence[dg.EventLogRecord], bool]:
    """The events of that kind since the outbox's position, which moves on as far as they have settled."""
    storage = instance.event_log_storage
    if kind.value not in outbox.positions:  # from now on
        outbox.positions[kind.value] = storage.get_maximum_record_id() or 0
        return (), False
    after = outbox.positions[kind.value]
    logs = storage.get_logs_for_all_runs_by_log_id(after, kind, limit=EVENTS)
    records = [dg.EventLogRecord(number, entry) for number, entry in sorted(logs.items())]
    _move_on(outbox, kind.value, records, now)
    return records, len(records) == EVENTS


def _move_on(outbox: Outbox, name: str, records: Iterable[dg.EventLogRecord], now: float) -> None:
    for record in records:
        if now - record.timestamp < SETTLED_SECONDS:
            return
        outbox.positions[name] = record.storage_id


def _asset_events(
    outbox: Outbox,
    name: str,
    asset: dg.AssetKey,
    fetch: Callable[..., dg.EventRecordsResult],
    now: float,
) -> tuple[Sequence[dg.EventLogRecord], bool]:
    """As `_events`, of one asset: its materializations or observations, by the instance's method for them."""
    if name not in outbox.positions:
        latest = fetch(asset, limit=1).records
        outbox.positions[name] = latest[0].storage_id if latest else 0
        return (), False
    since = dg.AssetRecordsFilter(asset_key=asset, after_storage_id=outbox.positions[name])
    records = fetch(since, limit=EVENTS, ascending=True).records
    _move_on(outbox, name, records, now)
    return records, len(records) == EVENTS


def _failed_runs(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float
) -> tuple[list[Message], bool]:
    instance = context.instance
    records, more = _events(instance, outbox, dg.DagsterEventType.RUN_FAILURE, now)
    found = []
    for record in records:
        found_run = None if outbox.is_taken(f"run {record.run_id}") else instance.get_run_record_by_id(record.run_id)
        if found_run is None:
            continue
        run = found_run.dagster_run
        will_retry = run.tags.get("dagster/will_retry")
        unsure = will_retry is None and instance.run_retries_enabled and now - record.timestamp < SETTLED_SECONDS
        if will_retry == "true" or unsure:  # its last attempt is told, or its success is not
            continue
        message = of_run(_failed_run(context, found_run, record), link)
        if message:
            _forget_if_it_succeeded(instance, outbox, message, run.job_name)
            found.append(message)
    return found, more


def _failed_run(context: dg.SensorEvaluationContext, found: dg.RunRecord, record: dg.EventLogRecord) -> FailedRun:
    instance, steps, run = context.instance, {}, found.dagster_run
    logs = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=STEPS).records
    bad_days = {each.partition for each in _evaluations(instance, run.run_id) if _blocks(context, each)}
    for each in logs:
        event = each.event_log_entry.get_dagster_event()
        failure = event.step_failure_data
        error = failure.error
        if error and error.cause and error.cls_name == "DagsterExecutionStepExecutionError":
            error = error.cause
        kind, message = (error.cls_name or "", error.message.strip()) if error else ("", "")
        said = failure.user_failure_data.metadata.get("failed_days") if failure.user_failure_data else None
        if said and isinstance(said.value, Mapping) and bad_days.issuperset(said.value):
            kind = FAILED_CHECK  # each day that failed in it failed a check
        steps[event.step_key or "?"] = kind, message
    return FailedRun(
        run_id=run.run_id,
        job=run.job_name,
        days=of_days(run.tags),
        tags=run.tags,
        steps=steps,
        reason=record.event_log_entry.get_dagster_event().message or "its process ended",
        at=record.timestamp,
        digest=digest_of(found) if run.job_name == ROLLOUT else "",
        has_verdict=run.job_name == ROLLOUT and bool(story_of(instance, run.run_id)[0]),
    )


def _forget_if_it_succeeded(instance: dg.DagsterInstance, outbox: Outbox, message: Message, job: str) -> None:
    """A job that runs by the clock is told again where it had succeeded since."""
    at, _ = outbox.taken.get(message.key, (message.at, 0.0))
    if at >= message.at:
        return
    succeeded = dg.RunsFilter(
        job_name=job,
        statuses=[dg.DagsterRunStatus.SUCCESS],
        created_after=datetime.fromtimestamp(at, UTC),
        created_before=datetime.fromtimestamp(message.at, UTC),
    )
    if instance.get_runs_count(succeeded):
        del outbox.taken[message.key]


def _failed_checks(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float
) -> tuple[list[Message], bool]:
    instance = context.instance
    records, more = _events(instance, outbox, dg.DagsterEventType.ASSET_CHECK_EVALUATION, now)
    found = []
    for record in records:
        evaluation = record.event_log_entry.get_dagster_event().asset_check_evaluation_data
        if _blocks(context, evaluation):
            found.append(_failed_check(instance, evaluation, record))

    def days_of(run_id: str) -> Iterator[tuple[str, str]]:
        for each in _evaluations(instance, run_id):
            if each.partition and not each.passed:
                yield each.asset_key.to_user_string(), each.check_name

    return [of_check(check, link) for check in told_day_by_day(found, days_of)], more


def _evaluations(instance: dg.DagsterInstance, run_id: str) -> Iterator[dg.AssetCheckEvaluation]:
    """All evaluations of checks in a run."""
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    for each in instance.get_records_for_run(run_id, of_type=kind).records:
        yield each.event_log_entry.get_dagster_event().asset_check_evaluation_data


def _numbers(evaluation: dg.AssetCheckEvaluation) -> str:
    """What the check of a day found, from the row that it shows."""
    table = evaluation.metadata.get("days")
    rows = table.records if isinstance(table, dg.TableMetadataValue) else ()
    row = next((row.data for row in rows if row.data.get("day") == evaluation.partition), {})
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("day", "passed"))


def _failed_check(
    instance: dg.DagsterInstance, evaluation: dg.AssetCheckEvaluation, record: dg.EventLogRecord
) -> FailedCheck:
    run = instance.get_run_by_id(record.run_id)
    return FailedCheck(
        run_id=record.run_id,
        asset=evaluation.asset_key.to_user_string(),
        check=evaluation.check_name,
        day=evaluation.partition or "",
        description=evaluation.description or _numbers(evaluation),
        backfill=run.tags.get("dagster/backfill", "") if run else "",
        at=record.timestamp,
    )


def _blocks(context: dg.SensorEvaluationContext, evaluation: dg.AssetCheckEvaluation) -> bool:
    """Whether it failed, and stops what comes after. Only the graph knows of those that a range's days were given."""
    if evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
        return False
    graph = context.repository_def.asset_graph if context.repository_def else None
    if graph and graph.has(evaluation.asset_check_key):
        return graph.get(evaluation.asset_check_key).blocking
    return bool(evaluation.blocking)


def _rolls(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float
) -> tuple[list[Message], bool]:
    fetch = context.instance.fetch_materializations
    records, more = _asset_events(outbox, "rolls", DEPLOYMENT, fetch, now)
    messages = (of_roll(_roll(context.instance, record), link) for record in records)
    return [message for message in messages if message], more


def _roll(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> Roll:
    run = instance.get_run_by_id(record.run_id)
    materialization = record.asset_materialization
    said = {name: str(value.value) for name, value in (materialization.metadata if materialization else {}).items()}
    return Roll(
        storage_id=record.storage_id,
        run_id=record.run_id,
        verdict=said.get("verdict", ""),
        digest=said.get("digest", ""),
        previous=said.get("previous", ""),
        reason=said.get("reason") or said.get("requested_because", ""),
        transient=said.get("transient") == "True",
        by_hand=run is not None and run.job_name == ROLLOUT and SENSOR not in run.tags,
        at=record.timestamp,
    )


def _promotions(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float
) -> tuple[list[Message], bool]:
    """By the ledger, which is read only when it has another record: a listing is one request, a record is one each."""
    store = lake.lake()
    newest = max(store.storage.list(LEDGER), default="").removeprefix(f"{LEDGER}/").removesuffix(".json")
    after = outbox.positions.setdefault("decisions", newest)
    outbox.positions["decisions"] = newest
    return (of_ledger(ledger(store), after, link) if newest > after else []), False


def _notices(
    context: dg.SensorEvaluationContext, lake: LakeResource, outbox: Outbox, now: float
) -> tuple[list[Message], bool]:
    records, more = _asset_events(outbox, "notices", NOTICES, context.instance.fetch_observations, now)
    found = []
    for record in records:
        observation = record.event_log_entry.asset_observation
        said = {name: value.value for name, value in (observation.metadata if observation else {}).items()}
        found.append(of_notice(said, record.timestamp, link))
    return found, more


SOURCES: Final[dict[str, Source]] = {
    "failed runs": _failed_runs,
    "failed checks": _failed_checks,
    "rolls": _rolls,
    "promotions": _promotions,
    "notices": _notices,
}
