"""A layer's tar as it is made: batches of nodes in, bytes out, contents read once and by C.

A *source* gives batches of nodes that are ready for the writer: what to leave out, what is a link to
what, and where contents lie has been decided (overlay.py, trees.py). `LayerTar` is the file from
which the store, or a pipe, reads the tar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ..core.pack import END, IdMap, Packer
from ..core.walk import Batch

if TYPE_CHECKING:
    from .filecache import FileCache

BUFFER = 256 << 10
"""Bytes that go to a pipe at once: they stay in the processor's cache on the way."""


class Source(Protocol):
    """What a tar is made of."""

    def roots(self) -> Sequence[tuple[int, str]]:
        """Directories that nodes lie in: descriptor, and what messages call it."""

    def batches(self) -> Iterator[Batch]:
        """Nodes, in order; a batch is good until the next is asked for."""


class LayerTar:
    """A tar to be read once, by `readinto`. Use as a context manager."""

    def __init__(
        self,
        source: Source,
        *,
        clamp: int | None = None,
        uids: Sequence[IdMap] = (),
        gids: Sequence[IdMap] = (),
        cache: FileCache | None = None,
    ) -> None:
        self._cache = cache
        self._given: tuple[int, int] | None = None
        """Content that comes from the store: where the rest of it lies there, how much it is."""
        self._packer = Packer(source.roots(), clamp=clamp, uids=uids, gids=gids)
        self._batches = source.batches()
        self._batch: Batch | None = None
        self._at = 0
        self._end = 0
        self._over = False
        self.entries = 0
        self.size = 0
        """Bytes of the tar so far."""

    def __enter__(self) -> LayerTar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._packer.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer as far as the tar goes; 0 at its end. Raises what reading files raises."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and not self._over:
            if self._given is not None:
                filled += self._give(view[filled:])
                continue
            if self._batch is None:
                self._batch = next(self._batches, None)
                self._at = 0
                if self._batch is None:
                    filled += self._finish(view[filled:])
                    continue
                if self._cache is not None:
                    self._cache.mark(self._batch)
            packed = self._packer.feed(self._batch, self._at, view[filled:])
            self._at += packed.used
            self.entries = packed.entries
            filled += packed.size
            if packed.given:
                self._given = (self._batch.nodes[self._at].given_offset, packed.given)
            if self._at >= self._batch.n:
                if self._cache is not None:
                    self._cache.written(self._batch)
                self._batch = None
        self.size += filled
        return filled

    def _give(self, view: memoryview) -> int:
        """Content of the file at hand, from the store."""
        if self._given is None or self._cache is None:
            return 0
        offset, left = self._given
        n = min(left, len(view))
        self._cache.read(offset, view[:n])
        self._given = (offset + n, left - n) if left > n else None
        return n

    def _finish(self, view: memoryview) -> int:
        n = min(len(view), END - self._end)
        view[:n] = bytes(n)
        self._end += n
        self._over = self._end == END
        return n
