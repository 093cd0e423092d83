"""Uploads: blobs that arrive piece by piece, over several calls, processes or days.

`uploads/ID` holds what has come; its lock is held while somebody writes. A lease of the same id, on
the boot clock, protects it: each use renews it, and a collector unlinks uploads whose lease is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from typing import TYPE_CHECKING

from ..errors import BusyError, NotFoundError
from . import leases, reserve
from .disk import BEHIND, start_writeback
from .index import Table
from .locks import FileLock
from .raws import PieceHasher, RawWriter

if TYPE_CHECKING:
    from .index import Snapshot, Write
    from .storage import Storage


TTL = 24 * 3600.0
"""Seconds without use after which an upload may go, if nothing else is said."""
SPARES = 32
"""Ids and serials that are drawn in one commit: one for each upload costs more than a blob."""
ROOM = 16
"""Uploads that are reclaimed at a time where their number is limited: whoever begins one waits."""


class Spares:
    """What the next uploads of a handle begin and end with, drawn many at a time: ids, whose leases are
    there, and serials of raw files. What a handle that dies leaves of them is a gap (rule 2)."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._mutex = threading.Lock()
        self._ids: dict[float, list[bytes]] = {}
        self._serials: list[int] = []

    def _draw(self, ttl: float | None) -> list[bytes]:
        """Ids, if a ttl is given for their leases, and as many serials as are lacking: an upload that
        comes to nothing takes none."""
        ids = [secrets.token_bytes(8) for _ in range(0 if ttl is None else SPARES)]
        lacking = SPARES - len(self._serials)

        def work(tx: Write) -> int:
            for lease in ids:
                leases.create_upload(tx, lease, ttl or TTL)
            return tx.draw(b"next_raw", lacking) if lacking else 0

        first = self._storage.index.update(work)
        self._serials += range(first, first + lacking)
        return ids

    def upload_id(self, ttl: float) -> str:
        """An id that no upload has had; its lease, of `ttl` seconds, has just begun, or nearly so."""
        with self._mutex:
            ids = self._ids.setdefault(ttl, [])
            while ids:
                lease = ids.pop()
                with self._storage.index.read() as snapshot:
                    value = snapshot.get(Table.LEASES, lease)
                if value is not None and leases.is_fresh(value):
                    return lease.hex()
            ids += self._draw(ttl)
            return ids.pop().hex()

    def raw_serial(self) -> int:
        """A serial that no raw file has had. Raises StoreFullError as a writer does."""
        reserve.refuse_writers(self._storage)
        with self._mutex:
            if not self._serials:
                self._draw(None)
            return self._serials.pop(0)

    def close(self) -> None:
        """Drops the leases that no upload has taken."""
        with self._mutex:
            ids = [lease for some in self._ids.values() for lease in some]
            self._ids.clear()

        def work(tx: Write) -> None:
            for lease in ids:
                leases.drop(tx, lease)

        if ids:
            self._storage.index.update(work)


class Upload:
    """One upload, locked by this handle."""

    def __init__(self, storage: Storage, upload_id: str, *, new: bool = False) -> None:
        self._storage = storage
        self.id = upload_id
        self._landing = False
        self._lock = FileLock(path_of(storage, upload_id))
        if not self._lock.try_acquire(create=new):
            if os.path.exists(self._lock.path):
                raise BusyError(f"upload {upload_id} is being written by somebody else")
            raise NotFoundError(f"no upload {upload_id}")
        lease = bytes.fromhex(upload_id)
        fresh = new
        if not new:
            with storage.index.read() as snapshot:
                value = snapshot.get(Table.LEASES, lease)
            fresh = value is not None and leases.is_fresh(value)
        if not fresh and not storage.index.update(lambda tx: leases.touch(tx, lease)):
            self.close()
            raise NotFoundError(f"upload {upload_id} has expired")
        self.offset = self._behind = os.fstat(self._lock.fd).st_size

    @property
    def fd(self) -> int:
        return self._lock.fd

    def write(self, data: bytes | memoryview) -> int:
        """Appends; returns how many bytes."""
        self._storage.disk.write_at(self._lock.fd, data, self.offset, self._lock.path)
        self.offset += len(data)
        if self.offset - self._behind >= BEHIND:
            start_writeback(self._lock.fd, self._behind, self.offset - self._behind)
            self._behind = self.offset
        return len(data)

    def sync(self) -> None:
        """What was written survives a power cut from here on."""
        self._storage.disk.sync(self._lock.fd, self._lock.path)

    def land(self, serial: int, hashes: PieceHasher) -> RawWriter:
        """Its file becomes the raw file `serial`, of all that was written, and is the writer's to hold.
        Until the commit it is the upload's as well: who dies before goes on with it."""
        writer = self._storage.raws.adopt(serial, self._lock, self.offset, hashes)
        self._lock = FileLock(path_of(self._storage, self.id))
        self._landing = True
        return writer

    def close(self) -> None:
        """Lets it go, to be resumed by its id."""
        self._lock.release()

    def end(self) -> None:
        """Unlinks its file, which may be a raw file under another name. Its lease is the caller's, and
        gone already where the file is not held any more."""
        if self._lock.fd < 0 and not self._landing:
            return
        self._landing = False
        with contextlib.suppress(FileNotFoundError):
            self._storage.disk.unlink(self._lock.path)
        self._lock.release()

    def discard(self) -> None:
        """Drops it with all that was written."""
        if self._landing and not self._lock.try_acquire(create=False):
            return  # somebody has gone on with it, since it did not become a blob
        if self._lock.fd < 0:
            return
        self.end()
        lease = bytes.fromhex(self.id)
        self._storage.index.update(lambda tx: leases.drop(tx, lease))


def is_id(text: str) -> bool:
    """Whether a text is an upload's id: 16 hex digits."""
    return len(text) == 16 and all(c in "0123456789abcdef" for c in text)


def path_of(storage: Storage, upload_id: str) -> str:
    return os.path.join(storage.path, "uploads", upload_id)


def begin(storage: Storage, ttl: float = TTL, limit: int | None = None) -> Upload:
    """A new, empty upload, for `ttl` seconds after its last use. Its file outlives this process; while
    it is empty, no power cut. Raises BusyError where `limit` uploads are open in the store."""
    folder = os.path.join(storage.path, "uploads")
    storage.disk.mkdir(folder)
    if limit is not None and (there := len(os.listdir(folder))) >= limit:
        reclaim(storage, there - limit + ROOM)
        if len(os.listdir(folder)) >= limit:
            raise BusyError(f"{limit} uploads are open, which is as many as may be")
    return Upload(storage, storage.spares.upload_id(ttl), new=True)


def resume(storage: Storage, upload_id: str) -> Upload:
    """One that was begun before. Raises NotFoundError, BusyError."""
    if not is_id(upload_id):
        raise NotFoundError(f"no upload {upload_id!r}")
    return Upload(storage, upload_id)


def size(storage: Storage, upload_id: str) -> int:
    """Bytes that have come of an upload, whoever writes it; nobody is kept from writing meanwhile, and
    it counts as a use. Raises NotFoundError."""
    lease = bytes.fromhex(upload_id)
    try:
        found = os.stat(path_of(storage, upload_id)).st_size
    except FileNotFoundError as e:
        raise NotFoundError(f"no upload {upload_id}") from e
    with storage.index.read() as snapshot:
        value = snapshot.get(Table.LEASES, lease)
    fresh = value is not None and leases.is_fresh(value)
    if not fresh and not storage.index.update(lambda tx: leases.touch(tx, lease)):
        raise NotFoundError(f"upload {upload_id} has expired")
    return found


def _leased(snapshot: Snapshot, upload_id: str) -> bool:
    lease = snapshot.get(Table.LEASES, bytes.fromhex(upload_id))
    return lease is not None and not leases.expired(lease)


def reclaim(storage: Storage, most: int | None = None) -> int:
    """Unlinks uploads whose lease is gone or expired, and that nobody writes, `most` of them; returns
    the bytes."""
    folder = os.path.join(storage.path, "uploads")
    if not os.path.isdir(folder):
        return 0
    names = filter(is_id, os.listdir(folder))
    # Looked before it is locked, too: else whoever goes on with an upload now would find it busy.
    with storage.index.read() as snapshot:
        over = [name for name in names if not _leased(snapshot, name)]
    freed = gone = 0
    for name in over:
        if gone == most:
            break
        lock = FileLock(os.path.join(folder, name))
        if not lock.try_acquire(create=False):
            continue
        try:
            # Locked first, then looked: an upload that begins has its lease before it lets go.
            with storage.index.read() as snapshot:
                if _leased(snapshot, name):
                    continue
            there = os.fstat(lock.fd)
            if there.st_nlink == 1:  # else it is a raw file as well
                freed += there.st_blocks * 512
            with contextlib.suppress(FileNotFoundError):  # its blob has just been committed
                storage.disk.unlink(lock.path)
            gone += 1
        finally:
            lock.release()
    return freed
