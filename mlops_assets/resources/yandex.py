"""Yandex Cloud's API through its SDK: who calls, in what time, and what went wrong."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import grpc
import yandexcloud
from yandex.cloud.dataproc.v1.cluster_service_pb2_grpc import ClusterServiceStub
from yandex.cloud.dataproc.v1.job_service_pb2_grpc import JobServiceStub
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub

from mlops_assets.resources.ephemeral import ClusterError

TIMEOUT_SECONDS: Final = 30
"""Of a call with all its attempts, the ones that get a token or look an address up included."""

ATTEMPTS: Final = 5
"""gRPC's most, on UNAVAILABLE; it waits up to 0.1, 0.2, 0.4, 0.8 s between them."""

KEY_FILE: Final = "YC_SERVICE_ACCOUNT_KEY_FILE"
TOKEN: Final = "YC_IAM_TOKEN"  # noqa: S105 - the variable's name
REMEDIES: Final = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a quota of the cloud: raise it (console, Quotas), or ask for fewer or smaller "
    "nodes (MLOPS_SPARK_NODES, MLOPS_SPARK_NODE_TYPE)",
    grpc.StatusCode.UNAUTHENTICATED: f"check {KEY_FILE} or {TOKEN} (a token lives 12 hours at most)",
    grpc.StatusCode.PERMISSION_DENIED: "the account that creates clusters lacks a role, see docs/clouds.md",
    grpc.StatusCode.UNAVAILABLE: f"no answer; check the network, {KEY_FILE}, {TOKEN}, or that this machine has a "
    "service account",
    grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer within {TIMEOUT_SECONDS} s",
}


LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""No answer, or none in time: asking again later is sensible."""


class YandexError(ClusterError):
    """The API refused, or did not answer. `code` is gRPC's."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


class YandexCloud:
    """The services that Data Proc needs.

    Credentials are a service account's key file, an IAM token in the environment, or those of the machine itself.
    """

    def __init__(self, endpoint: str | None = None, ca_file: str | None = None, key_file: str | None = None) -> None:
        """An `endpoint` is like api.cloud.yandex.net:443; `ca_file` holds the certificates that vouch for it."""
        self._endpoint, self._ca_file, self._key_file = endpoint, ca_file, key_file

    @cached_property
    def clusters(self) -> Any:
        """The service of clusters."""
        return self._client(ClusterServiceStub)

    @cached_property
    def jobs(self) -> Any:
        """The service of jobs."""
        return self._client(JobServiceStub)

    @cached_property
    def operations(self) -> Any:
        """The service of the operations that other services begin."""
        return self._client(OperationServiceStub)

    @contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """Says as YandexError what fails in the block."""
        try:
            yield
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            remedy = REMEDIES.get(code, "")
            text = f"Yandex Cloud, {what}: {code.name}: {error.details()}"
            raise YandexError(f"{text}: {remedy}" if remedy else text, code) from error

    def pages(self, list_page: Callable[..., Any], request: Any, most: int = 100) -> Iterator[Any]:
        """The answers to a request for a list, page by page."""
        for _ in range(most):
            page = list_page(request, timeout=TIMEOUT_SECONDS)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    @cached_property
    def _sdk(self) -> Any:
        return yandexcloud.SDK(
            endpoint=self._endpoint,
            root_certificates=Path(self._ca_file).read_bytes() if self._ca_file else None,
            retry_policy=_Policy(ATTEMPTS, throttling_mode=yandexcloud.ThrottlingMode.PERSISTENT),
            **self._credentials(),
        )

    def _client(self, stub: Any) -> Any:
        with self.calling("looking up its addresses"):
            return self._sdk.client(stub)

    def _credentials(self) -> Mapping[str, Any]:
        if self._key_file:
            try:
                return {"service_account_key": json.loads(Path(self._key_file).read_text())}
            except (OSError, ValueError) as error:  # never its content
                raise ClusterError(f"{KEY_FILE}: {self._key_file} can't be read: {type(error).__name__}") from None
        token = os.environ.get(TOKEN)
        return {"iam_token": token} if token else {}


def once() -> list[tuple[str, str]]:
    """Metadata of a call that must not be carried out twice, though its answer may be lost and it be repeated."""
    return [("idempotency-key", str(uuid.uuid4()))]


class _Policy(yandexcloud.RetryPolicy):
    """The SDK's, and a time limit: the SDK's own calls (addresses, tokens) have none."""

    def to_json(self) -> str:
        policy = json.loads(super().to_json())
        for method in policy["methodConfig"]:
            method["timeout"] = f"{TIMEOUT_SECONDS}s"
        return json.dumps(policy)
