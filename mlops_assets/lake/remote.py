"""Objects of another machine as Python's files: read by ranges, and uploaded when they are whole."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Final, cast

READ_AHEAD: Final = 4 << 20
"""Bytes of one ranged read, at least: at 20 ms a request that is 200 MB/s."""

IN_MEMORY: Final = 16 << 20
"""Bytes of a file being written; what is larger waits on the disk."""


def reader(read: Callable[[int, int], bytes], size: int) -> IO[bytes]:
    """A file of `size` bytes; `read(first, last)` gets the bytes from the first to the last, both included."""
    return cast("IO[bytes]", io.BufferedReader(_Ranges(read, size), READ_AHEAD))


def writer(upload: Callable[[IO[bytes]], None]) -> IO[bytes]:
    """A file that is given to `upload` when it is closed, and is dropped if its `with` block fails."""
    return cast("IO[bytes]", _Upload(upload))


class _Ranges(io.RawIOBase):
    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._next(self._size)  # io.RawIOBase would ask for it in small pieces

    def _next(self, most: int) -> bytes:
        last = min(self._position + most, self._size) - 1
        data = self._read(self._position, last) if last >= self._position else b""
        self._position += len(data)
        return data


class _Upload(io.RawIOBase):
    def __init__(self, upload: Callable[[IO[bytes]], None]) -> None:
        self._upload = upload
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed with this object

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return self._file.write(data)

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.seek(0)
                self._upload(cast("IO[bytes]", self._file))
            finally:
                self._discard()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def __del__(self) -> None:
        self._discard()  # io.IOBase would close it, and so upload what nobody finished

    def _discard(self) -> None:
        self._file.close()
        super().close()
