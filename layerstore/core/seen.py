"""The typed face of what was read before: files known by their metadata, trees by a fingerprint."""

from __future__ import annotations

import struct
import threading

from ._layerstore import ffi, lib
from .tar import raw_new
from .walk import Batch

_MASK = (1 << 64) - 1

RECORD: int = ffi.sizeof("ls_seen")
"""Bytes of one file in a table."""


class Collector:
    """The files of batches that were written, as a table. `before`: only what changed before that
    time (nanoseconds since the epoch) can be told from a later change. `key`: 32 bytes that others do
    not know."""

    def __init__(self, before: int, key: bytes) -> None:
        self._key = key
        self._before = divmod(before, 10**9)
        self._pieces: list[bytes] = []
        self._racy = ffi.new("int *")

    def add(self, batch: Batch) -> None:
        out = raw_new("ls_seen[]", max(1, batch.n))
        n = lib.ls_seen_collect(batch.nodes, batch.n, *self._before, self._key, out, self._racy)
        self._pieces.append(bytes(ffi.buffer(out, n * RECORD)))

    @property
    def racy(self) -> bool:
        """Whether something changed so late that a change after it could not be told apart."""
        return bool(self._racy[0])

    def table(self) -> bytearray:
        """Sorted for `mark`. Empties the collector."""
        size = sum(map(len, self._pieces))
        out = bytearray(size)
        at = 0
        for i, piece in enumerate(self._pieces):
            out[at : at + len(piece)] = piece
            at += len(piece)
            self._pieces[i] = b""
        self._pieces.clear()
        if out:
            lib.ls_seen_sort(ffi.from_buffer("ls_seen[]", out), size // RECORD)
        return out


def mark(batch: Batch, table: bytes | bytearray, key: bytes) -> int:
    """Marks nodes that are in a table GIVEN, with where their bytes lie; returns how many."""
    if not table:
        return 0
    with ffi.from_buffer("ls_seen[]", table) as held:
        return int(lib.ls_seen_mark(batch.nodes, batch.n, key, held, len(table) // RECORD))


class Fingerprint:
    """A keyed hash over all that stat says of the files of a tree, inodes and times of change among it.
    A sum, so that parts of the tree may come in any order; several threads may add."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._sum = [0, 0, 0, 0]

    def add(self, batch: Batch, *, root: bool = True) -> None:
        """A batch. Without `root`, the directory that was walked is passed over: who walked its parent
        has it."""
        out = ffi.new("uint64_t[4]")
        lib.ls_nodes_sum(batch.nodes, batch.n, batch.arena, root, self._key, out)
        with self._lock:
            self._sum = [(a + b) & _MASK for a, b in zip(self._sum, out, strict=True)]

    def digest(self) -> bytes:
        return struct.pack("<4Q", *self._sum)
