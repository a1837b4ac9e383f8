"""What the local broker is made from, without a broker."""

import uuid
from base64 import urlsafe_b64decode

import pytest

from mlops_assets.resources.kafka_settings import cluster_id


def test_a_cluster_id_is_never_taken_for_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xff" * 16))
    assert cluster_id()[0].isalnum()
    assert len(urlsafe_b64decode(cluster_id() + "==")) == 16


def test_cluster_ids_differ() -> None:
    assert cluster_id() != cluster_id()
