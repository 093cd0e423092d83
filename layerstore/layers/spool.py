"""A compressed layer's tar, inflated once: kept in a file without a name while a checkout needs it.

The merged tree wants all headers of all layers before the first file is written, and the files want the
content after. What was inflated for the one is read again for the other, by all workers at once. The
file lies on the store's filesystem and is gone with its descriptor, so that no end leaves it behind. It
takes a quarter of what is free there at most; where it cannot be, or ends up too long, the layer is
inflated once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

SHARE = 4
"""One part in so many of what is free: others write there, too."""
PIECE = 1 << 20
_ZEROS = memoryview(bytes(PIECE))


class Spool:
    """The tar of one layer. `whole`: all of it is here."""

    def __init__(self, directory: str) -> None:
        self.whole = False
        self._size = 0
        self._room = 0
        self._fd: int | None = None
        try:
            self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            free = os.fstatvfs(self._fd)
            self._room = int(free.f_bavail * free.f_frsize / SHARE)
        except OSError:
            self.close()  # a store that may not be written, or a filesystem without such files

    def keep(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """The same pieces, each kept before it is given."""
        for piece in pieces:
            self._put(piece)
            yield piece
        if self._fd is not None:
            os.ftruncate(self._fd, self._size)
            self.whole = True

    def _put(self, piece: bytes | memoryview) -> None:
        if self._fd is None:
            return
        size = len(piece)
        try:
            if piece != _ZEROS[:size]:  # zeros stay a hole
                self._room -= size
                if self._room < 0:
                    self.close()
                    return
                rest = memoryview(piece)
                while rest:
                    n = os.pwrite(self._fd, rest, self._size + size - len(rest))
                    rest = rest[n:]
            self._size += size
        except OSError:
            self.close()

    def between(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The bytes from `start` to `end`, as far as there are any: pieces as `Chunks.slices` has
        them. Any thread may read."""
        if self._fd is None:
            return
        while start < end:
            piece = os.pread(self._fd, min(PIECE, end - start), start)
            if not piece:
                return
            yield piece, 0, len(piece)
            start += len(piece)

    def close(self) -> None:
        """Gives the space back."""
        self.whole = False
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
