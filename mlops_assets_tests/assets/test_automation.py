"""The sensors and jobs that act by themselves, or on a person's word."""

from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from mlops_assets.assets import deployed_image
from mlops_assets.assets.deployed_image import record_image
from mlops_assets.assets.promoted_model import ledger, production_champion, record
from mlops_assets.automation import override as override_module
from mlops_assets.automation.arrivals import landed_days
from mlops_assets.automation.override import override
from mlops_assets.automation.rollout import champion_changed
from mlops_assets.definitions import defs
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry, replay
from mlops_assets.modelling.training import train_candidate
from mlops_assets.resources.environment import embedded
from mlops_assets.resources.inference import LocalFleet
from mlops_assets_tests.assets.graph import land, run
from mlops_assets_tests.modelling.windows import window

DAYS = ["2017-11-06", "2017-11-07"]


class Tick(NamedTuple):
    """What one tick of a sensor asks for."""

    run_requests: list[dg.RunRequest]
    cursor: str | None


def tick(home: Path, instance: dg.DagsterInstance, sensor: dg.SensorDefinition, cursor: str | None) -> Tick:
    resources = {name: embedded(home)[name] for name in sensor.required_resource_keys}
    with dg.build_sensor_context(instance, cursor=cursor, resources=resources, definitions=defs) as context:
        data = sensor.evaluate_tick(context)
    return Tick(list(data.run_requests or []), data.cursor)


def promote(home: Path, day: str, seed: int) -> str:
    """Puts a trained model into MLflow, its image into the store, and its promotion into the ledger."""
    systems = embedded(home)
    candidate = train_candidate(window(2_000, seed=10 * seed), day=day, trained_on=["2017-11-05"], seed=seed)
    folder = home / f"model-{seed}"
    candidate.write(folder)
    run_id = systems["mlflow"].log_candidate(name=day, tags={"day": day, "fingerprint": str(seed)}, model=folder)
    entry = Entry(
        day=day,
        kind="verdict",
        decided_by="test",
        reason="better",
        model_version=candidate.version,
        run_id=run_id,
        promoted=True,
        champion_after=candidate.version,
        verdict={"candidate_auc": 0.9},
    )
    record(systems["lake"].lake(), systems["mlflow"], entry)
    record_image(systems["lake"].lake(), candidate.version, systems["images"].publish(folder, {}))
    return candidate.version


def decide(home: Path, action: str, version: str, *, pinned: bool = False) -> dg.ExecuteInProcessResult:
    config = {"action": action, "model_version": version, "decided_by": "operator", "reason": "as a test"}
    if pinned:
        config["pinned"] = True  # type: ignore[assignment]
    resources = {name: embedded(home)[name] for name in ("lake", "mlflow", "images")}
    return override.execute_in_process(
        run_config={"ops": {"record_override": {"config": config}}}, resources=resources, raise_on_error=False
    )


def test_the_rollout_is_requested_once_for_each_champion_and_again_on_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFleet, "obstacle", lambda _: None)
    with dg.DagsterInstance.ephemeral() as instance:
        assert not tick(tmp_path, instance, champion_changed, None).run_requests
        old = promote(tmp_path, DAYS[0], seed=1)
        first = tick(tmp_path, instance, champion_changed, None)
        assert not tick(tmp_path, instance, champion_changed, first.cursor).run_requests
        new = promote(tmp_path, DAYS[1], seed=2)
        second = tick(tmp_path, instance, champion_changed, first.cursor)
        assert decide(tmp_path, "revoked", new).success
        third = tick(tmp_path, instance, champion_changed, second.cursor)
        assert decide(tmp_path, "forced", new).success
        fourth = tick(tmp_path, instance, champion_changed, third.cursor)
        assert decide(tmp_path, "forced", old).success
        fifth = tick(tmp_path, instance, champion_changed, fourth.cursor)
    requests = [request for result in (first, second, third, fourth, fifth) for request in result.run_requests or []]
    images = embedded(tmp_path)["images"]
    digests = [request.run_config["ops"]["inference_deployment"]["config"]["digest"] for request in requests]
    assert digests == [images.find(version) for version in (old, new, old, new, old)]
    keys = [request.run_key for request in requests]
    # The third is the first one's image by the first one's promotion, which stands again.
    assert len(set(keys)) == 5


def test_a_persons_decision_is_kept_with_its_reason_and_moves_the_alias(tmp_path: Path) -> None:
    old, new = promote(tmp_path, DAYS[0], seed=1), promote(tmp_path, DAYS[1], seed=2)
    mlflow, lake = embedded(tmp_path)["mlflow"], Lake(str(tmp_path / "lake"))
    run_of = {entry.model_version: entry.run_id for entry in ledger(lake)}
    assert mlflow.champion().run_id == run_of[new]
    assert decide(tmp_path, "revoked", new).success
    assert mlflow.champion().run_id == run_of[old]
    last = ledger(lake)[-1]
    assert (last.kind, last.decided_by, last.reason, last.champion_after) == ("revoked", "operator", "as a test", old)
    champion = production_champion(lake)
    assert champion
    assert champion.model_version == old


def test_a_pin_is_recorded_and_only_what_is_pinned_can_be_released(tmp_path: Path) -> None:
    old, new = promote(tmp_path, DAYS[0], seed=1), promote(tmp_path, DAYS[1], seed=2)
    assert not decide(tmp_path, "released", new).success
    assert not decide(tmp_path, "revoked", new, pinned=True).success
    assert decide(tmp_path, "forced", old, pinned=True).success
    lake = Lake(str(tmp_path / "lake"))
    standing = replay(ledger(lake))
    assert (standing.champion, standing.pin) == (ledger(lake)[-1], ledger(lake)[-1])
    assert decide(tmp_path, "released", old).success
    standing = replay(ledger(lake))
    assert standing.champion
    assert (standing.champion.model_version, standing.pin) == (old, None)


def test_a_decision_that_a_server_cut_short_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = promote(tmp_path, DAYS[0], seed=1)
    answers = [ConnectionError("the registry does not answer")]
    publish = deployed_image.publish

    def once(*arguments: Any) -> str:
        if answers:
            raise answers.pop()
        return publish(*arguments)

    monkeypatch.setattr(override_module, "publish", once)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert decide(tmp_path, "forced", model).success
    assert [entry.kind for entry in ledger(Lake(str(tmp_path / "lake")))] == ["verdict", "forced"]


def test_a_model_that_nobody_judged_cannot_be_forced(tmp_path: Path) -> None:
    known = promote(tmp_path, DAYS[0], seed=1)
    result = decide(tmp_path, "forced", "no-such-model")
    assert not result.success
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert known in str(failure.step_failure_data.error)
    assert len(ledger(Lake(str(tmp_path / "lake")))) == 1


def test_a_changed_landing_file_requests_its_day_alone_also_when_it_changes_back(tmp_path: Path) -> None:
    for day in DAYS:
        land(tmp_path, day, 1_000)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert run(tmp_path, instance, ["landing"]).success
        history = tick(tmp_path, instance, landed_days, None)
        assert not history.run_requests
        assert run(tmp_path, instance, ["landing"]).success
        assert not tick(tmp_path, instance, landed_days, history.cursor).run_requests
        keys, cursor = [], history.cursor
        for seed in (8, 7, 8):
            land(tmp_path, DAYS[0], 1_000, seed=seed)
            assert run(tmp_path, instance, ["landing"]).success
            result = tick(tmp_path, instance, landed_days, cursor)
            assert [request.partition_key for request in result.run_requests or []] == [DAYS[0]]
            keys += [request.run_key for request in result.run_requests or []]
            cursor = result.cursor
        assert len(set(keys)) == 3


def test_a_changed_landing_file_makes_its_day_stale_and_only_it(tmp_path: Path) -> None:
    for day in DAYS:
        land(tmp_path, day, 1_000)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert run(tmp_path, instance, ["landing"]).success
        assert run(tmp_path, instance, ["raw_clicks"], DAYS).success
        land(tmp_path, DAYS[0], 1_000, seed=8)
        assert run(tmp_path, instance, ["landing"]).success
        resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), LoadingContextForTest(instance))
        status = {day: resolver.get_status(dg.AssetKey("raw_clicks"), day).value for day in DAYS}
    assert status == {DAYS[0]: "STALE", DAYS[1]: "FRESH"}
