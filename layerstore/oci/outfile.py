"""Where an archive is written: a file that gets its name when it is whole, or a pipe."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ..storage.disk import translate
from .layout_writer import sync_directory, write_all


class Out:
    """A sink for `TarWriter`. `file` is the seekable file behind it, or None for a pipe."""

    def __init__(self, fd: int, path: str, file: BinaryIO | None) -> None:
        self._fd = fd
        self._path = path
        self.file = file

    def write(self, data: bytes | memoryview) -> None:
        """All of it. Raises StoreFullError when there is no space, OSError (a closed pipe: EPIPE)."""
        write_all(self._fd, data, self._path)


@contextlib.contextmanager
def output(path: str) -> Iterator[Out]:
    """`-` and whatever is no regular file are written as they are; a file is written beside its name,
    synced and renamed at the end, and gone if anything fails."""
    if path == "-":
        yield Out(1, "standard output", None)
        return
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                yield Out(fd, path, None)
            finally:
                os.close(fd)
            return
    target = os.path.realpath(path)
    temporary = f"{target}.{secrets.token_hex(8)}.tmp"
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as e:
        # The user knows the name that was given, not ours.
        e.filename = path
        raise
    with open(fd, "w+b", buffering=0) as f:
        try:
            yield Out(fd, path, f)
            try:
                os.fsync(fd)
            except OSError as e:
                raise translate(e, path) from e
            os.rename(temporary, target)
            sync_directory(os.path.dirname(target))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def source_date_epoch() -> int:
    """The time for members: `$SOURCE_DATE_EPOCH` (seconds), else 0, so that the same images give the
    same bytes."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 12 else 0
