"""What people who run the graph see: made once on three generated days, then looked at, disturbed and run again."""

import csv
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
import onnxruntime
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from sklearn.metrics import roc_auc_score

from mlops_assets.assets.candidate_model import data_versions
from mlops_assets.assets.promoted_model import ledger, production_champion
from mlops_assets.definitions import defs
from mlops_assets.lake.importing import import_files, sources_of
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake
from mlops_assets.resources.environment import embedded
from mlops_assets_tests.assets.graph import CLICKS_ASSETS, VERDICT_ASSETS, backfill, land, run

DAYS = ["2017-11-06", "2017-11-07", "2017-11-08"]


class World(NamedTuple):
    home: Path
    instance: dg.DagsterInstance

    @property
    def lake(self) -> Lake:
        return Lake(str(self.home / "lake"))

    @property
    def mlflow(self) -> Any:
        return embedded(self.home)["mlflow"]

    @property
    def images(self) -> Any:
        return embedded(self.home)["images"]

    def metadata(self, asset: str, day: str) -> dict[str, Any]:
        """What the day's latest materialization says."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day]), limit=1
        ).records
        assert records, f"{asset} of {day} was not materialized"
        event = records[0].asset_materialization
        assert event
        return {name: value.value for name, value in event.metadata.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    land(home, DAYS[0], 30_000)
    land(home, DAYS[1], 30_000)
    land(home, DAYS[2], 30_000, drift=0.5)
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("instance"))) as instance:
        backfill(home, instance, DAYS)
        yield World(home, instance)


def content(folder: Path) -> dict[str, str]:
    """Every file below the folder with the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_landed_line_is_a_row_of_the_training_set(world: World) -> None:
    for day in DAYS:
        with gzip.open(world.home / "lake" / "landing" / f"{day}.csv.gz", "rt") as file:
            lines = list(csv.DictReader(io.StringIO(file.read())))
        found = world.metadata("training_set", day)
        assert found["dagster/row_count"] == len(lines)
        assert found["installs"] == sum(line["is_attributed"] == "1" for line in lines)


def test_the_reported_auc_is_scikit_learns(world: World, tmp_path: Path) -> None:
    found = world.metadata("candidate_model", DAYS[1])
    run_id = world.mlflow.find({"day": DAYS[1], "model_version": found["model_version"]})
    folder = world.mlflow.model_folder(run_id, tmp_path)
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes())
    names = ["app", "device", "os", "channel", "hour", "day_of_week", "ip_count", "ip_day_hour"]
    names += ["ip_hour_channel", "ip_hour_os", "ip_hour_app", "ip_hour_device"]
    features, label = [], []
    for batch in world.lake.read("training_set", DAYS[1]):
        features.append(np.column_stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names]))
        label.append(batch.column("is_attributed").to_numpy(zero_copy_only=False))
    answer = session.run(["probability"], {"features": np.concatenate(features).astype(np.float32)})[0]
    auc = roc_auc_score(np.concatenate(label), answer)
    spread = world.mlflow._client().get_metric_history(run_id, "bootstrap_auc")
    replicates = np.array([metric.value for metric in spread])
    assert len(replicates) == 100
    assert found["mean_bootstrap_auc"] == pytest.approx(replicates.mean())
    assert auc == pytest.approx(replicates.mean(), abs=4 * replicates.std() / 10 + 1e-4)


def test_the_first_day_has_no_candidate_and_the_graph_goes_on(world: World) -> None:
    assert world.metadata("candidate_model", DAYS[0])["algorithm"] == "none"
    assert world.metadata("promoted_model", DAYS[0])["champion"] == "none"
    assert world.metadata("deployed_image", DAYS[0])["digest"] == "none"
    assert world.metadata("promoted_model", DAYS[1])["promoted"] is True
    assert world.metadata("deployed_image", DAYS[1])["digest"].startswith("sha256:")


def test_verdicts_are_in_day_order_and_the_alias_is_the_ledgers_champion(world: World) -> None:
    entries = ledger(world.lake)
    assert [entry.day for entry in entries] == DAYS
    champion = production_champion(world.lake)
    assert champion
    assert world.mlflow.champion().run_id == champion.run_id
    image = world.metadata("deployed_image", DAYS[2])["digest"]
    assert world.images.describe(image)["mlops-assets.model-version"] == champion.model_version


def test_running_it_again_changes_nothing(world: World) -> None:
    before = {name: content(world.home / name) for name in ("lake", "images")}
    client = world.mlflow._client()
    experiment = client.get_experiment_by_name(world.mlflow.experiment).experiment_id
    runs = len(client.search_runs([experiment]))
    backfill(world.home, world.instance, DAYS)
    assert {name: content(world.home / name) for name in ("lake", "images")} == before
    assert len(client.search_runs([experiment])) == runs


def test_judging_an_old_day_again_does_not_demote_production(world: World) -> None:
    alias = world.mlflow.champion()
    assert run(world.home, world.instance, VERDICT_ASSETS, [DAYS[1]]).success
    assert world.mlflow.champion() == alias


def test_a_day_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    land(tmp_path, DAYS[0], 2_000)
    land(tmp_path, DAYS[2], 2_000)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(tmp_path, instance, ["raw_clicks"], DAYS)
        assert not result.success
        materialized = instance.get_materialized_partitions(dg.AssetKey("raw_clicks"))
        assert materialized == {DAYS[0], DAYS[2]}
        (failure,) = result.filter_events(lambda event: event.is_step_failure)
        assert f"landing/{DAYS[1]}.csv.gz is missing" in str(failure.step_failure_data.error)
        land(tmp_path, DAYS[1], 2_000)
        assert run(tmp_path, instance, ["raw_clicks"], DAYS).success


def test_a_day_that_fails_its_blocking_check_costs_no_other_day(tmp_path: Path) -> None:
    land(tmp_path, DAYS[0], 2_000)
    land(tmp_path, DAYS[2], 2_000)
    landing = Landing(str(tmp_path / "lake"))
    with landing.stage(DAYS[1]) as file:
        file.write(b"1,2,3,4,5,2017-11-07 10:00:00,2017-11-07 11:00:00,1\n" * 50)
        landing.publish([file], replace=False)
    with dg.DagsterInstance.ephemeral() as instance:
        for asset in CLICKS_ASSETS:
            result = run(tmp_path, instance, [asset], DAYS)
            assert not result.success
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {DAYS[0], DAYS[2]}
            (failure,) = result.filter_events(lambda event: event.is_step_failure)
            assert f"{DAYS[1]}: raw_clicks of {DAYS[1]} fails its check label_is_a_label" in str(
                failure.step_failure_data.error
            )
    assert Lake(str(tmp_path / "lake")).days("training_set") == [DAYS[0], DAYS[2]]


@pytest.mark.integration
def test_a_window_with_a_missing_day_trains_on_the_others_and_a_day_without_verdict_is_passed_over(
    world: World, tmp_path: Path
) -> None:
    for day in (DAYS[0], DAYS[2]):
        target = tmp_path / "lake" / "landing" / f"{day}.csv.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((world.home / "lake" / "landing" / f"{day}.csv.gz").read_bytes())
    with dg.DagsterInstance.ephemeral() as instance:
        for asset in (*CLICKS_ASSETS, "candidate_model", *VERDICT_ASSETS):
            result = run(tmp_path, instance, [asset], DAYS)
            made = instance.get_materialized_partitions(dg.AssetKey(asset))
            # Without the day's clicks there is no verdict on it; its image is still the champion's, which is none yet.
            assert made == ({*DAYS} if asset == "deployed_image" else {DAYS[0], DAYS[2]})
            assert result.success == (asset == "deployed_image")
    verdict = ledger(Lake(str(tmp_path / "lake")))[-1]
    assert list(verdict.data_versions) == [DAYS[0], DAYS[2]], "trained on the day that is there, judged on its own"
    assert verdict.verdict["candidate_auc"]


def test_a_server_that_fails_once_is_no_verdict_on_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_assets.assets import days, raw_clicks
    from mlops_assets.lake.ingest import ingest

    monkeypatch.setattr(days, "RETRY_SECONDS", [0, 0])
    answers: list[BaseException | None] = [TimeoutError("S3 does not answer"), None]

    def once(landing: Any, lake: Any, day: str) -> Any:
        if answers and (error := answers.pop(0)):
            raise error
        return ingest(landing, lake, day)

    monkeypatch.setattr(raw_clicks, "ingest", once)
    land(tmp_path, DAYS[0], 2_000)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(tmp_path, instance, ["raw_clicks"], [DAYS[0]]).success
        answers.extend([TimeoutError("S3 does not answer")] * 9)
        assert not run(tmp_path, instance, ["raw_clicks"], [DAYS[0]]).success
        assert len(answers) == 6, "two more attempts, then it is a failure"
        answers[:] = [ValueError("a bug")] * 9
        assert not run(tmp_path, instance, ["raw_clicks"], [DAYS[0]]).success
        assert len(answers) == 8, "what is no server's failure is not tried again"


@pytest.mark.integration
def test_later_candidates_that_would_come_out_otherwise_are_shown_as_stale(world: World, tmp_path: Path) -> None:
    for day in DAYS:
        target = tmp_path / "lake" / "landing" / f"{day}.csv.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((world.home / "lake" / "landing" / f"{day}.csv.gz").read_bytes())
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as instance:
        backfill(tmp_path, instance, DAYS)
        before = stale(instance, "candidate_model")
        land(tmp_path, DAYS[0], 30_000, seed=9)
        assert run(tmp_path, instance, CLICKS_ASSETS, [DAYS[0]]).success
        after = stale(instance, "candidate_model")
    assert before == set()
    assert after == set(DAYS), "the day itself, and both that were trained on it"


def stale(instance: dg.DagsterInstance, asset: str) -> set[str]:
    """The days that Dagster shows as stale."""
    resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), LoadingContextForTest(instance))
    return {day for day in DAYS if resolver.get_status(dg.AssetKey(asset), day).value == "STALE"}


def test_a_label_column_that_is_none_stops_the_graph(tmp_path: Path) -> None:
    landing = Landing(str(tmp_path / "lake"))
    with landing.stage(DAYS[0]) as file:
        file.write(b"1,2,3,4,5,2017-11-06 10:00:00,2017-11-06 11:00:00,1\n" * 50)
        landing.publish([file], replace=False)
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(tmp_path, instance, CLICKS_ASSETS, [DAYS[0]])
        key = dg.AssetCheckKey(dg.AssetKey("raw_clicks"), "label_is_a_label")
        (check,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert not result.success
    assert check.status.value == "FAILED"
    assert not Lake(str(tmp_path / "lake")).days("training_set")


def test_a_candidate_that_is_stale_when_it_is_judged_is_trained_again(world: World, tmp_path: Path) -> None:
    """A training set changed after the candidate was trained, as while its verdict waited for an earlier day's."""
    for name in ("lake", "mlflow"):
        subprocess.run(["cp", "-r", str(world.home / name), str(tmp_path / name)], check=True)
    land(tmp_path, DAYS[1], 25_000, seed=8)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(tmp_path, instance, ["raw_clicks"], [DAYS[1]]).success
        assert run(tmp_path, instance, ["training_set"], [DAYS[1]]).success
        assert run(tmp_path, instance, ["promoted_model"], [DAYS[2]]).success
        assert instance.get_materialized_partitions(dg.AssetKey("candidate_model")) == {DAYS[2]}
    lake = Lake(str(tmp_path / "lake"))
    verdict = ledger(lake)[-1]
    assert (verdict.day, verdict.data_versions) == (DAYS[2], data_versions(lake, DAYS[2]))
    assert verdict.data_versions != ledger(world.lake)[-1].data_versions


def test_a_killed_backfill_ends_in_the_same_lake(world: World, tmp_path: Path) -> None:
    for day in DAYS:
        target = tmp_path / "lake" / "landing" / f"{day}.csv.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((world.home / "lake" / "landing" / f"{day}.csv.gz").read_bytes())
    command = [sys.executable, "-m", "mlops_assets_tests.assets.graph", str(tmp_path), *DAYS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "lake" / "training_set" / f"date={DAYS[0]}" / "_manifest.json").exists():
        assert process.poll() is None, "the backfill ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with dg.DagsterInstance.ephemeral() as instance:
        backfill(tmp_path, instance, DAYS)
    for dataset in CLICKS_ASSETS:
        assert content(tmp_path / "lake" / dataset) == content(world.home / "lake" / dataset)
    assert not list((tmp_path / "lake" / "_staging").rglob("*.parquet"))
    models = [[entry.model_version for entry in ledger(Lake(str(home / "lake")))] for home in (tmp_path, world.home)]
    assert models[0] == models[1][: len(DAYS)]


@pytest.mark.skipif("CLICKS_SAMPLE" not in os.environ, reason="CLICKS_SAMPLE names no folder of real clicks")
def test_the_champion_is_good_on_real_clicks(tmp_path: Path) -> None:
    sources = sources_of(Path(os.environ["CLICKS_SAMPLE"]))
    import_files(sources, Landing(str(tmp_path / "lake")), replace=False, advance=lambda amount: None)
    with dg.DagsterInstance.ephemeral() as instance:
        backfill(tmp_path, instance, DAYS)
    champion = production_champion(Lake(str(tmp_path / "lake")))
    assert champion
    assert champion.day == "2017-11-08"
    assert champion.verdict["candidate_auc"] >= 0.95
