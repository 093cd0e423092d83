"""Content that earlier checkouts have on the target's filesystem, layer by layer.

A file is known by its layer and entry; that it is still what the entry says, its inode, size, mtime and
ctime tell (csrc/apply_clone.c, which looks before and after it takes the content). The records are
`storage/seeds.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..core.apply import CLONE_NONE, SEED, clone_way
from ..errors import CorruptError
from ..storage import seeds as rows
from ..storage.storage import Storage

SMALLEST = 1
"""Bytes. A file of 1 KiB takes longer to clone than to write; but who clones them all need not decode
the blocks that hold them: an image of 20,000 files (btrfs) in 1.1 s, with a limit of 2 KiB in 1.8 s."""
BATCH = 65536
PATIENCE = 50
"""Milliseconds: more than a tick of the slowest kernel's clock (10 ms), which stamps files."""


class Source(NamedTuple):
    """Where files of a layer are: the descriptor of an earlier checkout's directory, and its files."""

    fd: int
    seeds: memoryview


class Seeds:
    """The earlier checkouts that can be of use below one directory, for some layers (digests of their
    tars)."""

    def __init__(self, storage: Storage, fd: int, layers: Sequence[str], *, used: bool) -> None:
        self._storage = storage
        self._fd = fd
        self._layers = layers
        self._sources: dict[str, Source] = {}
        self._open = contextlib.ExitStack()
        self.way = clone_way(fd) if used else CLONE_NONE
        if self.way != CLONE_NONE:
            try:
                self._find()
            except CorruptError:
                # A record is a short cut: `check` names a damaged index, and this goes the long way.
                self._sources.clear()

    def _find(self) -> None:
        device = os.fstat(self._fd).st_dev
        wanted = set(self._layers)
        with self._storage.index.read() as snapshot:
            for record in rows.records(snapshot):
                if record.dev != device or not wanted.intersection(d for d, _ in record.layers):
                    continue
                fd = self._root(record)
                if fd is None:
                    continue
                files, at = memoryview(rows.files_of(snapshot, record)), 0
                for digest, count in record.layers:
                    end = at + count * SEED
                    if digest in wanted and count:
                        self._sources[digest] = Source(fd, files[at:end])
                        wanted.discard(digest)
                    at = end

    def _root(self, record: rows.Record) -> int | None:
        if not record.is_there():
            return None
        try:
            fd = os.open(record.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        self._open.callback(os.close, fd)
        found = os.fstat(fd)
        return fd if (found.st_dev, found.st_ino) == (record.dev, record.ino) else None

    def of(self, layer: int) -> Source | None:
        """What there is of a layer."""
        return self._sources.get(self._layers[layer])

    def keep(
        self,
        path: str,
        files: Sequence[tuple[int, array[int]]],
        look: Callable[[array[int], int, int], bytes],
        *,
        synced: bool,
    ) -> None:
        """Remembers what was written: nodes layer by layer, each as `look(nodes, smallest, before)`
        finds it. `path`: where the directory is to be found later; `synced`: it counts for nothing
        until it is."""
        if self.way == CLONE_NONE or self._storage.readonly:
            return
        try:
            before = self._settled()
        except OSError:
            return
        tables: list[tuple[str, bytes]] = []
        room = rows.RECORD_MAX
        for layer, nodes in files:
            table = b""
            for at in range(0, min(len(nodes), room // SEED), BATCH):
                table += look(nodes[at : at + BATCH], SMALLEST, before)
            table = table[: room // SEED * SEED]
            room -= len(table)
            if table:
                tables.append((self._layers[layer], table))
        if not tables:
            return
        found = os.fstat(self._fd)
        record = rows.Record(
            0,
            os.path.realpath(path),
            found.st_dev,
            found.st_ino,
            "" if synced else rows.this_boot(),
            tuple((digest, len(table) // SEED) for digest, table in tables),
        )
        rows.keep(self._storage, record, b"".join(table for _, table in tables))

    def _settled(self) -> int:
        """A time of the filesystem's own clock that is after all that was written, and not after
        anything that anybody will write: whoever changes a file from now on, changes its ctime."""
        first = now = self._stamp()
        for _ in range(PATIENCE):
            if now > first:
                break
            time.sleep(0.001)
            now = self._stamp()
        return now

    def _stamp(self) -> int:
        os.fchmod(self._fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
        return os.fstat(self._fd).st_ctime_ns

    def close(self) -> None:
        """Closes the earlier directories."""
        self._open.close()
