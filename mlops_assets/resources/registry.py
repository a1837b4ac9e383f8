"""Images in a container registry: the model goes as one layer onto the runtime image, without a Docker daemon.

Specification of the API: https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Credentials are found
as docker finds them: the file config.json in $DOCKER_CONFIG (or ~/.docker), its credential helpers, or its content in
$DOCKER_AUTH_CONFIG.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import requests
from pydantic import PrivateAttr
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mlops_assets.resources.images import (
    BASE_DIGEST,
    BASE_NAME,
    INDEX_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    Base,
    ImageError,
    Images,
    StoreAwayError,
    digest_of,
)

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
CREDENTIAL_HELPER_SECONDS: Final = 30
RETRIES: Final = Retry(total=4, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None)

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED: Final = ", ".join((MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST, DOCKER_LIST))
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
LOOPBACK: Final = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


class MissingError(ImageError):
    """The registry has no such thing."""


class Registry(Images):
    """Images in one repository of a registry, where the runtime image lies too, so that its layers need no copy.

    `repository` is like `ghcr.io/owner/inference`; `runtime` is the tag or digest of the runtime image in it.
    `insecure` speaks plain HTTP; for a registry on this machine that is so anyway, as with docker.
    """

    repository: str
    runtime: str = "runtime"
    platform: str = "linux/amd64"
    insecure: bool = False

    _session: requests.Session | None = PrivateAttr(default=None)
    _authorization: str | None = PrivateAttr(default=None)

    def find(self, model_version: str) -> str | None:
        """The digest of the newest image of that model, None if there is none. Raises ImageError."""
        try:
            return digest_of(self._get_manifest(model_version))
        except MissingError:
            return None

    def require(self, digest: str) -> dict[str, str]:
        """See Images."""
        manifest = self._manifest(digest)
        for part in (manifest["config"], *manifest["layers"]):
            self._request("HEAD", f"blobs/{part['digest']}")
        annotations: dict[str, str] = manifest.get("annotations", {})
        return annotations

    def reference(self, digest: str) -> str:
        """How a container runtime names the image."""
        return f"{self.repository}@{digest}"

    def _base(self) -> Base:
        reference = self.runtime
        while True:
            content = self._get_manifest(reference)
            manifest = json.loads(content)
            if "manifests" not in manifest:
                break
            reference = self._for_platform(manifest["manifests"])
        config = json.loads(self._blob(manifest["config"]["digest"]))
        layers = [
            {**layer, "mediaType": f"{LAYER_TYPE}+gzip" if layer["mediaType"] == DOCKER_LAYER else layer["mediaType"]}
            for layer in manifest["layers"]
        ]
        base = {BASE_NAME: f"{self.repository}:{self.runtime}", BASE_DIGEST: digest_of(content)}
        return Base(config, layers, base)

    def _for_platform(self, manifests: list[dict[str, Any]]) -> str:
        system, _, architecture = self.platform.partition("/")
        for entry in manifests:
            platform = entry.get("platform", {})
            if (platform.get("os"), platform.get("architecture")) == (system, architecture):
                digest: str = entry["digest"]
                return digest
        raise ImageError(f"{self.repository}:{self.runtime} is not built for {self.platform}: build and push it")

    def _manifest(self, digest: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self._get_manifest(digest))
        return manifest

    def _get_manifest(self, reference: str) -> bytes:
        response = self._request("GET", f"manifests/{reference}", headers={"Accept": ACCEPTED})
        return self._verified(response.content, reference if ":" in reference else None)

    def _blob(self, digest: str) -> bytes:
        return self._verified(self._request("GET", f"blobs/{digest}").content, digest)

    def _verified(self, content: bytes, digest: str | None) -> bytes:
        if digest and digest_of(content) != digest:
            raise ImageError(f"{self.repository}: what came for {digest} has {digest_of(content)}: it is corrupted")
        return content

    def _put_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(content)
        try:
            self._request("HEAD", f"blobs/{digest}")
        except MissingError:
            start = self._request("POST", "blobs/uploads/")
            location = urljoin(start.url, start.headers["Location"])
            headers = {"Content-Type": "application/octet-stream"}
            self._request("PUT", location, params={"digest": digest}, data=content, headers=headers)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _put_manifest(self, content: bytes, tag: str) -> str:
        self._request("PUT", f"manifests/{tag}", data=content, headers={"Content-Type": MANIFEST_TYPE})
        return digest_of(content)

    @property
    def _host(self) -> str:
        host, _, path = self.repository.partition("/")
        if not path or not re.search(r"[.:]|^localhost$", host):
            raise ImageError(f"{self.repository!r} is no repository: HOST[:PORT]/PATH is expected")
        return host

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request of the API. Raises MissingError for a 404, ImageError for whatever else fails."""
        scheme = "http" if self.insecure or LOOPBACK.fullmatch(self._host) else "https"
        url = urljoin(f"{scheme}://{self.repository.replace('/', '/v2/', 1)}/", path)
        try:
            response = self._send(method, url, **options)
            if response.status_code == requests.codes.unauthorized:
                self._authorization = self._authorize(response.headers.get("WWW-Authenticate", ""))
                response = self._send(method, url, **options)
        except requests.RequestException as error:
            raise StoreAwayError(f"registry {self._host} does not answer: {error}") from error
        if response.ok:
            return response
        if response.status_code == requests.codes.not_found:
            raise MissingError(f"there is no {path} in {self.repository}: push it, or name one that is there")
        said = f"registry {self._host} refused {method} {url}: {response.status_code} {response.text[:300]}"
        raise StoreAwayError(said) from requests.HTTPError(response=response)

    def _send(self, method: str, url: str, headers: Mapping[str, str] = {}, **options: Any) -> requests.Response:
        if self._session is None:
            self._session = requests.Session()
            for prefix in ("http://", "https://"):
                self._session.mount(prefix, HTTPAdapter(max_retries=RETRIES))
        if self._authorization:
            headers = {**headers, "Authorization": self._authorization}
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        return self._session.request(method, url, headers=dict(headers), timeout=timeout, **options)

    def _authorize(self, challenge: str) -> str:
        """The Authorization header that answers a challenge: Basic, or a bearer token from the realm it names."""
        basic = credentials(self._host)
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and basic:
            return f"Basic {basic}"
        if scheme.lower() != "bearer":
            raise StoreAwayError(f"registry {self._host} wants credentials: log in with `docker login {self._host}`")
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        params = {"service": fields.get("service", ""), "scope": f"repository:{self._path}:pull,push"}
        self._authorization = f"Basic {basic}" if basic else None
        response = self._send("GET", fields["realm"], params=params)
        if not response.ok:
            raise StoreAwayError(f"{fields['realm']} gives no token for {self.repository}: {response.status_code}")
        answer = response.json()
        return f"Bearer {answer.get('token') or answer['access_token']}"

    @property
    def _path(self) -> str:
        return self.repository.partition("/")[2]


def credentials(host: str) -> str | None:
    """User and password for a registry, base64 of `user:password`, None if docker knows none.

    Raises:
        ImageError: docker's configuration is no JSON, or its credential helper fails.
    """
    home = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    file = Path(home, "config.json")
    text = os.environ.get("DOCKER_AUTH_CONFIG") or (file.read_text() if file.exists() else "{}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ImageError(f"docker's configuration ({file} or $DOCKER_AUTH_CONFIG) is no JSON: {error}") from error
    names = [host, f"https://{host}", *(["https://index.docker.io/v1/"] if host.endswith("docker.io") else [])]
    for name in names:
        if auth := config.get("auths", {}).get(name, {}).get("auth"):
            return str(auth)
    helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
    return ask_helper(helper, host) if helper else None


def ask_helper(helper: str, host: str) -> str | None:
    """What `docker-credential-HELPER` knows about the registry. Raises ImageError if there is no such program."""
    try:
        answer = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=host,
            capture_output=True,
            text=True,
            timeout=CREDENTIAL_HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"docker-credential-{helper}, which docker's configuration names, fails: {error}") from error
    if answer.returncode:  # it knows no credentials
        return None
    known = json.loads(answer.stdout)
    return base64.b64encode(f"{known['Username']}:{known['Secret']}".encode()).decode()
