"""The Spark session of an application that a cluster runs by itself."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pyspark.sql import SparkSession

from mlops_assets.lake.manifest import Manifest


@contextmanager
def session(name: str, lake: str) -> Iterator[SparkSession]:
    """The session. What the submitter set stays: for a lake on S3 only what it left open is added.

    A SIGTERM, by which clusters end their applications, becomes SystemExit, so that staged files are deleted.
    """
    signal.signal(signal.SIGTERM, _terminate)
    spark = SparkSession.builder.appName(name).getOrCreate()
    try:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        if lake.startswith("s3://"):
            given = spark.sparkContext.getConf()
            for key, value in s3a_settings().items():
                if not given.contains(f"spark.hadoop.{key}"):
                    spark.conf.set(key, value)
        yield spark
    except SystemExit:
        raise  # perhaps in mid-sentence to the JVM, which then understands no other; it ends with this process
    except BaseException:
        spark.stop()
        raise
    spark.stop()


def s3a_settings() -> dict[str, str]:
    """Hadoop's settings for addresses like s3://bucket/key, with the endpoint and the region of the lake's own client.

    Credentials are no part of them: the JVMs find them where the lake's client does.
    """
    from mlops_assets.lake import s3  # boto3 takes a while, and a lake on folders does without it

    meta = s3.client().meta
    found = {
        "fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "fs.s3a.aws.credentials.provider": "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider",
        "fs.s3a.connection.establish.timeout": f"{s3.CONNECT_SECONDS}s",
        "fs.s3a.connection.timeout": f"{s3.READ_SECONDS}s",
        "fs.s3a.attempts.maximum": str(s3.ATTEMPTS),
        "fs.s3a.retry.limit": str(s3.ATTEMPTS),
        "fs.s3a.endpoint.region": str(meta.region_name or "us-east-1"),
    }
    if not meta.endpoint_url.endswith(".amazonaws.com"):
        found |= {"fs.s3a.endpoint": meta.endpoint_url, "fs.s3a.path.style.access": "true"}
    return found


def say(manifest: Manifest) -> None:
    """A line of the driver's log for a day that is there now."""
    sys.stdout.write(
        f"{manifest.dataset} of {manifest.date}: {manifest.rows:,} rows, version {manifest.version[:12]}\n"
    )
    sys.stdout.flush()


def _terminate(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
