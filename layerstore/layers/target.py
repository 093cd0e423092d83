"""The directory that a checkout fills: empty at first, marked as unfinished until all is there.

The mark is a file in it, made before anything else and removed last, locked while the process lives.
A process that dies leaves it; the next checkout into that directory finds it, removes what lies there
and starts anew. What fails with an error is removed at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat

from ..errors import BusyError, InvalidInputError

MARK = ".layerstore-unfinished"
_TEXT = (
    b"A layerstore checkout that is not finished. The next one into this directory starts anew.\n"
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """An open target. `fd` is the directory; `uid` and `gid` are what files that this process makes
    there have; `found` says that an unfinished checkout was removed.

    With `marked` off it is only seen to be empty: somebody else makes it known when it is whole."""

    def __init__(self, path: str, *, marked: bool = True) -> None:
        self.path = path
        self.found = False
        self._mark: int | None = None
        self._made = False
        self._mode: int | None = None
        try:
            os.mkdir(path, 0o700)
            self._made = True
        except FileExistsError:
            pass
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError as e:
            raise InvalidInputError(f"{path} is not a directory", path=path) from e
        try:
            self._begin(marked)
        except BaseException:
            self._close()
            raise

    def _begin(self, marked: bool) -> None:
        names = os.listdir(self.fd)
        if names and not (marked and MARK in names):
            raise InvalidInputError(
                f"{self.path} is not empty: a checkout needs an empty directory, or a new one",
                path=self.path,
            )
        if marked:
            self._take_mark()
            if names:
                self.found = True
                empty(self.fd, but=MARK)
        found = os.fstat(self.fd)
        self._mode = stat.S_IMODE(found.st_mode)
        # Nobody else may look on, and nothing is inherited: what a directory is gets set at its end.
        os.fchmod(self.fd, 0o700)
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            with contextlib.suppress(OSError):
                os.removexattr(self.fd, name)
        own = os.fstat(self._mark) if self._mark is not None else None
        self.uid = own.st_uid if own is not None else os.geteuid()
        self.gid = own.st_gid if own is not None else os.getegid()

    def _take_mark(self) -> None:
        try:
            self._mark = os.open(
                MARK,
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self.fd,
            )
        except OSError as e:
            e.filename = os.path.join(self.path, MARK)
            raise
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise BusyError(
                f"another process is writing a checkout into {self.path}", path=self.path
            ) from e
        if os.fstat(self._mark).st_size == 0:
            os.write(self._mark, _TEXT)

    def finish(self) -> None:
        """All is there but the directory's own attributes: the mark goes."""
        if self._mark is not None:
            os.unlink(MARK, dir_fd=self.fd)

    def undo(self) -> None:
        """Takes away what was written; as far as that goes, since an error is on its way already."""
        with contextlib.suppress(OSError):
            empty(self.fd, but=MARK)
            if self._mark is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(MARK, dir_fd=self.fd)
                # NFS and others keep an open file under another name, in this directory.
                os.close(self._mark)
                self._mark = None
            if self._mode is not None:
                os.fchmod(self.fd, self._mode)
            if self._made:
                os.rmdir(self.path)

    def _close(self) -> None:
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None
        os.close(self.fd)

    def close(self) -> None:
        """Lets the directory go."""
        self._close()


def empty(fd: int, *, but: str = "") -> None:
    """Removes all that lies in a directory, however deep, following nothing. Directories in
    directories are moved up first, so that neither memory nor descriptors grow with the depth."""
    while True:
        left = [name for name in os.listdir(fd) if name != but]
        if not left:
            return
        for name in left:
            try:
                os.unlink(name, dir_fd=fd)
            except OSError as e:
                if e.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                # One that somebody has put something else in the place of is tried again.
                with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                    _remove_dir(fd, name)


def _remove_dir(fd: int, name: str) -> None:
    with contextlib.suppress(PermissionError):
        _make_movable(fd, name)
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    try:
        os.fchmod(inner, 0o700)
        for child in os.listdir(inner):
            try:
                os.unlink(child, dir_fd=inner)
            except OSError as e:
                if e.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                _make_movable(inner, child)
                os.rename(
                    child, f".layerstore-{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=fd
                )
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=fd)


def _make_movable(fd: int, name: str) -> None:
    """A directory that is moved gets another parent written into it: its owner needs that right. Raises
    NotADirectoryError also for a symbolic link."""
    inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        os.chmod(f"/proc/self/fd/{inner}", 0o700)
    finally:
        os.close(inner)
