"""Trees that this store has read before: nothing is read twice.

For each directory that was diffed the index has two rows (table SEEN, a mere short cut: in no journal,
lost with no harm): a description of the layer that came of it, with a fingerprint over the metadata of
the whole tree; and where in that layer the content of each file lies. The next diff of the directory
walks it first: with the same fingerprint the layer is the same. Else files whose device, inode, size,
mtime and ctime are the same give their bytes from the store.

What changed within a tick of the clock before it was read is trusted by neither (csrc/seen.c). Rows are
sealed, so a damaged one is an error and not another content; a layer that is gone or damaged makes its
rows worthless, not wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable
from typing import Any

from ..core.hashing import blake3
from ..core.seen import RECORD, Collector, Fingerprint, mark, pair
from ..core.seen import Table as Seen
from ..core.walk import INDEXED, METACOPY, REDIRECT, Batch, Looker, Node, Walk
from ..errors import CorruptError, LayerstoreError
from ..storage.index import Table, Write
from ..values import LayerInfo
from .assemble import BlobFile
from .content import Operation

TICK = 50_000_000
"""Nanoseconds: more than a tick of the slowest kernel's clock (10 ms), which stamps files."""
ROWS = 1024
"""Rows before the others are dropped: 512 directories, or fewer large ones."""
PART = RECORD << 15
"""Bytes of a table in one row, at most: a row is copied a few times on its way."""
NAME = 16
"""Bytes of the layer's digest before each part: parts of two diffs are never mixed."""
AT_ONCE = 4
"""Parts in one transaction."""
TABLE_MAX = 256 << 20
"""Bytes of one table, 24 a file: above, nothing is remembered."""
CACHE_BYTES = 8 << 20
"""Of decoded blocks that are kept: content comes in the order in which it went in."""
PARTS, DEPTH = 16, 4
"""A tree is looked at in at least so many parts, found at most so deep."""
SKIP = 16 << 20
"""Bytes that are read over rather than sought past: a seek decodes headers from the start."""
_FORMAT = 3
_BELOW = REDIRECT | METACOPY | INDEXED


class FileCache:
    """What is known of one directory, for one diff. `options`: all else that the layer depends on."""

    def __init__(self, op: Operation, root: int, where: str, options: object) -> None:
        self._op = op
        self._index = op.op.storage.index
        found = os.fstat(root)
        self._key = struct.pack("<QQ", found.st_dev, found.st_ino)
        self._root, self._where = root, where
        self._options = blake3(json.dumps([_FORMAT, options]).encode()).hex()
        self._secret = op.op.storage.secret
        self._pool = op.op.storage.pool
        self._fingerprint = Fingerprint(self._secret)
        self._collector = Collector(time.time_ns() - TICK, self._secret)
        self._alone = True
        self._file: BlobFile | None = None
        self._open = contextlib.ExitStack()
        self._at = 0
        self._row = self._load()
        self._table: Seen | None = None

    def close(self) -> None:
        """Lets go of what was known before."""
        self._forget()
        self._file = None
        self._open.close()

    def _forget(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _load(self) -> dict[str, Any] | None:
        try:
            with self._index.read() as snapshot:
                value = snapshot.get(Table.SEEN, b"r" + self._key)
        except CorruptError:
            return None
        row = None if value is None else json.loads(value)
        # Of an older version: as if there were none.
        return row if row is not None and "parts" in row else None

    # ---- the whole ----------------------------------------------------------------------------

    def same(self) -> LayerInfo | None:
        """The layer that the directory gave before, if nothing of it has changed; held, as a put is."""
        row = self._row
        if row is None or row["options"] != self._options or not row["fingerprint"]:
            return None
        seen = Fingerprint(self._secret)
        self._stat_all(seen)
        if seen.digest().hex() != row["fingerprint"]:
            return None
        info = self._op.have(row["digest"])
        if info is None:
            return None
        return LayerInfo(
            info.digest,
            info.bytes,
            row["media_type"],
            info.digest,
            row["entries"],
            0,
            tuple(row["notes"]),
        )

    def _stat_all(self, seen: Fingerprint) -> None:
        """Adds the whole tree: its upper directories here, what lies below them in the store's threads.
        What the kernel does for a million files is most of the work, and cores share it."""
        wide: list[bytes] = [b""]
        looker = Looker(self._root, self._where)
        for depth in range(DEPTH):
            if len(wide) >= PARTS:
                break
            below: list[bytes] = []
            for path in wide:
                below += self._stat(seen, looker, path, depth == 0, flat=True)
            wide = below
        parts = [self._pool.submit(self._stat, seen, looker, p, False, flat=False) for p in wide]
        for part in parts:
            part.result()

    def _stat(
        self, seen: Fingerprint, looker: Looker, path: bytes, root: bool, *, flat: bool
    ) -> list[bytes]:
        """Adds one directory; with `flat` gives those in it instead of going down."""
        below: list[bytes] = []
        fd = looker.open(path)
        try:
            with Walk(fd, self._where, bare=True, flat=flat) as walk:
                while (batch := walk.next()) is not None:
                    seen.add(batch, root=root)
                    if flat:
                        below += batch.directories()
        finally:
            os.close(fd)
        return [path + b"/" + name if path else name for name in below]

    def walked(self, batch: Batch) -> None:
        """A batch as the walk of the directory gave it."""
        self._fingerprint.add(batch)
        if self._alone and any(flags & _BELOW for flags in batch.flags()):
            self._alone = False

    # ---- file by file -------------------------------------------------------------------------

    def begin(self) -> None:
        """Loads where files lie, if the layer that has them is there."""
        row = self._row
        if row is None or self._op.have(row["digest"]) is None:
            return
        self._table = Seen()
        try:
            with self._index.read() as snapshot:
                for part in range(row["parts"]):
                    kept = snapshot.get(Table.SEEN, self._part(part)) or b""
                    if kept[:NAME] != _name(row["digest"]):
                        # Of another diff of the same directory, at the same time.
                        raise CorruptError("a table of files has parts of another")
                    self._table.extend(kept[NAME:])
            if len(self._table):
                self._open.enter_context(self._op.op.storage.chunks.limited(CACHE_BYTES))
                self._file = self._open.enter_context(self._op.open(row["digest"]))
        except CorruptError:
            self._forget()

    def _part(self, number: int) -> bytes:
        """The key of one part of the table."""
        return b"f" + self._key + struct.pack(">I", number)

    def mark(self, batch: Batch) -> None:
        """Marks the files whose bytes come from the store."""
        if self._file is not None and self._table is not None:
            mark(batch, self._table, self._secret)

    def written(self, batch: Batch) -> None:
        """A batch that is wholly in the tar."""
        self._collector.add(batch)

    def compared(self, old: Node, new: Node) -> bool | None:
        """Whether two files had the same bytes when they were compared, if they are what they were."""
        if self._table is None:
            return None
        found = self._table.find(pair(old, new, self._secret))
        return None if found is None else bool(found)

    def compare(self, old: Node, new: Node, *, same: bool) -> None:
        """Remembers it; the nodes are those from before they were read."""
        self._collector.add_pair(old, new, int(same))

    def read(self, offset: int, view: memoryview) -> None:
        """Fills a view with bytes of the layer that the directory gave before."""
        file = self._file
        if file is None:
            raise LayerstoreError("content was to come from a layer that is not open")
        if not 0 <= offset - self._at <= SKIP:
            file.seek(offset)
            self._at = offset
        scratch = memoryview(bytearray(min(1 << 20, offset - self._at)))
        while self._at < offset:
            self._at += self._some(file, scratch[: offset - self._at])
        done = 0
        while done < len(view):
            done += self._some(file, view[done:])
        self._at += done

    def _some(self, file: BlobFile, view: memoryview) -> int:
        n = file.readinto(view)
        if not n:
            raise CorruptError(
                f"blob {file.digest} ends at {file.tell()}, before content that was found in it",
                digest=file.digest,
            )
        return n

    # ---- the end ------------------------------------------------------------------------------

    def keep(self, info: LayerInfo, *, whole: bool = True) -> None:
        """Remembers what came of this diff. Without `whole`, its files only: the layer depends on more
        than the directory."""
        self.close()
        with contextlib.closing(self._collector.table()) as table:
            if len(table) <= TABLE_MAX:
                self._keep(info, table, whole=whole and self._alone and not self._collector.racy)

    def _keep(self, info: LayerInfo, table: Seen, *, whole: bool) -> None:
        parts = -(-len(table) // PART)
        row: dict[str, Any] = {
            "options": self._options,
            "fingerprint": self._fingerprint.digest().hex() if whole else "",
            "digest": info.digest,
            "media_type": info.media_type,
            "entries": info.entries,
            "notes": list(info.notes),
            "parts": parts,
        }
        value = json.dumps(row).encode()

        def begin(tx: Write) -> None:
            # Until the end nothing is known: parts that are of two diffs would be believed otherwise.
            if tx.count(Table.SEEN) + parts > ROWS:
                for key in [key for key, _ in tx.items(Table.SEEN)]:
                    tx.delete(Table.SEEN, key)
            tx.delete(Table.SEEN, b"r" + self._key)
            for part in range(self._row["parts"] if self._row is not None else 0):
                tx.delete(Table.SEEN, self._part(part))

        def slice_of(first: int) -> Callable[[Write], None]:
            def work(tx: Write) -> None:
                for part in range(first, min(first + AT_ONCE, parts)):
                    data = table.part(part * PART, (part + 1) * PART)
                    tx.put(Table.SEEN, self._part(part), _name(info.digest) + data)

            return work

        # No commit records: the rows are in no journal. In slices, since a transaction holds what it
        # writes in memory.
        self._index.seed(begin)
        for first in range(0, parts, AT_ONCE):
            self._index.seed(slice_of(first))
        self._index.seed(lambda tx: tx.put(Table.SEEN, b"r" + self._key, value))


def _name(digest: str) -> bytes:
    """What the parts of one table begin with."""
    return bytes.fromhex(digest.partition(":")[2])[:NAME]
