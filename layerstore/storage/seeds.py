"""Records of earlier checkouts: which of their files still have the content that they were given.

A checkout into a filesystem that shares blocks between files leaves a record: its directory, and of
each larger file inode, size, mtime and ctime. The next checkout of the same layers there clones these
files instead of writing them, where they are still the same (csrc/apply_clone.c). A record is a mere
short cut: in no journal, dropped when it is too old, too big, or its directory is gone. What was not
synced counts only until the next boot, as a power cut may keep a file's size and times but not its
content.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..digest import to_key
from ..errors import CorruptError
from .index import Snapshot, Table, Write

if TYPE_CHECKING:
    from .storage import Storage

RECORDS = 64
RECORD_MAX = 16 << 20
"""Bytes of one record's files, 40 each: about 400,000."""
ALL_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """An earlier checkout. `layers`: digest of each layer's tar, and how many of its files are known;
    `boot`: see `this_boot`, empty for what is synced."""

    number: int
    path: str
    dev: int
    ino: int
    boot: str
    layers: tuple[tuple[str, int], ...]

    @property
    def files(self) -> int:
        return sum(count for _, count in self.layers)

    def is_there(self) -> bool:
        """Whether its directory is still that one."""
        if self.boot not in ("", this_boot()):
            return False
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.dev, self.ino)


def this_boot() -> str:
    """The kernel's id of this boot."""
    with open("/proc/sys/kernel/random/boot_id") as f:
        return f.read().strip()


def records(snapshot: Snapshot) -> list[Record]:
    """All records, the youngest first."""
    out = []
    for key, value in snapshot.items(Table.SEEDS, b"r"):
        v = json.loads(value)
        layers = tuple((digest, count) for digest, count in v["layers"])
        number = int.from_bytes(key[1:], "big")
        out.append(Record(number, v["path"], v["dev"], v["ino"], v["boot"], layers))
    return out[::-1]


def files_of(snapshot: Snapshot, record: Record) -> bytes:
    """The files of a record, layer after layer. Raises CorruptError."""
    value = snapshot.get(Table.SEEDS, _key(b"t", record.number))
    if value is None:
        raise CorruptError(f"the record of the checkout in {record.path} has no files")
    return value


def keep(storage: Storage, record: Record, files: bytes) -> None:
    """Adds a record (its number does not count); one of the same directory goes, and the oldest where
    there is too much."""
    value = json.dumps(
        {
            "path": record.path,
            "dev": record.dev,
            "ino": record.ino,
            "boot": record.boot,
            "layers": record.layers,
        }
    ).encode()

    def work(tx: Write) -> None:
        number = 1
        left, size = RECORDS - 1, ALL_MAX - len(files)
        each = len(files) // max(1, record.files)
        for one in records(tx):
            number = max(number, one.number + 1)
            if one.path != record.path:
                left -= 1
                size -= one.files * each
            if one.path == record.path or left < 0 or size < 0:
                _drop(tx, one)
        tx.put(Table.SEEDS, _key(b"r", number), value)
        tx.put(Table.SEEDS, _key(b"t", number), files)

    # No commit record: the rows are in no journal.
    storage.index.seed(work)


def prune(storage: Storage) -> int:
    """Drops the records whose directory is gone, or none of whose layers is here any more. Returns how
    many."""

    def dead(snapshot: Snapshot) -> Iterator[Record]:
        for one in records(snapshot):
            if not one.is_there() or not any(_is_here(snapshot, d) for d, _ in one.layers):
                yield one

    def work(tx: Write) -> int:
        return _drop_all(tx, list(dead(tx)))

    with storage.index.read() as snapshot:
        if next(dead(snapshot), None) is None:
            return 0
    return storage.index.seed(work)


def _is_here(snapshot: Snapshot, digest: str) -> bool:
    key = to_key(digest)
    if snapshot.get(Table.DIGESTS, key) is not None:
        return True
    return next(iter(snapshot.items(Table.LAYERS, key)), None) is not None


def _drop_all(tx: Write, found: Iterable[Record]) -> int:
    count = 0
    for one in found:
        _drop(tx, one)
        count += 1
    return count


def _drop(tx: Write, one: Record) -> None:
    tx.delete(Table.SEEDS, _key(b"r", one.number))
    tx.delete(Table.SEEDS, _key(b"t", one.number))


def _key(kind: bytes, number: int) -> bytes:
    return kind + struct.pack(">Q", number)
