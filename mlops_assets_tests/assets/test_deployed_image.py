"""Which image is the champion's: the recorded one, whatever a tag says; a new one when the runtime below it is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mlops_assets.assets.deployed_image import publish, recorded_image
from mlops_assets.assets.promoted_model import LEDGER
from mlops_assets.lake.store import Lake
from mlops_assets.modelling.ledger import Entry
from mlops_assets.resources.images import BASE_DIGEST, VERSION, StoreAwayError, canonical
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets.resources.registry import Registry
from mlops_assets_tests.resources.models import write_model
from mlops_assets_tests.resources.test_registry import USER, Fake, push_runtime


class Models:
    """MLflow, which knows a model for each run."""

    def model_folder(self, run_id: str, target: Path) -> Path:
        return write_model(target / "model", run_id)


class World:
    """A lake with a ledger, a registry with a runtime, and MLflow."""

    def __init__(self, home: Path, registry: Fake) -> None:
        self.lake, self.mlflow, self.server = Lake(str(home / "lake")), Models(), registry
        self.images = Registry(repository=f"127.0.0.1:{registry.server_port}/team/inference")
        push_runtime(self.images)

    def promote(self, model: str, day: str) -> Entry:
        entry = Entry(
            day=day,
            kind="verdict",
            decided_by="test",
            reason="better",
            model_version=model,
            run_id=model,
            promoted=True,
            champion_after=model,
        )
        self.lake.append_record(LEDGER, entry.key, entry.as_dict())
        return entry

    def publish(self, entry: Entry, images: Any = None) -> str:
        return publish(self.lake, entry, self.mlflow, images or self.images)  # type: ignore[arg-type]

    def new_runtime(self) -> str:
        """A new version of the service is pushed under the same tag."""
        manifest = json.loads(self.images._get_manifest("runtime"))
        return self.images._put_manifest(canonical({**manifest, "annotations": {"version": "2"}}), "runtime")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with Fake() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        auths = {f"127.0.0.1:{server.server_port}": {"auth": USER}}
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": auths}))
        yield World(tmp_path, server)
        server.shutdown()


def test_the_recorded_digest_counts_whatever_the_tag_says(world: World, tmp_path: Path) -> None:
    champion = world.promote("model-a", "2017-11-07")
    digest = world.publish(champion)
    assert recorded_image(world.lake, "model-a") == digest
    forged = world.images.publish(write_model(tmp_path / "forged", "model-a", weight=0.5), {})
    assert world.images.find("model-a") == forged != digest
    assert world.publish(champion) == digest
    assert recorded_image(world.lake, "model-a") == digest


def test_a_model_that_nobody_published_has_no_image(world: World) -> None:
    assert recorded_image(world.lake, "model-a") is None


def test_an_image_of_an_earlier_version_is_taken_over_by_its_tag(world: World, tmp_path: Path) -> None:
    champion = world.promote("model-a", "2017-11-07")
    earlier = world.images.publish(write_model(tmp_path / "earlier", "model-a"), {"from": "an earlier version"})
    assert world.publish(champion) == earlier == recorded_image(world.lake, "model-a")


def test_a_new_runtime_makes_the_champions_image_anew_and_no_other(world: World) -> None:
    old, champion = world.promote("model-a", "2017-11-07"), world.promote("model-b", "2017-11-08")
    before = {entry.model_version: world.publish(entry) for entry in (old, champion)}
    runtime = world.new_runtime()
    renewed = world.publish(champion)
    assert renewed != before["model-b"]
    described = world.images.describe(renewed)
    assert (described[BASE_DIGEST], described[VERSION]) == (runtime, "model-b")
    assert recorded_image(world.lake, "model-b") == renewed
    assert world.publish(old) == before["model-a"]
    puts = len(world.server.content)
    assert world.publish(champion) == renewed
    assert len(world.server.content) == puts
    assert world.images.describe(before["model-b"])[VERSION] == "model-b"  # and the way back stays


def test_an_image_that_was_lost_is_made_again(world: World) -> None:
    champion = world.promote("model-a", "2017-11-07")
    digest = world.publish(champion)
    for name in [name for name in world.server.content if digest in name or name.endswith("model-a")]:
        del world.server.content[name]
    assert world.publish(champion) == digest
    assert world.images.require(digest)


def test_a_registry_that_is_away_is_no_reason_to_build(world: World) -> None:
    champion = world.promote("model-a", "2017-11-07")
    digest = world.publish(champion)
    world.server.failures = 1_000
    with pytest.raises(StoreAwayError):
        world.publish(champion)
    assert recorded_image(world.lake, "model-a") == digest


def test_images_on_disk_have_no_runtime_and_are_made_once(world: World, tmp_path: Path) -> None:
    images, champion = OciLayout(path=str(tmp_path / "images")), world.promote("model-a", "2017-11-07")
    digest = world.publish(champion, images)
    assert world.publish(champion, images) == digest == recorded_image(world.lake, "model-a")
