"""The one seam to the filesystem: every write, sync, rename and unlink of the store goes through here.

A test replaces `Disk` to record or to fail any step. A failed fsync poisons the handle for good
(the kernel marks the pages clean after it, so a retry would lie): later writes raise, reads go on.
"No space" becomes `StoreFullError`; other errors keep their errno.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import Sequence

from ..errors import LayerstoreError, StoreFullError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def translate(error: OSError, path: str) -> Exception:
    """The error to raise for an OSError: StoreFullError for "no space", else the error itself."""
    if error.errno in _NO_SPACE:
        full = StoreFullError(
            f"no space left while writing {path}; nothing half-done was kept: "
            "free space (for instance with `layerstore gc`) and try again",
            path=path,
        )
        full.__cause__ = error
        return full
    if error.filename is None:
        error.filename = path
    return error


BEHIND = 8 << 20
"""Bytes after which a long write is handed to the disk while it goes on."""


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Asks the kernel to begin writing a range to disk, so that the sync at the end of a long write
    finds little left to do. Promises nothing, so its result does not matter (sync_file_range(2),
    SYNC_FILE_RANGE_WRITE)."""
    import ctypes  # where it is needed: a listing would pay for it at its start

    libc = ctypes.CDLL(None)
    libc.sync_file_range(
        ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2)
    )


ALIGN = 4096
STAGE = 1 << 20


class StreamFile:
    """A large file, written once and in order, past the page cache where the filesystem can
    (O_DIRECT): gigabytes that nobody reads at once need not push everything else out of memory, and
    filling fresh page cache costs more than all the rest of an export. The descriptor is the
    caller's."""

    def __init__(self, fd: int, path: str, *, direct: bool = True) -> None:
        self._fd = fd
        self._path = path
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self._direct = direct and self._set(os.O_DIRECT)
        self._stage: mmap.mmap | None = None
        self._staged = 0
        self.offset = 0

    def _set(self, flag: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | flag)
        except OSError:
            return False
        return True

    def write(self, data: memoryview) -> None:
        """Appends. Raises StoreFullError or OSError."""
        try:
            while len(data):
                if not self._direct:
                    n = os.pwrite(self._fd, data, self.offset)
                    self.offset += n
                    data = data[n:]
                elif self._staged or len(data) < ALIGN or not self._straight(data):
                    data = data[self._fill(data) :]
                else:
                    data = data[len(data) // ALIGN * ALIGN :]
        except OSError as e:
            raise translate(e, self._path) from e

    def _straight(self, data: memoryview) -> bool:
        """Writes the whole pages of aligned memory; False if the kernel wants a copy of it."""
        size = len(data) // ALIGN * ALIGN
        done = 0
        while done < size:
            try:
                n = os.pwrite(self._fd, data[done:size], self.offset)
            except OSError as e:
                if e.errno != errno.EINVAL or done:
                    raise
                return False
            done += n
            self.offset += n
            if done % ALIGN:
                # A short write on a full disk: the rest goes the ordinary way.
                self._go_ordinary()
        return True

    def _fill(self, data: memoryview) -> int:
        if self._stage is None:
            self._stage = mmap.mmap(-1, STAGE)
        n = min(len(data), STAGE - self._staged)
        self._stage[self._staged : self._staged + n] = data[:n]
        self._staged += n
        if self._staged == STAGE:
            self._drain()
        return n

    def _drain(self) -> None:
        if self._stage is None or not self._staged:
            return
        view = memoryview(self._stage)[: self._staged]
        if self._staged % ALIGN:
            self._go_ordinary()
        while len(view):
            n = os.pwrite(self._fd, view, self.offset)
            self.offset += n
            view = view[n:]
            if n % ALIGN and len(view):
                self._go_ordinary()
        self._staged = 0

    def _go_ordinary(self) -> None:
        self._direct = False
        fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags)

    def finish(self) -> int:
        """Writes what is left; returns the size. The caller syncs."""
        try:
            self._drain()
        except OSError as e:
            raise translate(e, self._path) from e
        self._go_ordinary()
        if self._stage is not None:
            self._stage.close()
            self._stage = None
        return self.offset


class Disk:
    """Writes of one handle. Thread-safe: it keeps no state but the poison."""

    def __init__(self) -> None:
        self.poison: str | None = None

    def check(self) -> None:
        """Raises LayerstoreError if an fsync of this handle has failed before."""
        if self.poison is not None:
            raise LayerstoreError(
                f"this handle may not write any more: {self.poison}; "
                "close the store, look after the disk, open it again and run `layerstore check`"
            )

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor, close-on-exec. Raises OSError, or StoreFullError when creating needs space."""
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        except OSError as e:
            raise translate(e, path) from e

    def write_at(
        self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: str
    ) -> None:
        """Writes all of `data` at `offset`."""
        self.check()
        view = memoryview(data).cast("B")
        try:
            while view:
                n = os.pwrite(fd, view, offset)
                offset += n
                view = view[n:]
        except OSError as e:
            raise translate(e, path) from e

    def note(self, fd: int, data: bytes, path: str) -> None:
        """Writes at the start of a file what only running processes read: never synced, so a poisoned
        handle may do it too and go on reading."""
        try:
            os.pwrite(fd, data, 0)
        except OSError as e:
            raise translate(e, path) from e

    def writev_at(
        self, fd: int, parts: Sequence[bytes | memoryview], offset: int, path: str
    ) -> int:
        """Writes the parts one behind the other at `offset`; returns how many bytes."""
        self.check()
        total = sum(len(p) for p in parts)
        try:
            n = os.pwritev(fd, parts, offset)
        except OSError as e:
            raise translate(e, path) from e
        if n < total:
            self.write_at(fd, b"".join(parts)[n:], offset + n, path)
        return total

    def sync(self, fd: int, path: str) -> None:
        """fdatasync. A failure poisons the handle: nobody can say what reached the disk."""
        self.check()
        try:
            os.fdatasync(fd)
        except OSError as e:
            self.poison = f"a sync of {path} failed ({e.strerror})"
            raise translate(e, path) from e

    def sync_dir(self, path: str) -> None:
        """fsync of a directory, so that new names in it survive a power cut."""
        self.check()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as e:
            self.poison = f"a sync of the directory {path} failed ({e.strerror})"
            raise translate(e, path) from e
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        self.check()
        try:
            os.rename(old, new)
        except OSError as e:
            raise translate(e, new) from e

    def link(self, old: str, new: str) -> bool:
        """A second name; False where the filesystem has none, or no more of them."""
        self.check()
        try:
            os.link(old, new)
        except OSError as e:
            if e.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                return False
            raise translate(e, new) from e
        return True

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def truncate(self, fd: int, size: int, path: str) -> None:
        self.check()
        try:
            os.ftruncate(fd, size)
        except OSError as e:
            raise translate(e, path) from e

    def mkdir(self, path: str) -> None:
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as e:
            raise translate(e, path) from e

    def remove_tree(self, path: str) -> None:
        """A directory and all that is in it, symbolic links not followed; nothing if it is gone."""

        def opened(function: object, name: str, error: BaseException) -> None:
            # Without root a directory of an image may be closed to its own owner.
            if not isinstance(error, PermissionError):
                raise error
            for folder in (os.path.dirname(name), name):
                if not os.path.islink(folder) and os.path.isdir(folder):
                    os.chmod(folder, 0o700)
            if os.path.isdir(name) and not os.path.islink(name):
                shutil.rmtree(name)
            else:
                os.unlink(name)

        def failed(function: object, name: str, info: tuple[object, BaseException, object]) -> None:
            if not isinstance(info[1], FileNotFoundError):
                opened(function, name, info[1])

        shutil.rmtree(path, onerror=failed)

    def sync_tree(self, path: str) -> None:
        """Everything below a directory is on disk when this returns: syncfs, which costs one call
        where an fsync of each file would cost thousands. A failure poisons the handle."""
        self.check()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(ctypes.c_int(fd)) != 0:
                code = ctypes.get_errno()
                self.poison = f"a sync of the filesystem of {path} failed ({os.strerror(code)})"
                raise translate(OSError(code, os.strerror(code)), path)
        finally:
            os.close(fd)

    def allocate(self, fd: int, size: int, path: str) -> None:
        """Real blocks for the first `size` bytes."""
        self.check()
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as e:
            raise translate(e, path) from e

    def punch(self, fd: int, offset: int, length: int, path: str) -> bool:
        """Gives the blocks of a range back. False where the filesystem cannot."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.fallocate(
            ctypes.c_int(fd), ctypes.c_int(_PUNCH), ctypes.c_int64(offset), ctypes.c_int64(length)
        )
        if done == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(code, os.strerror(code), path)

    def write_file(self, path: str, data: bytes) -> None:
        """A whole small file: temporary name, sync, rename, directory sync."""
        temporary = f"{path}.new"
        fd = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_at(fd, data, 0, temporary)
            self.sync(fd, temporary)
        finally:
            os.close(fd)
        self.rename(temporary, path)
        self.sync_dir(os.path.dirname(path))
