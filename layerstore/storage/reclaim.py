"""Space given back: holes for dead blocks, unlinked packs and raw files (rules 10, 13).

Nothing records what is to be freed: whatever of a pack no row of the block table covers is dead once
nobody holds the pack's lock, since a writer holds it until all of its rows are committed. So a crash
between the deletion of rows and the punch loses nothing; the next gc finds the gap. Raw files work
the same way: their writer holds a lock until the row is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from .graph import CHECKED
from .index import Snapshot, Table, Write
from .locks import FileLock
from .packs import HEADER_SIZE
from .placing import all_places
from .rows import PackRow, pack_key, serial_key

if TYPE_CHECKING:
    from .storage import Storage

PAGE = 4096
TOC_TAIL = 36
BATCH = 256
"""Packs locked at a time: bounds descriptors, and a batch costs one walk over the block table."""


def reclaim_raws(storage: Storage) -> int:
    """Unlinks raw files that no row names and nobody writes. Returns the bytes given back."""
    with storage.index.read() as snapshot:
        candidates = [
            s for s in storage.raws.serials() if snapshot.get(Table.RAWS, serial_key(s)) is None
        ]
    return sum(reclaim_raw(storage, serial) for serial in candidates)


def reclaim_raw(storage: Storage, serial: int) -> int:
    """Unlinks one raw file, unless somebody writes it or a row names it. Returns the bytes freed."""
    path = storage.raws.path(serial)
    lock = FileLock(path)
    if not lock.try_acquire(create=False):
        return 0
    try:
        with storage.index.read() as snapshot:
            if snapshot.get(Table.RAWS, serial_key(serial)) is not None:
                return 0
        there = os.fstat(lock.fd)
        # An upload that died at its end has the file as well, and may go on with it.
        freed = there.st_blocks * 512 if there.st_nlink == 1 else 0
        storage.disk.unlink(path)
        return freed
    finally:
        lock.release()


def reclaim_packs(storage: Storage) -> int:
    """Punches dead gaps, truncates tails, unlinks packs without live blocks; returns bytes. Whole files
    go first: on a full disk a hole may need room for the filesystem's own notes."""
    freed = 0
    with storage.index.read() as snapshot:
        used = {place.pack for place in all_places(snapshot)}
    numbers = sorted(storage.packs.numbers(), key=lambda number: (number in used, number))
    for at in range(0, len(numbers), BATCH):
        with contextlib.ExitStack() as held:
            locked: dict[int, FileLock] = {}
            for number in numbers[at : at + BATCH]:
                lock = FileLock(storage.packs.path(number))
                if lock.try_acquire(create=False):
                    held.callback(lock.release)
                    locked[number] = lock
            if locked:
                freed += _reclaim_locked(storage, locked)
    return freed


def leftovers(storage: Storage, snapshot: Snapshot) -> int:
    """Bytes that dead writers left: files that no row names, and what is past committed lengths."""
    total = 0
    for number in storage.packs.numbers():
        value = snapshot.get(Table.PACKS, pack_key(number))
        known = 0 if value is None else PackRow.parse(value).length
        total += _unclaimed(storage.packs.path(number), known)
    for serial in storage.raws.serials():
        if snapshot.get(Table.RAWS, serial_key(serial)) is None:
            total += _unclaimed(storage.raws.path(serial), 0)
    return total


def _unclaimed(path: str, known: int) -> int:
    """What a file holds past `known` bytes and nobody writes."""
    try:
        found = os.stat(path)
        if found.st_size <= known:
            return 0
        lock = FileLock(path)
        if not lock.try_acquire(create=False):
            return 0
        lock.release()
    except FileNotFoundError:
        return 0
    except OSError as e:
        # A file that is not ours to write: nobody here writes it, and it counts.
        if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    return min(found.st_blocks * 512, found.st_size - known)


def _reclaim_locked(storage: Storage, locked: dict[int, FileLock]) -> int:
    """Packs whose locks are held: no row of theirs can appear any more, so what the snapshot shows
    is at most too much."""
    live: dict[int, set[tuple[int, int]]] = {number: set() for number in locked}
    rows: dict[int, PackRow | None] = {}
    with storage.index.read() as snapshot:
        for place in all_places(snapshot):
            if place.pack in live:
                live[place.pack].add((place.offset, place.disk))
        for number in locked:
            value = snapshot.get(Table.PACKS, pack_key(number))
            rows[number] = None if value is None else PackRow.parse(value)
    empty = [n for n in locked if not live[n] and rows[n] is not None]
    if empty:

        def drop(tx: Write) -> None:
            for number in empty:
                tx.delete(Table.PACKS, pack_key(number))
                tx.delete(Table.META, CHECKED + b"p" + pack_key(number))

        storage.index.update(drop)
    freed = 0
    unlinked = False
    for number, lock in locked.items():
        path = storage.packs.path(number)
        allocated = os.fstat(lock.fd).st_blocks * 512
        row = rows[number]
        if row is None or not live[number]:
            storage.packs.forget(number)
            storage.disk.unlink(path)
            unlinked = True
            freed += allocated
    for number, lock in locked.items():
        path = storage.packs.path(number)
        allocated = os.fstat(lock.fd).st_blocks * 512
        row = rows[number]
        if row is None or not live[number]:
            continue
        if os.fstat(lock.fd).st_size > row.length:
            storage.disk.truncate(lock.fd, row.length, path)
        end = row.length
        if row.sealed:
            end = toc_offset(os.pread(lock.fd, TOC_TAIL, row.length - TOC_TAIL), row.length)
        at = HEADER_SIZE
        touched = False
        for offset, length in [*sorted(live[number]), (end, 0)]:
            if offset > at:
                touched |= _punch(storage, lock.fd, at, offset, path)
            at = max(at, offset + length)
        if touched:
            storage.disk.sync(lock.fd, path)
        freed += max(0, allocated - os.fstat(lock.fd).st_blocks * 512)
    if unlinked:
        storage.disk.sync_dir(storage.packs.directory)
    return freed


def toc_offset(tail: bytes, length: int) -> int:
    """Where a sealed pack's table of contents begins, as its last `TOC_TAIL` bytes say; the end of the
    pack where they are damaged."""
    return min(length, int.from_bytes(tail[12:20], "little"))


def _punch(storage: Storage, fd: int, start: int, end: int, path: str) -> bool:
    """Gives back the whole pages inside a dead gap, unless they are a hole already."""
    first = -(-start // PAGE) * PAGE
    last = end // PAGE * PAGE
    if first >= last:
        return False
    try:
        data = os.lseek(fd, first, os.SEEK_DATA)
    except OSError as e:
        if e.errno == errno.ENXIO:
            return False
        raise
    if data >= last:
        return False
    return storage.disk.punch(fd, first, last - first, path)
