"""One Spark session for all tests of this folder."""

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from mlops_assets.resources.spark import LocalSpark


@pytest.fixture(scope="package")
def spark() -> Iterator[SparkSession]:
    with LocalSpark(memory="1g").cluster() as session:
        yield session
