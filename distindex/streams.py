"""Streams over files in object storage: read by ranges, written by parts, with errors that name the file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO

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

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size)
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        view[: len(data)] = data
        self._position = stop
        return len(data)

    def readall(self) -> bytes:
        start, self._position = self._position, max(self._position, self._size)
        return self._fetch(start, self._size) if start < self._size else b""


def open_ranges(size: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """A file of `size` bytes as a seekable stream that reads ahead.

    Args:
        size: bytes of the file.
        fetch: the bytes from a position up to, not including, another; all of them, or an error.
    """
    return io.BufferedReader(_Ranges(size, fetch), READ_AHEAD_BYTES)


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
