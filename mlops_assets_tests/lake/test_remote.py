"""Files over ranged reads and whole uploads behave as Python's own."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.lake import remote
from mlops_assets.lake.s3 import S3
from mlops_assets.lake.storage import open_storage

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 40)),
        st.tuples(st.just("seek"), st.integers(0, 120)),
        st.tuples(st.just("back"), st.integers(0, 100)),
    ),
    max_size=12,
)


@given(st.binary(min_size=100, max_size=100), STEPS)
def test_it_reads_like_a_file_and_never_past_its_end(data: bytes, steps: list[tuple[str, int]]) -> None:
    def read(first: int, last: int) -> bytes:
        assert 0 <= first <= last < len(data)
        return data[first : last + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "READ_AHEAD", 16)
        file, expected = remote.reader(read, len(data)), io.BytesIO(data)
    for step, number in steps:
        if step == "read":
            assert file.read(number) == expected.read(number)
        elif step == "seek":
            assert file.seek(number) == expected.seek(number)
        else:
            assert file.seek(-number, io.SEEK_END) == expected.seek(-number, io.SEEK_END)
        assert file.tell() == expected.tell()


def test_only_a_file_that_was_finished_is_uploaded_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "IN_MEMORY", 10)
    uploaded: list[bytes] = []
    with remote.writer(lambda file: uploaded.append(file.read())) as file:
        file.write(b"more than fits ")
        file.write(memoryview(b"in memory"))
    file.close()
    assert uploaded == [b"more than fits in memory"]

    with suppress(ZeroDivisionError), remote.writer(lambda file: uploaded.append(file.read())) as file:
        file.write(b"half a f")
        raise ZeroDivisionError
    remote.writer(lambda file: uploaded.append(file.read())).write(b"never closed")
    assert len(uploaded) == 1


def test_an_upload_that_fails_is_said_and_not_tried_again_when_it_is_dropped() -> None:
    tried: list[object] = []

    def refused(file: object) -> None:
        tried.append(file)
        raise OSError("refused")

    file = remote.writer(refused)
    with pytest.raises(OSError, match="refused"):
        file.close()
    del file
    assert len(tried) == 1


def test_a_root_is_a_folder_or_an_address_of_s3() -> None:
    assert open_storage("s3://bucket") == S3("bucket")
    assert open_storage("s3://bucket/some/prefix/") == S3("bucket", "some/prefix")
    assert open_storage("s3://bucket/some/prefix").uri("key") == "s3://bucket/some/prefix/key"
    for wrong in ("gs://bucket/lake", "s3://", "s3:///lake"):
        with pytest.raises(ValueError, match="must be like s3://bucket/prefix"):
            open_storage(wrong)
