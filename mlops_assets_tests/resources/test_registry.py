"""Images in a registry: against Debian's docker-registry where there is one, and against a fake for the faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from mlops_assets.cli.dagster_server import free_port
from mlops_assets.resources.images import BASE_DIGEST, LAYER_TYPE, MANIFEST_TYPE, VERSION, ImageError, canonical
from mlops_assets.resources.registry import Registry
from mlops_assets_tests.resources.models import write_model

USER = base64.b64encode(b"someone:secret").decode()
HTPASSWD = "someone:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"  # bcrypt of "secret"
BASE_LAYER = b"the runtime's files"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def push_runtime(registry: Registry) -> str:
    """A runtime image, made by hand: what a Dockerfile's build would have pushed."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": "10001", "Entrypoint": ["python"], "Labels": {"from": "runtime"}},
        "rootfs": {"type": "layers", "diff_ids": [sha(BASE_LAYER)]},
        "history": [{"created_by": "Dockerfile"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": registry._put_blob(canonical(config), "application/vnd.oci.image.config.v1+json"),
        "layers": [registry._put_blob(BASE_LAYER, LAYER_TYPE)],
    }
    return registry._put_manifest(canonical(manifest), "runtime")


class Fake(ThreadingHTTPServer):
    """A registry in memory that wants a bearer token, and whose next answers can be told to fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.content: dict[str, bytes] = {}
        self.failures = 0
        self.tokens: list[str] = []
        self.uploads = 0


class FakeHandler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        if path == "/token":
            if self.headers["Authorization"] != f"Basic {USER}":
                self.answer(401)
                return
            self.server.tokens.append(query)
            self.answer(200, json.dumps({"token": f"t{len(self.server.tokens)}"}).encode())
        elif self.headers["Authorization"] != f"Bearer t{len(self.server.tokens)}":
            realm = f"http://127.0.0.1:{self.server.server_port}/token"
            self.answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="fake",scope="repository:x:pull"')
        elif self.server.failures:
            self.server.failures -= 1
            self.answer(503)
        elif self.command == "POST":
            self.server.uploads += 1
            self.answer(202, Location=f"/v2/team/inference/blobs/upload-{self.server.uploads}?state=1")
        elif self.command == "PUT":
            digest = re.findall(r"sha256%3A(\w+)", query)
            name = f"blobs/sha256:{digest[0]}" if digest else path.removeprefix("/v2/team/inference/")
            self.server.content[name] = self.server.content[f"manifests/{sha(body)}"] = body
            self.answer(201)
        elif content := self.server.content.get(path.removeprefix("/v2/team/inference/")):
            self.answer(200, content)
        else:
            self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with Fake() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        auths = {f"127.0.0.1:{server.server_port}": {"auth": USER}}
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": auths}))
        yield server
        server.shutdown()


@pytest.fixture(params=["fake", "docker-registry"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An empty repository that wants credentials, with a runtime image in it."""
    if request.param == "fake":
        port = request.getfixturevalue("fake").server_port
        registry = Registry(repository=f"127.0.0.1:{port}/team/inference")
        push_runtime(registry)
        yield registry
        return
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no docker-registry on PATH")
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "http": {"addr": address},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
    }
    (tmp_path / "registry.yaml").write_text(json.dumps(settings))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": USER}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with subprocess.Popen([program, "serve", str(tmp_path / "registry.yaml")]) as process:
        try:
            for _ in range(100):
                try:
                    requests.get(f"http://{address}/v2/", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            registry = Registry(repository=f"{address}/team/inference")
            push_runtime(registry)
            yield registry
        finally:
            process.terminate()


def test_a_model_becomes_one_layer_on_the_runtime(registry: Registry, model: Path, tmp_path: Path) -> None:
    digest = registry.publish(model, {"run": "r1"})
    assert registry.publish(model, {"run": "r1"}) == digest == registry.find("abc123")
    assert registry.find("unknown") is None
    described = registry.describe(digest)
    assert (described[VERSION], described["run"], described[BASE_DIGEST]) == ("abc123", "r1", push_runtime(registry))
    manifest = registry._manifest(digest)
    assert [layer["digest"] for layer in manifest["layers"]][:1] == [sha(BASE_LAYER)]
    config = json.loads(registry._blob(manifest["config"]["digest"]))
    assert (config["config"]["User"], config["config"]["Entrypoint"]) == ("10001", ["python"])
    assert config["config"]["Labels"] == {"from": "runtime", **described}
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    folder = registry.model_folder(digest, tmp_path / "extracted")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in model.iterdir()}
    with pytest.raises(ImageError, match="there is no manifests/sha256:0"):
        registry.describe("sha256:" + "0" * 64)


def test_a_registry_without_runtime_says_so(fake: Fake, model: Path) -> None:
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference", runtime="1.0")
    with pytest.raises(ImageError, match=r"there is no manifests/1\.0"):
        registry.publish(model, {})


def test_the_runtime_of_the_right_platform_is_taken(fake: Fake, model: Path) -> None:
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference")
    digest = push_runtime(registry)
    entries = [
        {"digest": "sha256:" + "1" * 64, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": digest, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    registry._put_manifest(canonical({"schemaVersion": 2, "manifests": entries}), "runtime")
    assert registry.describe(registry.publish(model, {}))[BASE_DIGEST] == digest
    other = Registry(repository=registry.repository, platform="linux/riscv64")
    with pytest.raises(ImageError, match="not built for linux/riscv64"):
        other.publish(model, {})


def test_an_unwell_registry_is_asked_again_and_an_expired_token_renewed(fake: Fake, model: Path) -> None:
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference")
    push_runtime(registry)
    assert fake.tokens == ["service=fake&scope=repository%3Ateam%2Finference%3Apull%2Cpush"]
    fake.failures = 2
    fake.tokens.append("the first token is not valid any more")
    digest = registry.publish(model, {})
    assert registry.find("abc123") == digest


def test_corruption_is_noticed(fake: Fake, model: Path, tmp_path: Path) -> None:
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference")
    push_runtime(registry)
    digest = registry.publish(model, {})
    layer = registry._manifest(digest)["layers"][-1]["digest"]
    fake.content[f"blobs/{layer}"] = b"rot"
    with pytest.raises(ImageError, match="it is corrupted"):
        registry.model_folder(digest, tmp_path / "extracted")


def test_what_is_wrong_with_the_access_is_said(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "{}")
    with pytest.raises(ImageError, match=r"gives no token for .*team/inference: 401"):
        registry.find("abc123")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "{")
    with pytest.raises(ImageError, match="is no JSON"):
        registry.find("abc123")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "absent"}))
    with pytest.raises(ImageError, match="docker-credential-absent"):
        registry.find("abc123")
    with pytest.raises(ImageError, match=r"HOST\[:PORT\]/PATH is expected"):
        Registry(repository="inference").find("abc123")


def test_a_credential_helper_is_asked(fake: Fake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-fake"
    helper.write_text("""#!/bin/sh\necho '{"Username": "someone", "Secret": "secret"}'\n""")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"credsStore": "fake"}))
    registry = Registry(repository=f"127.0.0.1:{fake.server_port}/team/inference")
    push_runtime(registry)
    assert registry.find(json.loads((model / "model.json").read_text())["version"]) is None
