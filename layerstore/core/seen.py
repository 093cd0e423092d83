"""The typed face of what was read before: files known by their metadata, trees by a fingerprint."""

from __future__ import annotations

from typing import Any

from ._layerstore import ffi, lib
from .tar import raw_new
from .walk import Batch

RECORD: int = ffi.sizeof("ls_seen")
"""Bytes of one file in a table."""


class Collector:
    """The files of batches that were written, as a table. `before`: only what changed before that
    time (nanoseconds since the epoch) can be told from a later change."""

    def __init__(self, before: int) -> None:
        self._before = divmod(before, 10**9)
        self._pieces: list[bytes] = []
        self._racy = ffi.new("int *")

    def add(self, batch: Batch) -> None:
        out = raw_new("ls_seen[]", max(1, batch.n))
        n = lib.ls_seen_collect(batch.nodes, batch.n, *self._before, out, self._racy)
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


def mark(batch: Batch, table: bytes) -> int:
    """Marks nodes that are in a table GIVEN, with where their bytes lie; returns how many."""
    if not table:
        return 0
    held = ffi.from_buffer("ls_seen[]", table)
    return int(lib.ls_seen_mark(batch.nodes, batch.n, held, len(table) // RECORD))


class Fingerprint:
    """A hash over all that nodes say, inodes and times of change among it."""

    def __init__(self) -> None:
        self._state = raw_new("char[]", lib.ls_blake3_sizeof())
        self._hash: Any = ffi.cast("ls_blake3 *", self._state)
        lib.ls_blake3_init(self._hash, lib.LS_SIMD_AUTO, ffi.NULL)

    def add(self, batch: Batch) -> None:
        """A batch as the walk gave it, before anybody marked its nodes."""
        lib.ls_nodes_hash(batch.nodes, batch.n, batch.arena, self._hash)

    def digest(self) -> bytes:
        out = ffi.new("uint8_t[32]")
        lib.ls_blake3_final(self._hash, out, 32)
        return bytes(ffi.buffer(out, 32))
