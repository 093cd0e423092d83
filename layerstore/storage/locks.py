"""Locks between processes and threads: flock and OFD locks, never POSIX ones (rule 9).

A POSIX lock is dropped when anything in the process closes any descriptor of the file. An flock
belongs to the open file; so that a forked child does not keep it alive, the child closes the
descriptor in an at-fork hook. A lock is taken first, then the path is checked to be still the same
file, since its holder may unlink it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterator

from ..errors import BusyError

_held: weakref.WeakSet[FileLock | _Byte] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_held):
        lock.drop_descriptor()


os.register_at_fork(after_in_child=_close_in_child)


class FileLock:
    """One flock on one path. Not re-entrant; a handle for each holder."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1

    def drop_descriptor(self) -> None:
        """Closes the descriptor: the lock goes when no other copy of it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def try_acquire(self, *, shared: bool = False, create: bool = True) -> bool:
        """Takes the lock or returns False at once; False too when the file is gone."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        while True:
            try:
                fd = os.open(self.path, flags, 0o600)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as e:
                os.close(fd)
                if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise
            if self._is_path(fd):
                self.fd = fd
                _held.add(self)
                return True
            os.close(fd)

    def _is_path(self, fd: int) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def acquire(self, timeout: float | None, what: str, *, shared: bool = False) -> None:
        """Waits up to `timeout` seconds (None: for ever). Raises BusyError naming `what`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while not self.try_acquire(shared=shared):
            if deadline is not None and time.monotonic() >= deadline:
                raise BusyError(
                    f"{what} is held by another process (waited {timeout:g} s): try again, "
                    "or give more time with --timeout",
                    path=self.path,
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)

    def release(self) -> None:
        """Lets the lock go."""
        self.drop_descriptor()
        _held.discard(self)


class Gate:
    """The writer gate before LMDB's mutex (rule 11), which itself knows no timeout."""

    def __init__(self, path: str, timeout: float | None) -> None:
        self.timeout = timeout
        self._thread = threading.Lock()
        self._lock = FileLock(path)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        wait = -1 if self.timeout is None else self.timeout
        if not self._thread.acquire(timeout=wait):
            raise BusyError(f"another thread writes to the store (waited {self.timeout:g} s)")
        try:
            self._lock.acquire(self.timeout, "the store's writer gate")
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._thread.release()


class _Byte:
    """The descriptor of a lock on a byte, to be closed in a forked child like any other."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def drop_descriptor(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


class ByteLock:
    """An OFD lock on one byte of a file: as many independent locks as there are 62-bit numbers.

    Puts of one digest take turns under it, so that the second finds what the first has stored.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @contextlib.contextmanager
    def __call__(self, number: int, timeout: float | None) -> Iterator[None]:
        held = _Byte(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _held.add(held)
        fd = held.fd
        try:
            start = number & ((1 << 62) - 1)
            request = struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
            deadline = None if timeout is None else time.monotonic() + timeout
            pause = 0.001
            while True:
                try:
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
                    break
                except OSError as e:
                    if e.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                if deadline is not None and time.monotonic() >= deadline:
                    raise BusyError(
                        f"another process puts the same blob (waited {timeout:g} s): try again, "
                        "or give more time with --timeout"
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, 0.05)
            yield
        finally:
            held.drop_descriptor()
            _held.discard(held)
