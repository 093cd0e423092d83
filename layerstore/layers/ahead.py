"""A stream that is read some buffers ahead, by a thread of its own.

Who takes a stream in has enough to do with what came: reading files beside that is a core's work.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

SIZE = 1 << 20
BUFFERS = 4


class Stream(Protocol):
    """What is read: `readinto` gives how much came, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int: ...


class Ahead:
    """A reader of a stream, which nobody else may use meanwhile. Use as a context manager: at its end
    nothing reads any more."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layerstore-read")
        self._coming: deque[tuple[Future[int], memoryview]] = deque()
        self._piece = memoryview(b"")
        self._buffer: memoryview | None = None
        self._over = False

    def __enter__(self) -> Ahead:
        for _ in range(BUFFERS):
            self._ask(memoryview(bytearray(SIZE)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, buffer: memoryview) -> None:
        self._coming.append((self._pool.submit(self._read, buffer), buffer))

    def _read(self, buffer: memoryview) -> int:
        """In the thread. After the end, or a failure, the stream is let alone."""
        if self._over:
            return 0
        n = 0
        try:
            n = self._stream.readinto(buffer)
        finally:
            self._over = not n
        return n

    def readinto(self, buffer: memoryview, /) -> int:
        """What has come, as much as fits; 0 at the end. Raises what reading raised."""
        if not len(self._piece):
            if self._buffer is not None:
                self._ask(self._buffer)
                self._buffer = None
            if not self._coming:
                return 0
            future, self._buffer = self._coming.popleft()
            self._piece = self._buffer[: future.result()]
        n = min(len(buffer), len(self._piece))
        buffer[:n] = self._piece[:n]
        self._piece = self._piece[n:]
        return n
