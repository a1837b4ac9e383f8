"""Somebody is told, once: from Dagster's records and the ledger to an HTTP endpoint of this machine."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.assets.notices import notice
from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.assets.quality import Judgement
from mlops_assets.automation import tell_people as sensor
from mlops_assets.automation.outbox import HOUR, QUIET_SECONDS, RETRY_SECONDS
from mlops_assets.automation.tell_people import read_outbox, tell_people
from mlops_assets.checks.clicks import day_by_day
from mlops_assets.definitions import defs
from mlops_assets.lake.landing import Landing
from mlops_assets.modelling.ledger import Entry
from mlops_assets.partitions import daily
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.notifier import BASE_URL, URLS, Notifier, NotifyError
from mlops_assets_tests.assets import graph
from mlops_assets_tests.automation.endpoint import SECRET, Endpoint, endpoint

DAYS = [f"2017-11-{day:02d}" for day in range(6, 16)]


@dg.asset(partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run())
def some_clicks() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult()


@dg.asset_check(asset=some_clicks, partitions_def=daily, blocking=True)
def good_days(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    def judge(day: str) -> Judgement:
        return day not in DAYS[1:3], {"day": day}

    return day_by_day(context, judge)


@dg.asset_check(asset=some_clicks, partitions_def=daily)
def usual_days(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    return day_by_day(context, lambda day: (False, {}), dg.AssetCheckSeverity.WARN)


@dg.asset(partitions_def=daily, deps=[some_clicks])
def some_model() -> None:
    raise ValueError("no clicks to learn from, says postgres://me:hidden@db/x")


@dg.op
def breaks() -> None:
    raise RuntimeError("the cloud does not answer")


@dg.job(name="reap_clusters")
def reaper() -> None:
    breaks()


@dg.op(name="inference_deployment", config_schema={"verdict": str, "fails": bool, "transient": bool, "digest": str})
def roll(context: dg.OpExecutionContext) -> None:
    told = {name: context.op_config[name] for name in ("verdict", "digest", "transient")}
    story = {**told, "previous": "sha256:" + "b" * 64, "reason": "the pods crash"}
    if context.op_config["verdict"]:
        context.log_event(dg.AssetMaterialization("inference_deployment", metadata=story))
    if context.op_config["fails"]:
        raise dg.Failure("the roll was undone", allow_retries=False)


@dg.job(name="rollout")
def rollout() -> None:
    roll()


DEFS = dg.Definitions(
    assets=[some_clicks, some_model],
    asset_checks=[good_days, usual_days],
    jobs=[reaper, rollout],
    executor=dg.in_process_executor,
)


class World:
    """An instance, a lake, and a clock that is moved by hand."""

    def __init__(self, instance: dg.DagsterInstance, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.instance, self.lake, self.monkeypatch = instance, LakeResource(root=str(lake)), monkeypatch
        self.definitions = DEFS
        self.shift = 0.0
        monkeypatch.setattr(sensor, "time", lambda: time.time() + self.shift)

    def tick(self, later: float = 0) -> str:
        """What one evaluation says, that much later. It knows only the instance, as after a restart."""
        self.shift += later
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.definitions.get_repository_def(), resources={"lake": self.lake}
        )
        said = tell_people(context, lake=self.lake, notifier=Notifier())
        assert isinstance(said, dg.SkipReason)
        return str(said.skip_message)

    def run(self, job: str, assets: Sequence[str] = (), *, days: Sequence[str] = (), **settings: Any) -> str:
        tags: dict[str, str] = dict(settings.pop("tags", {}))
        if len(days) == 1:
            tags["dagster/partition"] = days[0]
        elif days:
            tags |= {
                "dagster/asset_partition_range_start": days[0],
                "dagster/asset_partition_range_end": days[-1],
            }
        selection = [dg.AssetKey(name) for name in assets] or None
        found = DEFS.resolve_implicit_global_asset_job_def() if assets else DEFS.resolve_job_def(job)
        result = found.execute_in_process(
            instance=self.instance, tags=tags, asset_selection=selection, raise_on_error=False, **settings
        )
        return str(result.run_id)

    def roll(self, verdict: str, *, letter: str = "a", transient: bool = False, by_hand: bool = False) -> str:
        settings = {"verdict": verdict, "transient": transient, "digest": "sha256:" + 64 * letter}
        settings["fails"] = verdict not in ("rolled", "unchanged")
        config = {"ops": {"inference_deployment": {"config": settings}}}
        tags = {} if by_hand else {"dagster/sensor_name": "champion_changed"}
        return self.run("rollout", run_config=config, tags=tags)

    def decide(self, day: str, version: str, **fields: Any) -> None:
        entry = Entry(
            **{"day": day, "kind": "verdict", "decided_by": "gate", "reason": "better", "promoted": True, **fields},
            model_version=version,
            run_id=f"mlflow-{version}",
        )
        self.lake.lake().append_record(LEDGER, entry.key, entry.as_dict())


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with endpoint() as server:
        monkeypatch.setenv(URLS, server.url)
        monkeypatch.setenv(BASE_URL, "https://dagster.example.com/")
        yield server


@pytest.fixture
def world(tmp_path: Path, people: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = World(instance, tmp_path / "lake", monkeypatch)
        assert "from now on" in made.tick()
        yield made


def test_a_failed_run_is_told_once_with_its_reason_a_link_and_what_to_do(world: World, people: Endpoint) -> None:
    run = world.run("", ["some_model"], days=DAYS[:1])
    for _ in range(3):
        world.tick()
    world.tick(later=2 * HOUR)
    assert people.titles == [f"Run failed: assets of {DAYS[0]}"]
    (text,) = people.texts
    assert "some_model: ValueError: no clicks to learn from" in text
    assert "re-execute" in text
    assert f"https://dagster.example.com/runs/{run}" in text
    assert "hidden" not in text


def test_what_happened_before_anybody_was_to_be_told_is_not(people: Endpoint, world: World) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        world.instance = instance
        world.run("", ["some_model"], days=DAYS[:1])
        world.decide(DAYS[0], "old")
        world.tick()
        world.tick(later=HOUR)
    assert people.titles == []


def test_a_run_that_is_retried_by_itself_is_told_when_its_last_attempt_failed(world: World, people: Endpoint) -> None:
    will_retry = world.run("", ["some_model"], days=DAYS[:1])
    world.instance.add_run_tags(will_retry, {"dagster/will_retry": "true"})
    world.tick()
    assert people.titles == []
    last = world.run("", ["some_model"], days=DAYS[:1], tags={"dagster/root_run_id": will_retry})
    world.instance.add_run_tags(last, {"dagster/will_retry": "false"})
    world.tick()
    world.tick(later=HOUR)
    assert len(people.titles) == 1
    assert last in people.texts[0]


def test_failed_blocking_checks_of_a_range_are_told_day_by_day_and_their_run_is_not(
    world: World, people: Endpoint
) -> None:
    world.run("", ["some_clicks"], days=DAYS)
    world.tick()
    world.tick(later=HOUR)
    (title,), (text,) = people.titles, people.texts
    assert title == f"Check failed: good_days, some_clicks of {DAYS[1]}, and 1 more"
    assert f"Check failed: good_days, some_clicks of {DAYS[2]}" in text
    assert "assets/some_clicks?view=checks&checkDetail=good_days" in text
    assert "usual_days" not in text


@pytest.mark.parametrize("days", [DAYS[:3], DAYS[1:2]])
def test_a_day_of_the_graph_that_fails_its_check_is_one_message_though_its_step_fails(
    world: World, people: Endpoint, tmp_path: Path, days: list[str]
) -> None:
    """The graph's own steps judge each day, so that a bad one fails alone: its check is told, not the run as well."""
    for day in (DAYS[0], DAYS[2]):
        graph.land(tmp_path, day, 1_000)
    landing = Landing(str(tmp_path / "lake"))
    with landing.stage(DAYS[1]) as file:
        file.write(f"1,2,3,4,5,{DAYS[1]} 10:00:00,{DAYS[1]} 11:00:00,1\n".encode() * 50)
        landing.publish([file], replace=False)
    world.definitions = defs
    assert not graph.run(tmp_path, world.instance, ["raw_clicks"], days).success
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == [f"Check failed: label_is_a_label, raw_clicks of {DAYS[1]}"]
    assert "installs per click 1.0, must be below 0.1" in people.texts[0]


def test_a_day_that_fails_otherwise_is_told_though_another_fails_its_check(
    world: World, people: Endpoint, tmp_path: Path
) -> None:
    graph.land(tmp_path, DAYS[0], 1_000)
    landing = Landing(str(tmp_path / "lake"))
    with landing.stage(DAYS[1]) as file:
        file.write(f"1,2,3,4,5,{DAYS[1]} 10:00:00,{DAYS[1]} 11:00:00,1\n".encode() * 50)
        landing.publish([file], replace=False)
    world.definitions = defs
    assert not graph.run(tmp_path, world.instance, ["raw_clicks"], DAYS[:3]).success  # the third has no file
    world.tick()
    assert people.titles == [
        f"Run failed: part of {DAYS[0]} to {DAYS[2]}",
        f"Check failed: label_is_a_label, raw_clicks of {DAYS[1]}",
    ]


def test_a_failed_blocking_check_of_one_day_is_one_message(world: World, people: Endpoint) -> None:
    world.run("", ["some_clicks"], days=DAYS[1:2])
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == [f"Check failed: good_days, some_clicks of {DAYS[1]}"]


def test_a_backfill_of_ninety_failing_days_is_one_message_when_it_has_ended(
    world: World, people: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = True
    monkeypatch.setattr(sensor, "_is_under_way", lambda instance, group: under_way and group == "backfill b1")
    for day in DAYS[:5]:
        world.run("", ["some_model"], days=[day], tags={"dagster/backfill": "b1"})
        world.tick()
    assert people.titles == []
    under_way = False
    world.tick()
    (title,), (text,) = people.titles, people.texts
    assert title == f"Run failed: assets of {DAYS[0]}, and 4 more"
    assert "https://dagster.example.com/runs/b/b1" in text
    assert all(f"Run failed: assets of {day}" in text for day in DAYS[:5])


def test_a_promotion_a_forced_model_and_a_revoked_one_are_told(world: World, people: Endpoint) -> None:
    world.decide(DAYS[0], "first", verdict={"candidate_auc": 0.9123, "champion_auc": 0.9})
    world.tick()
    world.decide(DAYS[1], "worse", promoted=False)
    world.tick(later=QUIET_SECONDS)
    world.decide(DAYS[1], "mine", kind="forced", promoted=False, decided_by="Ann")
    world.tick(later=QUIET_SECONDS)
    world.decide(DAYS[1], "mine", kind="revoked", promoted=False, decided_by="Ann", reason="odd scores")
    world.tick(later=QUIET_SECONDS)
    assert people.titles == [
        "Promoted: model first replaces no model",
        "Forced: model mine replaces first",
        "Revoked: model first replaces mine",
    ]
    assert "0.9123, the old one's 0.9000" in people.texts[0]
    assert "odd scores" in people.texts[2]


def test_an_undone_roll_is_one_message_though_its_run_fails(world: World, people: Endpoint) -> None:
    run = world.roll("undone")
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == ["Rolled back: image aaaaaaaaaaaa did not come up"]
    assert "the pods crash\nbbbbbbbbbbbb serves" in people.texts[0]
    assert run in people.texts[0]


def test_a_roll_by_a_persons_hand_is_told_and_one_of_the_sensors_is_not(world: World, people: Endpoint) -> None:
    world.roll("rolled")
    world.tick()
    world.roll("rolled", by_hand=True)
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == ["A person rolled the fleet onto image aaaaaaaaaaaa"]


def test_a_roll_that_was_overtaken_is_told(world: World, people: Endpoint) -> None:
    world.roll("overtaken", by_hand=True)
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == ["The roll onto image aaaaaaaaaaaa was overtaken by another"]


def test_a_roll_that_waits_for_retries_is_told_once_until_one_succeeded(world: World, people: Endpoint) -> None:
    """Whether the attempt came to nothing, or to a roll that was undone for a reason that may pass."""
    waits = "The roll onto image {}, and is tried again".format("aaaaaaaaaaaa could not be carried out")
    for attempt in range(4):
        world.roll("undone" if attempt % 2 else "", transient=True)
        world.tick(later=QUIET_SECONDS)
    assert people.titles == [waits]
    world.roll("", letter="c")
    world.tick(later=QUIET_SECONDS)
    world.roll("rolled")
    world.roll("")
    world.tick(later=QUIET_SECONDS)
    assert people.titles == [waits, waits.replace("aaaaaaaaaaaa", "cccccccccccc"), waits]


def test_a_rollout_by_hand_that_fails_is_a_failed_run(world: World, people: Endpoint) -> None:
    world.roll("", by_hand=True)
    world.tick()
    assert people.titles == ["Run failed: rollout"]


def test_a_job_of_the_clock_is_told_when_it_begins_to_fail_and_again_after_it_had_recovered(
    world: World, people: Endpoint
) -> None:
    for _ in range(3):
        world.run("reap_clusters", tags={"dagster/schedule_name": "reap_clusters"})
        world.tick(later=QUIET_SECONDS)
    assert people.titles == ["The reaper failed: Spark clusters may be left that cost money"]
    world.instance.create_run_for_job(reaper, status=dg.DagsterRunStatus.SUCCESS)
    world.run("reap_clusters", tags={"dagster/schedule_name": "reap_clusters"})
    world.tick(later=QUIET_SECONDS)
    assert len(people.titles) == 2


def test_notices_are_told_once_by_key_and_folded_by_kind(world: World, people: Endpoint) -> None:
    for day in (DAYS[0], DAYS[0], DAYS[1]):
        late = notice("late day", f"late {day}", f"{day} is late", "Ask who delivers.", "assets/landing")
        world.instance.report_runless_asset_event(late)
    world.instance.report_runless_asset_event(notice("orphan cluster", "c1", "Cluster c1 was left", "It is deleted."))
    world.tick()
    world.tick(later=HOUR)
    assert people.titles == [f"{DAYS[0]} is late, and 1 more", "Cluster c1 was left"]
    assert "https://dagster.example.com/assets/landing" in people.texts[0]
    assert "https://dagster.example.com/assets/notices" in people.texts[1]


def test_a_message_that_is_refused_is_sent_again_and_the_graph_goes_on(world: World, people: Endpoint) -> None:
    people.status = 500
    world.run("", ["some_model"], days=DAYS[:1])
    assert "did not take it" in world.tick()
    assert people.attempts == 1
    world.tick()
    assert people.attempts == 1  # not before the wait is over
    people.status = 200
    assert "1 sent, 0 waiting" in world.tick(later=RETRY_SECONDS)
    assert len(people.titles) == 1
    found = read_outbox(world.instance)
    assert found
    assert found.failed_at > 0


def test_one_endpoint_that_hangs_keeps_no_other_waiting(
    world: World, people: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.resources.notifier.TIMEOUT_SECONDS", 0.2)
    with endpoint() as hanging:
        hanging.seconds = 1.0
        monkeypatch.setenv(URLS, f"{hanging.url}\n {people.url}")
        world.tick()
        world.run("", ["some_model"], days=DAYS[:1])
        assert "1 sent, 1 waiting" in world.tick()
    assert len(people.titles) == 1


def test_killed_between_two_messages_only_the_unsent_one_follows(
    world: World, people: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.instance.report_runless_asset_event(notice("late day", "late", "a late day", ""))
    world.instance.report_runless_asset_event(notice("orphan cluster", "c1", "a left cluster", ""))
    send = Notifier.send

    def send_one_then_die(self: Notifier, recipient: str, title: str, text: str) -> None:
        if people.titles:
            raise SystemExit
        send(self, recipient, title, text)

    with monkeypatch.context() as patch:
        patch.setattr(Notifier, "send", send_one_then_die)
        with pytest.raises(SystemExit):
            world.tick()
    world.tick()
    assert people.titles == ["a late day", "a left cluster"]


def test_a_source_that_is_out_of_reach_silences_no_other(
    world: World, people: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: LakeResource) -> None:
        raise OSError("S3 does not answer")

    world.run("", ["some_model"], days=DAYS[:1])
    with monkeypatch.context() as patch:
        patch.setattr(LakeResource, "lake", lost)
        assert "promotions could not be read" in world.tick()
    assert len(people.titles) == 1


def test_events_that_appear_late_are_not_passed_over(world: World, people: Endpoint) -> None:
    """Numbers are given before they can be seen: of two, the later may be visible first."""
    storage = world.instance.event_log_storage
    read = storage.get_logs_for_all_runs_by_log_id
    first, second = (world.run("", ["some_model"], days=[day]) for day in DAYS[:2])

    def without_the_first(*arguments: Any, **options: Any) -> dict[int, dg.EventLogEntry]:
        return {number: entry for number, entry in read(*arguments, **options).items() if entry.run_id != first}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "get_logs_for_all_runs_by_log_id", without_the_first)
        world.tick()
    world.tick(later=30)
    world.tick(later=HOUR)
    assert second in people.texts[0]
    assert first in people.texts[1]
    assert len(people.titles) == 2


def test_no_url_no_messages_and_it_is_said_once(
    world: World, people: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(URLS)
    monkeypatch.setattr(sensor, "_said", set())
    world.run("", ["some_model"], days=DAYS[:1])
    with caplog.at_level(logging.WARNING):
        assert all("nobody is told" in world.tick() for _ in range(3))
    assert [record.message for record in caplog.records if URLS in record.message] == [
        f"{URLS} is not set: nobody is told of failures"
    ]
    monkeypatch.setenv(URLS, people.url)
    world.tick()
    assert people.titles == []


@pytest.mark.parametrize(
    ("url", "why"),
    [(f"slack://{SECRET}", "no URL that Apprise knows"), (f"what://{SECRET}", "no URL that"), (None, "JSON")],
)
def test_the_urls_are_nowhere_to_be_read(
    world: World,
    people: Endpoint,
    url: str | None,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(URLS, url or people.url)
    people.status = 500
    notifier = Notifier()
    with caplog.at_level(1), pytest.raises(NotifyError, match=why) as error:
        notifier.send(notifier.recipients()[0], "title", "text")
    with caplog.at_level(1):
        world.tick()
        world.run("", ["some_model"], days=DAYS[:1])
        said = world.tick()
    stored = read_outbox(world.instance)
    assert stored
    assert stored.failed_at
    printed = "".join(capfd.readouterr())
    everything = [caplog.text, printed, repr(notifier), str(notifier), repr(error.value), said, stored.encode()]
    assert not [text for text in everything if SECRET in text]
