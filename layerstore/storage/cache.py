"""A builder's step cache: rows from the hash of a key to a blob, an image's manifest or a layer.

An entry is a root for gc until it is removed, or pruned to keep within a limit (`prune`). `used` orders
entries by their last use: a counter, no clock, so that setting the clock makes nothing old. A use is
recorded at most once in RECORD seconds by each handle, so that a crash loses no more than that.

What `get` gave is a promise (rule 7): its hold is committed before it returns. The first `get` of an
entry by a handle is therefore a commit, which records the use as well; further ones write nothing until
RECORD seconds have passed. An entry whose blob, or anything that it needs, is known to be damaged is a
miss (rule 18).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.hashing import blake3
from ..values import CacheEntry, Descriptor
from . import graph
from .index import Snapshot, Table, Write
from .operation import Operation, is_damaged, visible
from .rows import dump, serial_key

if TYPE_CHECKING:
    from .storage import Storage

NEXT_USE = b"next_use"
RECORD = 60.0


@dataclass(frozen=True, slots=True)
class CacheRow:
    """An entry: what it names, the number of its last use, and when that was (for people only)."""

    digest: str
    size: int
    media_type: str
    used: int
    time: float

    def to_bytes(self) -> bytes:
        return dump(
            {
                "digest": self.digest,
                "size": self.size,
                "type": self.media_type,
                "used": self.used,
                "time": self.time,
            }
        )

    @staticmethod
    def parse(data: bytes) -> CacheRow:
        v = json.loads(data)
        return CacheRow(v["digest"], v["size"], v["type"], v["used"], v["time"])

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.digest, self.size, self.media_type)


def row_key(key: bytes | str) -> bytes:
    """A key of any length as the key of a row."""
    return blake3(key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key)


def find(snapshot: Snapshot, row: bytes) -> CacheRow | None:
    value = snapshot.get(Table.CACHE, row)
    return None if value is None else CacheRow.parse(value)


def entries(snapshot: Snapshot) -> Iterator[tuple[bytes, CacheRow]]:
    """Every entry, in the order of row keys."""
    for key, value in snapshot.items(Table.CACHE):
        yield key, CacheRow.parse(value)


def get(op: Operation, key: bytes | str) -> Descriptor | None:
    """What an entry names, held by the session; None if there is none that is whole."""
    storage, at = op.storage, row_key(key)
    with storage.index.read() as snapshot:
        row = find(snapshot, at)
        serial = None if row is None else _whole(op, snapshot, row)
        if row is None or serial is None:
            return None
        held = storage.readonly or storage.is_held(snapshot, serial)
    if held and (storage.readonly or _recorded(storage, at)):
        return row.descriptor

    def work(tx: Write) -> CacheRow | None:
        # Looked at again: it may have been removed, or put anew.
        now = find(tx, at)
        found = None if now is None else _whole(op, tx, now)
        if now is None or found is None:
            return None
        op.hold_in(tx, (found,))
        _use(tx, at, now)
        return now

    now = storage.index.update(work)
    if now is None:
        return None
    storage.cache_uses[at] = time.monotonic()
    return now.descriptor


def put(op: Operation, key: bytes | str, digest: str, media_type: str | None) -> Descriptor:
    """Names a stored blob, durably, in place of what the key named before. `media_type` None: what
    the blob is known as. Raises NotFoundError if there is no such blob, or it is damaged."""
    storage, at = op.storage, row_key(key)

    def work(tx: Write) -> CacheRow:
        serial, blob = op.known(tx, digest)
        op.hold_in(tx, (serial,))
        row = CacheRow(digest, blob.size, media_type or blob.media_type, 0, 0.0)
        return _use(tx, at, row)

    row = op.storage.index.update(work)
    storage.cache_uses[at] = time.monotonic()
    return row.descriptor


def remove(storage: Storage, key: bytes | str) -> bool:
    """False if there was no such entry."""
    at = row_key(key)
    storage.cache_uses.pop(at, None)
    return storage.index.update(lambda tx: tx.delete(Table.CACHE, at))


def listing(storage: Storage) -> list[CacheEntry]:
    """All entries, least recently used first."""
    with storage.index.read() as snapshot:
        rows = sorted(entries(snapshot), key=lambda item: item[1].used)
    return [CacheEntry(key.hex(), r.digest, r.size, r.media_type, r.time) for key, r in rows]


def _use(tx: Write, at: bytes, row: CacheRow) -> CacheRow:
    made = replace(row, used=tx.draw(NEXT_USE), time=round(time.time(), 3))
    tx.put(Table.CACHE, at, made.to_bytes())
    return made


def _recorded(storage: Storage, at: bytes) -> bool:
    last = storage.cache_uses.get(at)
    return last is not None and time.monotonic() - last < RECORD


def _whole(op: Operation, snapshot: Snapshot, row: CacheRow) -> int | None:
    """The serial of what an entry names, if that and all that it needs is whole."""
    found = visible(op.storage, snapshot, row.digest)
    if found is None:
        return None
    if any(is_damaged(snapshot, serial) for serial in graph.closure(snapshot, (found[0],))):
        return None
    return found[0]


def drop_unusable(tx: Write, damaged: set[int]) -> int:
    """Removes entries that name something that is not there, or that needs one of these blobs; for
    who makes the index anew. Returns how many."""
    gone = []
    for key, row in entries(tx):
        serial = graph.serial_of(tx, row.digest)
        if (
            serial is None
            or tx.get(Table.BLOBS, serial_key(serial)) is None
            or graph.closure(tx, (serial,)) & damaged
        ):
            gone.append(key)
    for key in gone:
        tx.delete(Table.CACHE, key)
    return len(gone)
