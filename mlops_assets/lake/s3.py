"""The lake's bytes in a bucket of S3, or of anything that speaks its API.

Endpoint, region and credentials are found as every AWS tool finds them: AWS_ENDPOINT_URL_S3, AWS_REGION,
AWS_ACCESS_KEY_ID and so on, the files in ~/.aws, or the role of the instance or pod. Executors find them likewise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, Final, Self

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mlops_assets.lake.remote import IN_MEMORY, reader, writer
from mlops_assets.lake.storage import Storage

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 30
ATTEMPTS: Final = 6
"""Of each request, on throttling, 5xx and broken connections; botocore waits up to 1, 2, 4, 8, 16 s between them."""

UPLOAD: Final = TransferConfig(multipart_threshold=IN_MEMORY, multipart_chunksize=IN_MEMORY, max_concurrency=4)
COPY: Final = TransferConfig(multipart_threshold=256 << 20, multipart_chunksize=256 << 20)

_MISSING: Final = ("404", "NoSuchKey")
_PRECONDITION: Final = ("412", "PreconditionFailed")
_CONFLICT: Final = ("409", "ConditionalRequestConflict")
_KEYS: Final = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


class StorageError(OSError):
    """S3 refused, or did not answer. The message says what to do."""


@cache
def client() -> Any:
    """This process' S3 client."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    # botocore by itself reads only AWS_DEFAULT_REGION; the other SDKs, Spark's too, read AWS_REGION.
    return boto3.session.Session().client("s3", region_name=os.environ.get("AWS_REGION") or None, config=config)


os.register_at_fork(after_in_child=client.cache_clear)  # a connection is not for two processes


@dataclass(frozen=True)
class S3(Storage):
    """A prefix of a bucket. A tag is an ETag."""

    bucket: str
    prefix: str = ""

    @classmethod
    def of(cls, uri: str) -> Self:
        """The storage at `s3://bucket/prefix`. Raises ValueError for another address."""
        scheme, _, path = uri.partition("://")
        bucket, _, prefix = path.partition("/")
        if scheme != "s3" or not bucket:
            raise ValueError(f"{uri!r} is no address of S3; it must be like s3://bucket/prefix")
        return cls(bucket, prefix.strip("/"))

    def get(self, key: str) -> tuple[bytes, str] | None:
        """See Storage."""
        try:
            return self._read(key)
        except FileNotFoundError:
            return None

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """See Storage."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with self._errors(key):
            for attempt in range(ATTEMPTS):
                try:
                    etag: str = client().put_object(**self._at(key), Body=data, **condition)["ETag"]
                    return etag
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in _CONFLICT and attempt < ATTEMPTS - 1:  # somebody else's request was under way
                        time.sleep(0.1 * 2**attempt)
                    elif code in (*_PRECONDITION, *_CONFLICT, *_MISSING):
                        # It may be our own write that a repeated request found, the answer to the first being lost.
                        repeated = attempt or error.response["ResponseMetadata"].get("RetryAttempts")
                        found = self.get(key) if repeated else None
                        return found[1] if found and found[0] == data else None
                    else:
                        raise
        return None

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        root = self._key("")
        with self._errors(prefix):
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{root}{prefix}/")
            return sorted(item["Key"].removeprefix(root) for page in pages for item in page.get("Contents", ()))

    def move(self, source: str, target: str) -> None:
        """See Storage. Another reader may see both for a moment."""
        with self._errors(source):
            origin = self._at(source)
            client().copy(origin, self.bucket, self._key(target), Config=COPY)
            client().delete_object(**origin)

    def delete(self, keys: Sequence[str]) -> None:
        """See Storage."""
        for start in range(0, len(keys), 1000):  # as many as a request may name
            names = [{"Key": self._key(key)} for key in keys[start : start + 1000]]
            with self._errors(keys[start]):
                answer = client().delete_objects(Bucket=self.bucket, Delete={"Objects": names, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise StorageError(f"s3://{self.bucket}/{error['Key']} can't be deleted: {error['Message']}")

    def open_input(self, key: str) -> IO[bytes]:
        """See Storage. Reading raises StorageError if the object is replaced meanwhile."""
        with self._errors(key):
            head = client().head_object(**self._at(key))

        def read(first: int, last: int) -> bytes:
            return self._read(key, Range=f"bytes={first}-{last}", IfMatch=head["ETag"])[0]

        return reader(read, head["ContentLength"])

    def open_output(self, key: str) -> IO[bytes]:
        """See Storage. The object is uploaded when it is closed, and not at all if its `with` block fails."""

        def upload(file: IO[bytes]) -> None:
            with self._errors(key):
                client().upload_fileobj(file, self.bucket, self._key(key), Config=UPLOAD)

        return writer(upload)

    def uri(self, key: str) -> str:
        """See Storage."""
        return f"s3://{self.bucket}/{self._key(key)}"

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(key)}

    def _read(self, key: str, **request: str) -> tuple[bytes, str]:
        attempts_left = ATTEMPTS
        with self._errors(key):
            while True:
                found = client().get_object(**self._at(key), **request)
                try:
                    return found["Body"].read(), found["ETag"]
                except BotoCoreError:  # botocore repeats requests, but not the reading of an answer that breaks off
                    attempts_left -= 1
                    if not attempts_left:
                        raise

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Says in the lake's terms what boto says in its own. Raises FileNotFoundError and StorageError."""
        where = self.uri(key)
        try:
            yield
        except ClientError as error:
            code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            if code in _MISSING:
                raise FileNotFoundError(f"{where} does not exist") from error
            if code == "NoSuchBucket":
                remedy = "create it, or correct the lake's address (MLOPS_LAKE)"
                raise StorageError(f"there is no bucket {self.bucket} at {_endpoint()}: {remedy}") from error
            if code in _KEYS:
                remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role's policy"
                raise StorageError(f"{where}: {_endpoint()} refuses these credentials ({code}): {remedy}") from error
            if code in _PRECONDITION:
                raise StorageError(f"{where} was replaced while it was read: read it again") from error
            raise StorageError(f"{where}: {_endpoint()} answers {code}: {text}") from error
        except (BotoCoreError, Boto3Error) as error:  # no answer, no credentials, no region
            raise StorageError(f"{where}: {_endpoint()}: {error}") from error


def _endpoint() -> str:
    return str(client().meta.endpoint_url)
