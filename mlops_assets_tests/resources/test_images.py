from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlops_assets.resources.images import VERSION, ImageError, extract
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets_tests.resources.models import write_model

ANNOTATIONS = {"run": "r1", "auc": "0.97"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def images(tmp_path: Path) -> OciLayout:
    return OciLayout(path=str(tmp_path / "images"))


def blob(images: OciLayout, digest: str) -> Path:
    return Path(images.path, "blobs", "sha256", digest.removeprefix("sha256:"))


def test_a_published_model_comes_back_byte_for_byte(images: OciLayout, model: Path, tmp_path: Path) -> None:
    digest = images.publish(model, ANNOTATIONS)
    target = images.model_folder(digest, tmp_path / "deep" / "extracted")
    assert target == tmp_path / "deep" / "extracted"
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {f.name: f.read_bytes() for f in model.iterdir()}
    assert images.find("abc123") == digest
    assert images.describe(digest) == {VERSION: "abc123", **ANNOTATIONS}


def test_a_model_comes_back_also_with_the_tarfile_of_python_3_11_2(
    images: OciLayout, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_filter(
        tar: tarfile.TarFile, path: str = ".", members: None = None, *, numeric_owner: bool = False
    ) -> None:
        raise AssertionError("unfiltered")

    monkeypatch.setattr(tarfile.TarFile, "extractall", without_filter)
    target = images.model_folder(images.publish(model, {}), tmp_path / "target")
    assert sorted(f.name for f in target.iterdir()) == ["model.json", "model.onnx"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["model/model.json"], "lacks a file"),
        (["model/model.json", "model/model.onnx/"], "model.onnx in the model layer is no file"),
        (["model/model.json", "model/model.onnx", "../outside", "/tmp/absolute", "model/../../outside"], None),
    ],
)
def test_a_layer_gives_its_model_or_a_reason_and_reaches_nothing_else(
    tmp_path: Path, names: list[str], reason: str | None
) -> None:
    layer, folder = io.BytesIO(), tmp_path / "deep" / "folder"
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(entry)
    with pytest.raises(ImageError, match=reason) if reason else nullcontext():
        extract(layer.getvalue(), folder)
    found = {path.relative_to(folder).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found <= {"model/model.json", "model/model.onnx"}
    assert reason or len(found) == 2


def test_extraction_replaces_what_was_there(images: OciLayout, model: Path, tmp_path: Path) -> None:
    digest = images.publish(model, {})
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "stale").touch()
    assert sorted(f.name for f in images.model_folder(digest, tmp_path / "target").iterdir()) == [
        "model.json",
        "model.onnx",
    ]


def test_same_model_same_digest_wherever_and_whenever(images: OciLayout, model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    for file in copy.iterdir():
        os.utime(file, (1, 1))
        file.chmod(0o600)
    (copy / "plot.png").write_bytes(b"not part of the image")
    elsewhere = OciLayout(path=str(tmp_path / "elsewhere"))
    digest = images.publish(model, ANNOTATIONS)
    assert elsewhere.publish(copy, dict(reversed(ANNOTATIONS.items()))) == digest
    assert images.publish(copy, ANNOTATIONS) == digest
    assert images.publish(model, {"run": "r2"}) != digest


def test_the_layout_is_what_the_specification_says(images: OciLayout, model: Path) -> None:
    digest = images.publish(model, ANNOTATIONS)
    root = Path(images.path)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((root / "index.json").read_text())["manifests"]
    assert (entry["digest"], entry["size"]) == (digest, blob(images, digest).stat().st_size)
    manifest = json.loads(blob(images, digest).read_text())
    for descriptor in [entry, manifest["config"], *manifest["layers"]]:
        content = blob(images, descriptor["digest"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (descriptor["digest"][7:], descriptor["size"])
    config = json.loads(blob(images, manifest["config"]["digest"]).read_text())
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    with tarfile.open(blob(images, manifest["layers"][0]["digest"])) as tar:
        assert tar.getnames() == ["model", "model/model.json", "model/model.onnx"]
        assert {(m.uid, m.gid, m.mtime) for m in tar} == {(0, 0, 0)}


def test_the_newest_image_of_a_model_is_found_and_the_older_stays(images: OciLayout, model: Path) -> None:
    first, second = images.publish(model, {"run": "1"}), images.publish(model, {"run": "2"})
    assert images.find("abc123") == second
    assert images.describe(first)["run"] == "1"
    assert images.publish(model, {"run": "1"}) == first == images.find("abc123")
    assert images.find("unknown") is None


@pytest.mark.parametrize("file", ["model.onnx", "model.json"])
def test_an_incomplete_model_is_not_published(images: OciLayout, model: Path, file: str) -> None:
    (model / file).unlink()
    with pytest.raises(ImageError, match=f"no {file} in the model folder"):
        images.publish(model, {})
    assert not Path(images.path).exists()


def test_a_model_that_misses_its_golden_rows_is_not_published(images: OciLayout, model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", weight=0.3)
    shutil.copy(other / "model.onnx", model / "model.onnx")
    with pytest.raises(ImageError, match="golden row 0 gets"):
        images.publish(model, {})
    (model / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ImageError, match="onnxruntime can't read"):
        images.publish(model, {})
    assert not Path(images.path).exists()


@pytest.mark.parametrize("which", ["manifest", "layer"])
def test_corruption_is_noticed_and_publishing_again_heals(
    images: OciLayout, model: Path, tmp_path: Path, which: str
) -> None:
    digest = images.publish(model, {})
    layer = json.loads(blob(images, digest).read_text())["layers"][0]["digest"]
    damaged = blob(images, digest if which == "manifest" else layer)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ImageError, match="is corrupted"):
        images.model_folder(digest, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert images.publish(model, {}) == digest
    images.model_folder(digest, tmp_path / "target")


def test_unknown_images_are_named_with_what_is_known(images: OciLayout, model: Path, tmp_path: Path) -> None:
    unknown = "sha256:" + "0" * 64
    with pytest.raises(ImageError, match="known: none"):
        images.describe(unknown)
    digest = images.publish(model, {})
    with pytest.raises(ImageError, match=f"no image {unknown} .* known: {digest}"):
        images.model_folder(unknown, tmp_path / "target")
    with pytest.raises(ImageError, match="is no image digest"):
        images.describe("sha256:../../etc/passwd")


def publish_many(path: str, models: list[Path]) -> None:
    for model in models:
        OciLayout(path=path).publish(model, {})


def test_two_writers_lose_nothing(images: OciLayout, tmp_path: Path) -> None:
    versions = [f"v{i}" for i in range(12)]
    models = [write_model(tmp_path / v, v) for v in versions]
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=publish_many, args=(images.path, models[i::2])) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = [images.find(version) for version in versions]
    assert None not in found
    assert len(set(found)) == len(versions)
