"""One system for all tests of this folder; without a cluster they are skipped, and the reason is shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlops_assets_tests.cluster import spark_rig as spark
from mlops_assets_tests.cluster.rig import Rig, what_is_missing


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if reason := what_is_missing():
        pytest.skip(reason)
    rig = Rig(tmp_path_factory.mktemp("cluster"))
    rig.build_all()
    rig.remove()
    try:
        rig.deploy()
        yield rig
    finally:
        rig.remove()


@pytest.fixture(scope="session")
def spark_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[spark.SparkRig]:
    if reason := spark.what_is_missing():
        pytest.skip(reason)
    rig = spark.SparkRig(tmp_path_factory.mktemp("spark"))
    rig.build_all()
    rig.remove()
    try:
        rig.deploy()
        with rig.entered():
            yield rig
    finally:
        rig.remove()
