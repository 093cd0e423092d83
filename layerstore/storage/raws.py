"""Raw files: a blob as it came, one file, named by a serial that is never used twice (rule 1).

`raw/SS/SSSSSSSSSSSS`: 12 hex digits of the serial, in a folder of its last two. Each piece of
256 KiB has a checksum in the index, checked before a byte of it goes out.
"""

from __future__ import annotations

import os

from ..core.hashing import Blake3, blake3
from ..errors import CorruptError
from .disk import BEHIND, Disk, start_writeback
from .locks import FileLock
from .rows import PIECE, PIECE_HASH, RawRow


def relative_path(serial: int) -> str:
    name = f"{serial:012x}"
    return os.path.join(name[-2:], name)


class RawFiles:
    """The raw files of a store."""

    def __init__(self, directory: str, disk: Disk) -> None:
        self.directory = directory
        self._disk = disk

    def path(self, serial: int) -> str:
        return os.path.join(self.directory, relative_path(serial))

    def serials(self) -> list[int]:
        """The serials that there are as files."""
        out = []
        for folder in os.listdir(self.directory):
            for name in os.listdir(os.path.join(self.directory, folder)):
                if len(name) == 12:
                    out.append(int(name, 16))
        return sorted(out)

    def create(self, serial: int) -> RawWriter:
        """A new raw file to write. It is nobody's until its row is committed."""
        path = self.path(serial)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self._disk.mkdir(folder)
            self._disk.sync_dir(self.directory)
        lock = FileLock(path)
        lock.acquire(10.0, f"the new raw file {path}")
        return RawWriter(self._disk, path, serial, lock)

    def adopt(self, serial: int, lock: FileLock, size: int, hashes: PieceHasher) -> RawWriter:
        """A file that is there already, elsewhere on the filesystem and locked, becomes a new raw file,
        as if it had just been written. It keeps the name that it had as well, where the filesystem can:
        whoever dies before the commit has lost nothing."""
        path = self.path(serial)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self._disk.mkdir(folder)
            self._disk.sync_dir(self.directory)
        self._disk.sync(lock.fd, lock.path)
        if not self._disk.link(lock.path, path):
            self._disk.rename(lock.path, path)
        lock.path = path
        writer = RawWriter(self._disk, path, serial, lock)
        writer.take_over(size, hashes)
        return writer

    def read(self, serial: int, row: RawRow, piece: int) -> bytes:
        """One piece, its checksum verified. Raises CorruptError."""
        path = self.path(serial)
        want = min(PIECE, row.size - piece * PIECE)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise CorruptError(f"raw file {path} is missing", where=path) from e
        try:
            data = os.pread(fd, want, piece * PIECE)
        finally:
            os.close(fd)
        self.verify(row, piece, data, path)
        return data

    def verify(self, row: RawRow, piece: int, data: bytes | memoryview, path: str) -> None:
        """Raises CorruptError unless `data` is that piece."""
        want = row.pieces[piece * PIECE_HASH : (piece + 1) * PIECE_HASH]
        length = min(PIECE, row.size - piece * PIECE)
        if len(data) != length or blake3(data)[:PIECE_HASH] != want:
            raise CorruptError(
                f"raw file {path} is damaged at bytes {piece * PIECE} to {piece * PIECE + length}",
                where=path,
                offset=piece * PIECE,
            )


class PieceHasher:
    """Checksums of the pieces of a file that comes in order. It holds none of the bytes: one of each
    upload that was left in the middle may wait for long."""

    def __init__(self) -> None:
        self._piece: Blake3 | None = None
        self._size = 0
        self._hashes = bytearray()

    def update(self, view: memoryview) -> None:
        if self._piece is not None:
            take = min(PIECE - self._size, len(view))
            self._add(self._piece, view[:take])
            view = view[take:]
        while len(view) >= PIECE:
            self._hashes += blake3(view[:PIECE])[:PIECE_HASH]
            view = view[PIECE:]
        if view:
            self._piece = Blake3()
            self._add(self._piece, view)

    def _add(self, piece: Blake3, view: memoryview) -> None:
        piece.update(view)
        self._size += len(view)
        if self._size == PIECE:
            self._end(piece)

    def _end(self, piece: Blake3) -> None:
        self._hashes += piece.digest()[:PIECE_HASH]
        self._piece, self._size = None, 0

    def finish(self) -> bytes:
        """All checksums; nothing can be added after."""
        if self._piece is not None:
            self._end(self._piece)
        return bytes(self._hashes)


class RawWriter:
    """Writes one raw file in order, a checksum for each piece."""

    def __init__(self, disk: Disk, path: str, serial: int, lock: FileLock) -> None:
        self._disk = disk
        self.path = path
        self.serial = serial
        self._lock = lock
        self._size = 0
        self._behind = 0
        self._synced = False
        self._hashes = PieceHasher()

    def take_over(self, size: int, hashes: PieceHasher) -> None:
        """The file has `size` bytes already, synced, whose checksums were computed as they came."""
        self._size = size
        self._hashes = hashes
        self._synced = True

    def write(self, data: bytes | memoryview) -> None:
        """Appends; the file grows as data comes."""
        view = memoryview(data)
        self._synced = False
        self._disk.write_at(self._lock.fd, view, self._size, self.path)
        self._size += len(view)
        if self._size - self._behind >= BEHIND:
            start_writeback(self._lock.fd, self._behind, self._size - self._behind)
            self._behind = self._size
        self._hashes.update(view)

    @property
    def size(self) -> int:
        return self._size

    def finish(self) -> RawRow:
        """Syncs file and folder; returns its row. The lock is held on, until the row is committed:
        a raw file that nobody holds and no row names is gc's to unlink."""
        if not self._synced:
            self._disk.sync(self._lock.fd, self.path)
        self._disk.sync_dir(os.path.dirname(self.path))
        return RawRow(self._size, self._hashes.finish())

    def close(self) -> None:
        """Lets the lock go: after the commit, or when the file is given up."""
        self._lock.release()

    def discard(self) -> None:
        """Unlinks: nothing of it stays."""
        if os.path.exists(self.path):
            self._disk.unlink(self.path)
        self.close()
