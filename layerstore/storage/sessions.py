"""Sessions: who is alive, and how old the oldest thing is that it relies on (rules 3, 7, 9).

Every handle has one file `sessions/ID`, locked as long as the handle lives. It holds E twice (u64,
little endian): the commit sequence that the handle's oldest running operation started from, or
`IDLE`. E is written *before* the operation opens a snapshot, and withdrawn at its end; a collector
deletes only what was condemned at or before the least E of all live sessions. Liveness is the lock,
which dies with its process; no clock is asked.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
from collections.abc import Iterator

from .disk import Disk
from .locks import FileLock

IDLE = (1 << 64) - 1
_EPOCH = struct.Struct("<QQ")


class Session:
    """The session of one handle."""

    def __init__(self, directory: str, disk: Disk) -> None:
        self._disk = disk
        self._mutex = threading.Lock()
        self._running: dict[int, int] = {}
        self._next = 0
        while True:
            self.id = secrets.token_hex(8)
            self._lock = FileLock(os.path.join(directory, self.id))
            if not os.path.exists(self._lock.path) and self._lock.try_acquire():
                break
        try:
            self._publish(IDLE)
        except BaseException:
            self.close()
            raise

    def _publish(self, epoch: int) -> None:
        self._disk.note(self._lock.fd, _EPOCH.pack(epoch, epoch), self._lock.path)

    def _oldest(self) -> int:
        return min(self._running.values(), default=IDLE)

    def begin(self, sequence: int) -> int:
        """Publishes that an operation relies on `sequence`; returns its handle."""
        with self._mutex:
            token = self._next
            self._next += 1
            before = self._oldest()
            self._running[token] = sequence
            if sequence < before:
                try:
                    self._publish(sequence)
                except BaseException:
                    del self._running[token]
                    raise
            return token

    def renew(self, token: int, sequence: int) -> None:
        """Moves an operation's epoch up to a snapshot in which it saw what it needs still live."""
        with self._mutex:
            before = self._oldest()
            self._running[token] = max(self._running[token], sequence)
            after = self._oldest()
            if after != before:
                self._publish(after)

    def epoch(self, token: int) -> int:
        """The sequence that an operation has published."""
        with self._mutex:
            return self._running[token]

    def end(self, token: int) -> None:
        """Withdraws an operation's epoch."""
        with self._mutex:
            before = self._oldest()
            self._running.pop(token, None)
            after = self._oldest()
            if after != before and self._lock.fd >= 0:
                self._publish(after)

    def close(self) -> None:
        """Ends the session. Its rows are the caller's to delete before."""
        if self._lock.fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(self._lock.path)
        self._lock.release()


def read_epoch(path: str) -> int:
    """E of a session file. A torn pair is read again; a file being made counts as idle."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return IDLE
        try:
            data = os.pread(fd, _EPOCH.size, 0)
        finally:
            os.close(fd)
        if len(data) < _EPOCH.size:
            return IDLE
        first, second = _EPOCH.unpack(data)
        if first == second:
            return int(first)


def live(directory: str) -> tuple[dict[str, int], list[str]]:
    """`(epochs of the live sessions, ids of the dead)`. Dead ones are not removed."""
    alive: dict[str, int] = {}
    dead: list[str] = []
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        lock = FileLock(path)
        if lock.try_acquire(create=False):
            lock.release()
            dead.append(name)
        elif os.path.exists(path):
            alive[name] = read_epoch(path)
    return alive, dead


@contextlib.contextmanager
def bury(directory: str, name: str, disk: Disk) -> Iterator[bool]:
    """Holds a dead session's lock while its rows are deleted, then unlinks its file.

    Gives False, and does nothing, if it is not dead after all."""
    lock = FileLock(os.path.join(directory, name))
    if not lock.try_acquire(create=False):
        yield False
        return
    try:
        yield True
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(lock.path)
    finally:
        lock.release()
