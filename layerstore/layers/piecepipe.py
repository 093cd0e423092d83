"""Pieces of a stream from the thread that makes them to the one that uses them: a few at a time.

Either end may go first: a writer is told that nobody reads any more, a reader sees the end. Nobody
waits for ever for who was stopped: both look at one event.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from ..errors import CancelledError

ROOM = 4
"""Pieces of about 1 MiB."""
LOOK = 0.1
"""Seconds between looks at the event."""


class PiecePipe:
    """One stretch of a stream. The writer uses it as a context manager; leaving it is the end."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._pieces: deque[memoryview] = deque()
        self._ended = False
        self._failed = False
        self._unread = False
        self._changed = threading.Condition()

    def __enter__(self) -> PiecePipe:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._changed:
            self._ended, self._failed = True, kind is not None
            self._changed.notify()

    def put(self, piece: memoryview) -> bool:
        """Hands a piece over, waiting for room; False if nobody reads any more. Raises
        CancelledError."""
        with self._changed:
            while len(self._pieces) >= ROOM and not self._unread:
                self._wait()
            self._pieces.append(piece)
            self._changed.notify()
            return not self._unread

    @contextlib.contextmanager
    def reading(self) -> Iterator[Iterator[tuple[memoryview, int, int]]]:
        """The pieces, each with offset and size as `Chunks.slices` has them. Raises CancelledError if
        the stream broke off."""
        try:
            yield self._read()
        finally:
            with self._changed:
                self._unread = True
                self._pieces.clear()
                self._changed.notify()

    def _read(self) -> Iterator[tuple[memoryview, int, int]]:
        while True:
            with self._changed:
                while not self._pieces and not self._ended:
                    self._wait()
                if not self._pieces:
                    if self._failed:
                        raise CancelledError("the checkout was cancelled")
                    return
                piece = self._pieces.popleft()
                self._changed.notify()
            yield piece, 0, len(piece)

    def _wait(self) -> None:
        if self._stop.is_set():
            raise CancelledError("the checkout was cancelled")
        self._changed.wait(LOOK)
