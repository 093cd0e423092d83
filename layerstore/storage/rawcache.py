"""Copies of blobs that take work to make, as plain files, so that popular ones are served from a file.

A copy is no form of its blob: no row names it, nothing relies on it, it may go at any moment (rule 20).
Readers fill the cache as they read a blob whole; a byte budget bounds it, the hottest stay: each read
of a blob makes it hotter, with time all cool down. Nothing is synced: each copy carries checksums of
its pieces, keyed with the store's secret and the blob's serial (which is never used twice), so what a
crash or a stray write left is found out when it is read, and dropped. `raw-cache/SERIAL` is a copy,
`SERIAL.new` one that is being written, under its lock; FORMAT.md, section 5.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.hashing import blake3
from ..errors import BusyError, CorruptError, LayerstoreError
from .disk import Disk
from .locks import FileLock
from .rows import PIECE, PIECE_HASH

if TYPE_CHECKING:
    from .storage import Storage

FOLDER = "raw-cache"
MAGIC = b"LSCOPY\x01\n"
TRAILER = 8 + 8 + 16
READ = 512 << 10
SAVE_EVERY = 64
"""Reads after which their count is written down."""
COOL_AT = 1024
"""Reads after which all counts are halved."""
COLD = 0.2
LOCK_WAIT = 5.0
"""Seconds that a shrinking waits for its turn: others have the lock for moments only."""
FILL_WAIT = 0.25
"""Seconds that one waits who would fill the cache: far less than making a blob once more takes."""


def file_size(size: int) -> int:
    """Bytes of the copy of a blob."""
    return size + PIECE_HASH * -(-size // PIECE) + TRAILER


class RawCache:
    """The copies of one store, as one handle sees them. Thread-safe."""

    def __init__(self, directory: str, secret: bytes, disk: Disk, budget: int) -> None:
        self.directory = directory
        self.budget = budget
        self._secret = secret
        self._disk = disk
        self._lock = threading.Lock()
        self._heat: dict[str, float] = {}
        self._news: dict[str, float] = {}
        self._reads = 0

    def path(self, serial: int) -> str:
        return os.path.join(self.directory, f"{serial:012x}")

    # ---- reading ------------------------------------------------------------------------------

    def open(self, serial: int, size: int) -> Copy | None:
        """The copy of a blob, if there is a whole one; counts as a read of the blob."""
        if self.budget:
            self._note(f"{serial:012x}")
        path = self.path(serial)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            tail = b""
            if os.fstat(fd).st_size == file_size(size):
                tail = os.pread(fd, file_size(size) - size, size)
            hashes = tail[:-TRAILER]
            if tail and tail[-TRAILER:] == self._trailer(serial, size, hashes):
                return Copy(fd, path, size, hashes)
        except OSError:
            tail = b""
        os.close(fd)
        self.drop(serial)
        return None

    def drop(self, serial: int) -> None:
        """Takes a copy away, as after damage. Who reads it goes on."""
        with contextlib.suppress(OSError):
            self._disk.unlink(self.path(serial))

    def _trailer(self, serial: int, size: int, hashes: bytes) -> bytes:
        fixed = MAGIC + size.to_bytes(8, "little")
        key = b"copy" + serial.to_bytes(8, "little") + fixed + hashes
        return fixed + blake3(key, self._secret)[:16]

    # ---- filling ------------------------------------------------------------------------------

    def begin(self, serial: int, size: int) -> Filler | None:
        """Room for a copy of a blob, which colder ones give up; None if it is to have none."""
        want = file_size(size)
        if want > self.budget or os.path.exists(self.path(serial)):
            return None
        try:
            self._disk.check()
            self._disk.mkdir(self.directory)
            with self._alone(FILL_WAIT) as alone:
                if not alone or not self._make_room(want, self._heat_of(f"{serial:012x}")):
                    return None
                lock = FileLock(f"{self.path(serial)}.new")
                if not lock.try_acquire():
                    return None
                try:
                    # Its whole length at once: others count it.
                    self._disk.truncate(lock.fd, want, lock.path)
                except BaseException:
                    lock.release()
                    raise
        except (LayerstoreError, OSError):
            return None
        return Filler(self, serial, size, lock)

    def write(self, filler: Filler, data: memoryview, offset: int) -> None:
        self._disk.write_at(filler.lock.fd, data, offset, filler.lock.path)

    def give_up(self, filler: Filler) -> None:
        """Unlinks what was not finished."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(filler.lock.path)

    def publish(self, filler: Filler, hashes: bytes) -> None:
        """A copy whose bytes are written becomes visible."""
        tail = hashes + self._trailer(filler.serial, filler.size, hashes)
        self._disk.write_at(filler.lock.fd, tail, filler.size, filler.lock.path)
        self._disk.rename(filler.lock.path, self.path(filler.serial))
        self.save()

    @contextlib.contextmanager
    def _alone(self, wait: float = 0.0) -> Iterator[bool]:
        """Whether this is the only one that changes what is there, after `wait` seconds at most. Who
        reads copies does not ask."""
        lock = FileLock(os.path.join(self.directory, "lock"))
        alone = os.path.isdir(self.directory)
        try:
            if alone:
                lock.acquire(wait, "the raw cache's lock")
        except BusyError:
            alone = False
        if not alone:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _files(self) -> list[tuple[str, int]]:
        """Names and lengths of copies, of those that are being written, too."""
        out = []
        with contextlib.suppress(FileNotFoundError):
            for item in os.scandir(self.directory):
                if len(item.name.removesuffix(".new")) == 12:
                    with contextlib.suppress(FileNotFoundError):
                        out.append((item.name, item.stat().st_size))
        return out

    def _make_room(self, want: int, heat: float) -> bool:
        files = self._files()
        over = sum(size for _, size in files) + want - self.budget
        if over <= 0:
            return True
        victims = []
        for name, size in sorted(files, key=lambda item: (self._heat_of(item[0]), item[0])):
            if name.endswith(".new"):
                continue
            if self._heat_of(name) >= heat:
                return False
            victims.append(name)
            over -= size
            if over <= 0:
                for victim in victims:
                    self._disk.unlink(os.path.join(self.directory, victim))
                return True
        return False

    # ---- heat ---------------------------------------------------------------------------------

    def _note(self, name: str) -> None:
        with self._lock:
            self._news[name] = self._news.get(name, 0.0) + 1.0
            self._reads += 1
            due = self._reads % SAVE_EVERY == 0
        if due:
            self.save()

    def _heat_of(self, name: str) -> float:
        with self._lock:
            if not self._heat:
                self._heat = self._load()
            return self._heat.get(name, 0.0) + self._news.get(name, 0.0)

    def _load(self) -> dict[str, float]:
        try:
            with open(os.path.join(self.directory, "heat"), "rb") as f:
                value = json.loads(f.read(4 << 20))
            return {str(k): float(v) for k, v in value.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def save(self) -> None:
        """Adds the reads of this handle to what all know. Lost news make nothing wrong."""
        if not self.budget or not self._news:
            return
        with self._alone() as alone, self._lock:
            if not alone:
                return
            heat = self._load()
            for name, count in self._news.items():
                heat[name] = heat.get(name, 0.0) + count
            if sum(heat.values()) > COOL_AT:
                heat = {name: h / 2 for name, h in heat.items() if h / 2 > COLD}
            self._heat, self._news = heat, {}
            path = os.path.join(self.directory, "heat")
            with contextlib.suppress(LayerstoreError, OSError):
                fd = self._disk.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                try:
                    self._disk.note(fd, json.dumps(heat).encode(), f"{path}.new")
                finally:
                    os.close(fd)
                self._disk.rename(f"{path}.new", path)

    # ---- giving back --------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes of all copies, by their lengths."""
        return sum(size for _, size in self._files())

    def shrink(self, target: int) -> int:
        """Takes copies away, the coldest first, until `target` bytes are left; returns how many bytes
        went."""
        freed = 0
        with self._alone(LOCK_WAIT) as alone:
            files = sorted(self._files(), key=lambda item: (self._heat_of(item[0]), item[0]))
            left = sum(size for _, size in files)
            for name, size in files if alone else ():
                if left <= target:
                    break
                # A reader that found it damaged may have been faster.
                with contextlib.suppress(FileNotFoundError):
                    if self._unlink(name):
                        freed += size
                        left -= size
        return freed

    def _unlink(self, name: str) -> bool:
        path = os.path.join(self.directory, name)
        if not name.endswith(".new"):
            self._disk.unlink(path)
            return True
        lock = FileLock(path)
        if not lock.try_acquire(create=False):
            return False
        self._disk.unlink(path)
        lock.release()
        return True

    def sweep(self, storage: Storage) -> int:
        """Takes away copies that nobody asks for any more: their blob is gone, or has a form of its own
        to read from; and what was never finished. Returns the bytes."""
        from . import graph

        freed = 0
        for name, size in self._files():
            if not name.endswith(".new"):
                with storage.index.read() as snapshot:
                    row = graph.blob_row(snapshot, int(name, 16))
                if row is not None and row.forms == ("gzip",):
                    continue
            with contextlib.suppress(FileNotFoundError):
                if self._unlink(name):
                    freed += size
        return freed


class Copy:
    """An open copy. Close it."""

    def __init__(self, fd: int, path: str, size: int, hashes: bytes) -> None:
        self._fd = fd
        self._path = path
        self._size = size
        self._hashes = hashes

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """The blob from `offset` on, each piece verified. Raises CorruptError."""
        at = offset // PIECE * PIECE
        while at < self._size:
            data = memoryview(os.pread(self._fd, min(READ, self._size - at), at))
            for start in range(0, max(1, len(data)), PIECE):
                piece = data[start : start + PIECE]
                number = (at + start) // PIECE
                want = self._hashes[number * PIECE_HASH : (number + 1) * PIECE_HASH]
                if (
                    len(piece) != min(PIECE, self._size - at - start)
                    or blake3(piece)[:PIECE_HASH] != want
                ):
                    raise CorruptError(f"the copy {self._path} is damaged", where=self._path)
            skip = max(0, offset - at)
            at += len(data)
            yield data[skip:]

    def close(self) -> None:
        os.close(self._fd)


class Filler:
    """A copy that is being written, in order. What goes wrong ends it, and nothing else."""

    def __init__(self, cache: RawCache, serial: int, size: int, lock: FileLock) -> None:
        self.serial = serial
        self.size = size
        self.lock = lock
        self._cache = cache
        self._at = 0
        self._pending = bytearray()
        self._hashes: list[bytes] = []
        self._failed = False

    def write(self, data: memoryview) -> None:
        """The blob's next bytes."""
        if self._failed:
            return
        try:
            self._cache.write(self, data, self._at)
        except (LayerstoreError, OSError):
            self._failed = True
            return
        self._at += len(data)
        while len(data):
            part = data[: PIECE - len(self._pending)]
            data = data[len(part) :]
            if len(part) == PIECE:
                self._hashes.append(blake3(part)[:PIECE_HASH])
                continue
            self._pending += part
            if len(self._pending) == PIECE:
                self._hashes.append(blake3(self._pending)[:PIECE_HASH])
                self._pending.clear()

    def finish(self) -> None:
        """The blob was read to its end, and its digest is right."""
        if self._pending:
            self._hashes.append(blake3(self._pending)[:PIECE_HASH])
        if not self._failed and self._at == self.size:
            try:
                self._cache.publish(self, b"".join(self._hashes))
            except (LayerstoreError, OSError):
                self._failed = True
        else:
            self._failed = True
        self.close()

    def close(self) -> None:
        """Gives it up, if it was not finished."""
        if self.lock.fd < 0:
            return
        self._cache.give_up(self)
        self.lock.release()
