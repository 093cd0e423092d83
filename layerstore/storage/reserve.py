"""The reserve: real disk blocks that are given up when a collector meets a full disk (rule 23).

While the reserve is open, writers are refused, so that what it gave is spent on deleting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import StoreFullError
from .locks import FileLock

if TYPE_CHECKING:
    from .storage import Storage

SIZE = 16 << 20
SMALLEST = 1 << 20
NIBBLE = 64 << 10
"""A small store keeps a smaller reserve: a quarter of its index, between these two."""


def path_of(storage: Storage) -> str:
    return os.path.join(storage.path, "reserve")


def wanted(storage: Storage) -> int:
    """How large the reserve should be: what deleting needs grows with the index."""
    grown = storage.index.used_bytes()
    return min(SIZE, max(SMALLEST, grown // 4))


def ensure(storage: Storage) -> None:
    """Makes the reserve, or makes it again. A disk too full for it is no error here."""
    path = path_of(storage)
    size = wanted(storage)
    with contextlib.suppress(StoreFullError, OSError):
        if os.path.exists(path) and os.stat(path).st_blocks * 512 >= size:
            return
        fd = storage.disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            storage.disk.allocate(fd, size, path)
        except StoreFullError:
            storage.disk.unlink(path)
            raise
        finally:
            os.close(fd)


def nibble(path: str) -> bool:
    """Frees a little of a store's reserve, so that a handle can be opened on a full disk: a session
    needs a block. False if there is none left."""
    name = os.path.join(path, "reserve")
    try:
        size = os.stat(name).st_size
        if not size:
            return False
        os.truncate(name, max(0, size - NIBBLE))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def opened(storage: Storage) -> Iterator[None]:
    """Gives the reserve up while the collector works; writers are refused meanwhile."""
    lock = FileLock(os.path.join(storage.path, "gc", "full"))
    lock.acquire(10.0, "the store's reserve")
    storage.emergency = True
    try:
        with contextlib.suppress(FileNotFoundError):
            storage.disk.unlink(path_of(storage))
        yield
    finally:
        storage.emergency = False
        with contextlib.suppress(FileNotFoundError):
            storage.disk.unlink(lock.path)
        lock.release()


def refuse_writers(storage: Storage) -> None:
    """Raises StoreFullError while a collector works with the reserve open."""
    if storage.emergency:
        return
    path = os.path.join(storage.path, "gc", "full")
    if os.path.exists(path):
        lock = FileLock(path)
        if lock.try_acquire(create=False):
            # Its collector died; nobody works with the reserve.
            lock.release()
            return
        if os.path.exists(path):
            raise StoreFullError(
                "the disk is full and a gc is making room: try again when it is done",
                path=storage.path,
            )
