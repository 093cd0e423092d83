"""The typed face of what was read before: files known by their metadata, trees by a fingerprint."""

from __future__ import annotations

import mmap
import struct
import threading
from typing import Any

from ._layerstore import ffi, lib
from .hashing import blake3
from .walk import Batch, Node

_MASK = (1 << 64) - 1

RECORD: int = ffi.sizeof("ls_seen")
"""Bytes of one file in a table."""
_FIRST = 1 << 20


class Table:
    """Records of files, in memory that grows in place and goes back to the system when it is closed."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _FIRST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._used = 0

    def __len__(self) -> int:
        """Bytes that are taken."""
        return self._used

    def room(self, size: int) -> None:
        """Sees that `size` more bytes have room."""
        need = self._used + size
        if need > len(self._map):
            self._map.resize(-(-max(need, 2 * len(self._map)) // _FIRST) * _FIRST)

    def extend(self, part: bytes) -> None:
        """A part of a table that was kept."""
        self.room(len(part))
        self._map[self._used : self._used + len(part)] = part
        self._used += len(part)

    def take(self, size: int) -> None:
        """So many bytes of the room are records now."""
        self._used += size

    def at(self) -> Any:
        """The records, for C; good until there is more room."""
        return ffi.from_buffer("ls_seen[]", self._map)

    def find(self, name: bytes) -> int | None:
        """The number that goes with the 16 bytes of a record's hash, in a sorted table."""
        want = struct.unpack("<QQ", name)
        low, high = 0, self._used // RECORD
        while low < high:
            middle = (low + high) // 2
            first, second, value = struct.unpack_from("<QQQ", self._map, middle * RECORD)
            if (first, second) == want:
                return int(value)
            if (first, second) < want:
                low = middle + 1
            else:
                high = middle
        return None

    def part(self, start: int, end: int) -> bytes:
        """Bytes of the table, as they are kept."""
        return self._map[start : min(end, self._used)]

    def close(self) -> None:
        self._map.close()


class Collector:
    """The files of batches that were written, as a table. `before`: only what changed before that
    time (nanoseconds since the epoch) can be told from a later change. `key`: 32 bytes that others do
    not know."""

    def __init__(self, before: int, key: bytes) -> None:
        self._key = key
        self._before = divmod(before, 10**9)
        self._table = Table()
        self._racy = ffi.new("int *")

    def add(self, batch: Batch) -> None:
        table = self._table
        table.room(batch.n * RECORD)
        with table.at() as records:
            out = records + len(table) // RECORD
            n = lib.ls_seen_collect(batch.nodes, batch.n, *self._before, self._key, out, self._racy)
        table.take(n * RECORD)

    def add_pair(self, old: Node, new: Node, value: int) -> None:
        """What came of reading two files, if neither changed too late to tell."""
        if all(_changed(node) < self._before for node in (old, new)):
            self._table.extend(pair(old, new, self._key) + struct.pack("<Q", value))

    @property
    def racy(self) -> bool:
        """Whether something changed so late that a change after it could not be told apart."""
        return bool(self._racy[0])

    def table(self) -> Table:
        """Sorted for `mark`. The collector is done; who asks closes the table."""
        with self._table.at() as records:
            lib.ls_seen_sort(records, len(self._table) // RECORD)
        return self._table


def _changed(node: Node) -> tuple[int, int]:
    """When a file changed; later where the filesystem keeps whole seconds, as in csrc/seen.c."""
    return node.ctime_sec + (0 if node.ctime_nsec else 2), node.ctime_nsec


def pair(old: Node, new: Node, key: bytes) -> bytes:
    """16 bytes that say which two files these are, as they are now."""
    said = b"".join(
        struct.pack(
            "<IIQQqIqI",
            *(node.dev_major, node.dev_minor, node.ino, node.size),
            *(node.mtime_sec, node.mtime_nsec, node.ctime_sec, node.ctime_nsec),
        )
        for node in (old, new)
    )
    return blake3(said, key=key)[:16]


def mark(batch: Batch, table: Table, key: bytes) -> int:
    """Marks nodes that are in a table GIVEN, with where their bytes lie; returns how many."""
    with table.at() as records:
        return int(lib.ls_seen_mark(batch.nodes, batch.n, key, records, len(table) // RECORD))


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
