"""How Spark's own readers reach the lake on S3: by s3a, as Hadoop calls its S3 file system."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mlops_assets.resources.programs import ProgramError, jars

HADOOP: Final = "3.5.0"  # as in pyspark
SDK: Final = "2.35.4"  # what that hadoop-aws is built for
BUNDLE: Final = "software.amazon.awssdk:bundle"
"""Every service of AWS in 686 MB; the modules below hold what s3a uses of it."""

MODULES: Final = (
    f"org.apache.hadoop:hadoop-aws:{HADOOP}",
    *(f"software.amazon.awssdk:{name}:{SDK}" for name in ("s3", "s3-transfer-manager", "sts")),
)


def folder() -> Path:
    """The folder of s3a's jars; the first call fetches 19 MB. Raises ProgramError."""
    return jars(f"hadoop-aws-{HADOOP}", MODULES, without=[BUNDLE])


def install(into: str) -> None:
    """Copies the jars to a folder for an image's class path, without those that Spark has in another version.

    Spark's are newer, and a class path with both takes either.
    """
    spark = find_spec("pyspark")
    if spark is None or spark.origin is None:
        raise ProgramError("s3a's jars go beside pyspark's: install the extra `spark`")
    present = {_artifact(jar) for jar in (Path(spark.origin).parent / "jars").glob("*.jar")}
    Path(into).mkdir(parents=True)
    for jar in folder().glob("*.jar"):
        if _artifact(jar) not in present:
            shutil.copy(jar, into)


def settings() -> dict[str, str]:
    """Spark's settings for addresses like s3://bucket/key, and the jars. Raises ProgramError."""
    from mlops_assets.spark.session import s3a_settings  # the image's build calls `folder` without this project

    return {
        "spark.jars": ",".join(str(jar) for jar in sorted(folder().glob("*.jar"))),
        **{f"spark.hadoop.{name}": value for name, value in s3a_settings().items()},
    }


def _artifact(jar: Path) -> str:
    return re.split(r"-\d", jar.name)[0]
