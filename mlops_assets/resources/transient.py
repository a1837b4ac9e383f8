"""Which failures are a server's and may be gone the next time: never a verdict on a day, a model or an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mlops_assets.lake.manifest import ConflictError
from mlops_assets.resources.mlflow import MLflowUnavailableError

OWN: Final = (ConflictError, MLflowUnavailableError, ConnectionError, TimeoutError)
"""Errors that always are. ConflictError: another job replaced the day meanwhile, so the next attempt meets its work."""

LIBRARIES: Final = frozenset(
    f"{module}.{name}"
    for module, names in {
        "botocore.exceptions": "ConnectionError HTTPClientError IncompleteReadError",
        "requests.exceptions": "ConnectionError Timeout ChunkedEncodingError",
        "urllib3.exceptions": "TimeoutError ProtocolError NewConnectionError MaxRetryError",
        "grpc": "FutureTimeoutError",
    }.items()
    for name in names.split()
)
"""The libraries' errors of a connection, by name: most processes never import those libraries."""

THROTTLED: Final = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown", "RequestTimeout")
"""AWS' codes for "later", which some of its services send with the status 400."""

GRPC: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"})


def is_transient(error: BaseException) -> bool:
    """Whether the error, or what caused it, is of a connection or a server (HTTP 408, 429 and 5xx, and their like)."""
    return any(_is_servers(each) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_servers(error: BaseException) -> bool:
    if isinstance(error, OWN):
        return True
    if any(f"{each.__module__}.{each.__qualname__}" in LIBRARIES for each in type(error).__mro__):
        return True
    if _grpc_code(error) in GRPC:
        return True
    status = _http_status(error)
    return status in (408, 429) or status >= 500


def _http_status(error: BaseException) -> int:
    """The status that the error of an HTTP client carries (boto3, requests, kubernetes, mlflow), or 0."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        if answer.get("Error", {}).get("Code") in THROTTLED:
            return 429
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for holder, name in ((answer, "status_code"), (error, "status")):
        if isinstance(status := getattr(holder, name, None), int):
            return status
    mlflows = getattr(error, "get_http_status_code", None)
    return int(mlflows()) if callable(mlflows) else 0


def _grpc_code(error: BaseException) -> str:
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""
