"""The embedded store of images: an OCI image layout on disk.

Specification: https://github.com/opencontainers/image-spec (image-layout.md).
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mlops_assets.resources.images import INDEX_TYPE, MANIFEST_TYPE, Base, ImageError, Images, canonical, digest_of

TAG: Final = "org.opencontainers.image.ref.name"


class OciLayout(Images):
    """Images in a folder: an OCI image layout, which skopeo, buildah, podman and oras read as it is.

    The image has no runtime below the model: the local workers run in this project's own Python. Several processes
    may publish into one folder at the same time.
    """

    path: str

    def find(self, model_version: str) -> str | None:
        """The digest of the newest image of that model, None if there is none."""
        for entry in self._index()["manifests"]:
            if entry.get("annotations", {}).get(TAG) == model_version:
                digest: str = entry["digest"]
                return digest
        return None

    def _base(self) -> Base:
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        return Base(config, layers=[], annotations={})

    def _manifest(self, digest: str) -> dict[str, Any]:
        if not self._file(digest).exists():
            known = ", ".join(entry["digest"] for entry in self._index()["manifests"]) or "none"
            raise ImageError(f"no image {digest} in {self.path}; known: {known}")
        manifest: dict[str, Any] = json.loads(self._blob(digest))
        return manifest

    def _blob(self, digest: str) -> bytes:
        try:
            content = self._file(digest).read_bytes()
        except OSError as error:
            raise ImageError(f"blob {digest} is missing in {self.path}: publish the model again") from error
        if digest_of(content) != digest:
            raise ImageError(f"{self._file(digest)} is corrupted: it has {digest_of(content)}; publish the model again")
        return content

    def _put_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(content)
        file = self._file(digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or digest_of(file.read_bytes()) != digest:
            write_atomically(file, content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _put_manifest(self, content: bytes, tag: str) -> str:
        entry = {**self._put_blob(content, MANIFEST_TYPE), "annotations": {TAG: tag}}
        with self._locked():
            index = self._index()
            if entry not in index["manifests"]:
                others = [other for other in index["manifests"] if other["digest"] != entry["digest"]]
                for other in others:  # an older image of the same model stays, without the tag
                    if other.get("annotations", {}).get(TAG) == tag:
                        del other["annotations"]
                write_atomically(Path(self.path, "index.json"), canonical({**index, "manifests": [*others, entry]}))
        digest: str = entry["digest"]
        return digest

    def _file(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise ImageError(f"{digest!r} is no image digest: sha256: and 64 hexadecimal digits are expected")
        return Path(self.path, "blobs", algorithm, value)

    def _index(self) -> dict[str, Any]:
        try:
            index: dict[str, Any] = json.loads(Path(self.path, "index.json").read_bytes())
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        except ValueError as error:
            raise ImageError(f"{self.path}/index.json is corrupted ({error}): delete it, publish again") from error
        return index

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the index at a time, among all processes; the kernel frees the lock of one that dies."""
        layout = Path(self.path, "oci-layout")
        if not layout.exists():
            write_atomically(layout, canonical({"imageLayoutVersion": "1.0.0"}))
        with Path(self.path, ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def write_atomically(file: Path, content: bytes) -> None:
    """Replaces a file whole: a reader sees the old or the new content, also after a crash."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-", delete=False) as temporary:
        try:
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).chmod(0o644)
            Path(temporary.name).rename(file)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise
