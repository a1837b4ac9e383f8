"""Images that carry a model: what is in one, wherever it is stored.

An image is the runtime's layers plus one layer with the model folder at `/model`. The same model, annotations and
runtime give the same digest on any machine: no build time, no owner, and a plain tar, since a compressed one depends on
the version of zlib. Specification: https://github.com/opencontainers/image-spec (image-layout.md, manifest.md).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import dagster as dg

from mlops_assets.inference.model import Model, ModelError

MODEL_FILES: Final = ("model.json", "model.onnx")
MODEL_FOLDER: Final = "model"

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
VERSION: Final = "org.opencontainers.image.version"
TITLE: Final = "org.opencontainers.image.title"
BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"


class ImageError(RuntimeError):
    """An image is unknown or corrupted, or a model is not fit to become one. The message says what to do."""


class StoreAwayError(ImageError):
    """The store does not answer, or refuses: nothing is known of the image, and another time it may go well."""


def digest_of(content: bytes) -> str:
    """The OCI digest, `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON with one spelling only, so that equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def model_layer(folder: Path) -> bytes:
    """The model folder as a tar, a pure function of the files' content. Raises ImageError for a missing file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        directory = tarfile.TarInfo(MODEL_FOLDER)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for name in MODEL_FILES:
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise ImageError(f"no {name} in the model folder {folder}: {error.strerror}") from error
            entry = tarfile.TarInfo(f"{MODEL_FOLDER}/{name}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def extract(layer: bytes, folder: Path) -> Path:
    """Unpacks a model layer below `folder`; the model folder. Raises ImageError if it holds no model.

    Only a model's own files are taken, so no name in the layer can lead elsewhere. (tarfile's filters, which do the
    same, came with Python 3.11.4; Debian 12 has 3.11.2.)
    """
    target = folder / MODEL_FOLDER
    target.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as tar:
            for name in MODEL_FILES:
                content = tar.extractfile(f"{MODEL_FOLDER}/{name}")
                if content is None:
                    raise ImageError(f"{name} in the model layer is no file: publish the model again")
                (target / name).write_bytes(content.read())
    except KeyError as error:
        raise ImageError(f"the model layer lacks a file ({error.args[0]}): publish the model again") from error
    except tarfile.TarError as error:
        raise ImageError(f"the model layer is no tar file ({error}): publish the model again") from error
    return target


class Base(NamedTuple):
    """What the model's layer is put onto: the image's config, the descriptors of its layers, and its annotations."""

    config: dict[str, Any]
    layers: list[dict[str, Any]]
    annotations: dict[str, str]


class Images(dg.ConfigurableResource[None], ABC):
    """A store of model images. Subclasses say where blobs and manifests are kept; this says what is in them."""

    def publish(self, model_folder: Path, annotations: Mapping[str, str]) -> str:
        """Stores the model as an image and tags it with the model's version; the image's digest.

        The golden rows are checked in the image's own files before anything is stored. An image that is there already
        is left as it is.

        Raises:
            ImageError: the model folder is incomplete, or the model fails its golden rows.
        """
        layer = model_layer(model_folder)
        with tempfile.TemporaryDirectory(prefix="image-") as scratch:
            version = self._check(layer, Path(scratch))
        base = self._base()
        labels = {VERSION: version, **base.annotations, **annotations}
        container = base.config.get("config", {})
        config = {
            **base.config,
            "config": {**container, "Labels": {**(container.get("Labels") or {}), **labels}},
            "rootfs": {"type": "layers", "diff_ids": [*base.config["rootfs"]["diff_ids"], digest_of(layer)]},
            "history": [*base.config.get("history", []), {"created_by": f"model {version}"}],
        }
        layer_descriptor = {**self._put_blob(layer, LAYER_TYPE), "annotations": {TITLE: MODEL_FOLDER}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._put_blob(canonical(config), CONFIG_TYPE),
            "layers": [*base.layers, layer_descriptor],
            "annotations": labels,
        }
        return self._put_manifest(canonical(manifest), version)

    def model_folder(self, digest: str, target: Path) -> Path:
        """Extracts the image's model folder as `target` (replaced if it is there); `target`.

        Raises:
            ImageError: the image is unknown, corrupted (a blob does not have its digest), or carries no model.
        """
        for layer in self._manifest(digest)["layers"]:
            if layer.get("annotations", {}).get(TITLE) == MODEL_FOLDER:
                break
        else:
            raise ImageError(f"image {digest} carries no model: it was not published by this project")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = extract(self._blob(layer["digest"]), Path(scratch))
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
        return target

    def describe(self, digest: str) -> dict[str, str]:
        """The image's annotations, among them its model's version under VERSION. Raises ImageError if unknown."""
        annotations: dict[str, str] = self._manifest(digest).get("annotations", {})
        return annotations

    def runtime_digest(self) -> str | None:
        """The digest of the runtime image as it is now; None where models are stored without one."""
        return self._base().annotations.get(BASE_DIGEST)

    def require(self, digest: str) -> dict[str, str]:
        """As `describe`, of an image that is there with all its parts. Raises ImageError naming what is missing."""
        return self.describe(digest)

    @abstractmethod
    def find(self, model_version: str) -> str | None:
        """The digest of the newest image of that model, None if there is none."""

    def _check(self, layer: bytes, scratch: Path) -> str:
        """The model's version, after its golden rows passed in the image's own file tree."""
        try:
            return Model.load(extract(layer, scratch)).version
        except ModelError as error:
            raise ImageError(f"the model is not fit for an image: {error}") from error

    @abstractmethod
    def _base(self) -> Base:
        """The runtime image."""

    @abstractmethod
    def _manifest(self, digest: str) -> dict[str, Any]:
        """The image's manifest, verified. Raises ImageError if there is no such image, or if it is corrupted."""

    @abstractmethod
    def _blob(self, digest: str) -> bytes:
        """The content with that digest, verified. Raises ImageError if it is not there or corrupted."""

    @abstractmethod
    def _put_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Stores content, if it is not there yet; its descriptor."""

    @abstractmethod
    def _put_manifest(self, content: bytes, tag: str) -> str:
        """Stores a manifest and moves the tag to it; its digest."""
