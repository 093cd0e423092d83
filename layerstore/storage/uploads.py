"""Uploads: blobs that arrive piece by piece, over several calls, processes or days.

`uploads/ID` holds what has come; its lock is held while somebody writes. A lease of the same id, on
the boot clock, protects it: each use renews it, and a collector unlinks uploads whose lease is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from ..errors import BusyError, NotFoundError
from . import leases
from .index import Table
from .locks import FileLock
from .raws import PieceHasher, RawWriter

if TYPE_CHECKING:
    from .storage import Storage


TTL = 24 * 3600.0
"""Seconds without use after which an upload may go, if nothing else is said."""


class Upload:
    """One upload, locked by this handle."""

    def __init__(self, storage: Storage, upload_id: str, *, ttl: float | None = None) -> None:
        """A new one with a `ttl`, in seconds without use after which it may go."""
        self._storage = storage
        self.id = upload_id
        self._lock = FileLock(path_of(storage, upload_id))
        if not self._lock.try_acquire(create=ttl is not None):
            if os.path.exists(self._lock.path):
                raise BusyError(f"upload {upload_id} is being written by somebody else")
            raise NotFoundError(f"no upload {upload_id}")
        lease = bytes.fromhex(upload_id)
        if ttl is not None:
            storage.disk.sync_dir(os.path.dirname(self._lock.path))
            storage.index.update(lambda tx: leases.create(tx, lease, ttl))
        elif not storage.index.update(lambda tx: leases.touch(tx, lease)):
            self.close()
            raise NotFoundError(f"upload {upload_id} has expired")
        self.offset = os.fstat(self._lock.fd).st_size

    @property
    def fd(self) -> int:
        return self._lock.fd

    def write(self, data: bytes | memoryview) -> int:
        """Appends; returns how many bytes."""
        self._storage.disk.write_at(self._lock.fd, data, self.offset, self._lock.path)
        self.offset += len(data)
        return len(data)

    def sync(self) -> None:
        """What was written survives a power cut from here on."""
        self._storage.disk.sync(self._lock.fd, self._lock.path)

    def land(self, serial: int, hashes: PieceHasher) -> RawWriter:
        """Its file becomes the raw file `serial`, of all that was written. The upload is over then,
        but for its lease."""
        writer = self._storage.raws.adopt(serial, self._lock, self.offset, hashes)
        self._lock = FileLock(path_of(self._storage, self.id))
        return writer

    def close(self) -> None:
        """Lets it go, to be resumed by its id."""
        self._lock.release()

    def discard(self) -> None:
        """Drops it with all that was written."""
        if self._lock.fd < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            self._storage.disk.unlink(self._lock.path)
        self._lock.release()
        lease = bytes.fromhex(self.id)
        self._storage.index.update(lambda tx: leases.drop(tx, lease))


def is_id(text: str) -> bool:
    """Whether a text is an upload's id: 16 hex digits."""
    return len(text) == 16 and all(c in "0123456789abcdef" for c in text)


def path_of(storage: Storage, upload_id: str) -> str:
    return os.path.join(storage.path, "uploads", upload_id)


def begin(storage: Storage, ttl: float = TTL, limit: int | None = None) -> Upload:
    """A new, empty upload, for `ttl` seconds after its last use. Raises BusyError where `limit` uploads
    are open in the store."""
    folder = os.path.join(storage.path, "uploads")
    storage.disk.mkdir(folder)
    if limit is not None and len(os.listdir(folder)) >= limit:
        reclaim(storage)
        if len(os.listdir(folder)) >= limit:
            raise BusyError(f"{limit} uploads are open, which is as many as may be")
    return Upload(storage, secrets.token_hex(8), ttl=ttl)


def resume(storage: Storage, upload_id: str) -> Upload:
    """One that was begun before. Raises NotFoundError, BusyError."""
    if not is_id(upload_id):
        raise NotFoundError(f"no upload {upload_id!r}")
    return Upload(storage, upload_id)


def reclaim(storage: Storage) -> int:
    """Unlinks uploads whose lease is gone or expired, and that nobody writes; returns the bytes."""
    folder = os.path.join(storage.path, "uploads")
    if not os.path.isdir(folder):
        return 0
    freed = 0
    for name in os.listdir(folder):
        if not is_id(name):
            continue
        lock = FileLock(os.path.join(folder, name))
        if not lock.try_acquire(create=False):
            continue
        try:
            # Locked first, then looked: an upload that begins has its lease before it lets go.
            with storage.index.read() as snapshot:
                lease = snapshot.get(Table.LEASES, bytes.fromhex(name))
                if lease is not None and not leases.expired(lease):
                    continue
            freed += os.fstat(lock.fd).st_blocks * 512
            storage.disk.unlink(lock.path)
        finally:
            lock.release()
    return freed
