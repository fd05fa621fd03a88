"""Streams over files in object storage: read by ranges, written by parts, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from distindex.retry import explained

# A request costs some 20 ms whatever its size.
READ_AHEAD_BYTES = 8 << 20


class _Ranges(io.RawIOBase):
    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._position = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if stop <= start:
            return b""
        data = self._fetch(start, stop)
        self._position = stop
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def open_ranges(size: int, fetch: Callable[[int, int], bytes], read_ahead: bool) -> BinaryIO:
    """A file of `size` bytes as a seekable stream.

    Args:
        size: bytes of the file.
        fetch: the bytes from a position up to, not including, another; all of them, or an error.
        read_ahead: fetch `READ_AHEAD_BYTES` where fewer are asked for; else each read is one range.
    """
    ranges = _Ranges(size, fetch)
    return io.BufferedReader(ranges, READ_AHEAD_BYTES) if read_ahead else cast(BinaryIO, ranges)


class Upload(io.RawIOBase):
    """A file that is being written to a store. It is there when the stream is closed, and only then.

    Args:
        uri: what errors name.
        stream: the file system's own.
        arrived: whether the whole file, of a given size, is there.
    """

    def __init__(self, uri: str, stream: Any, arrived: Callable[[int], bool]) -> None:
        self._uri, self._stream, self._arrived, self._size = uri, stream, arrived, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self._stream.write(view)
        except Exception as error:
            raise explained(self._uri, error) from error
        self._size += len(view)
        return len(view)

    def finish(self) -> None:
        """Make the file appear.

        Raises:
            DistindexError: it could not be written.
        """
        try:
            self._stream.close()
        except Exception as error:
            # Where the answer to the last request was lost, a repeated one finds the upload gone, and the file there.
            # After any other error a file of this size would be the one that was to be replaced.
            if not (isinstance(error, FileNotFoundError) and self._arrived(self._size)):
                raise explained(self._uri, error) from error

    def abandon(self) -> None:
        """Leave nothing behind; the file does not appear."""
        discard = getattr(self._stream, "discard", None)
        if discard is not None:
            # The error that led here is the one that matters.
            with contextlib.suppress(Exception):
                discard()
        self._stream.closed = True
