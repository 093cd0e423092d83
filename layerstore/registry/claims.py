"""Claims: who of several processes does a thing that is to be done once.

A claim is a file with a lock that ends with its process; what its owner says in it the others can read.
Threads of one process see to it themselves that one of them claims a thing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os

TICK = 0.02
"""Seconds after which one who waits for another process looks again."""


class Claims:
    """Those of one directory, which must be there; without one there are no others to heed."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory

    def of(self, *key: str) -> Claim:
        """That of one thing."""
        if self._directory is None:
            return Claim(None)
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()
        return Claim(os.path.join(self._directory, f"{name}.claim"))


class Claim:
    """`shared`: there may be others."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1

    @property
    def shared(self) -> bool:
        return self._path is not None

    def take(self) -> bool:
        """Whether it is ours from now on; never waits."""
        while self._path is not None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last owner may have unlinked it between the two.
                if os.fstat(fd).st_nlink:
                    os.ftruncate(fd, 0)
                    self._fd = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        return True

    def say(self, text: str) -> None:
        """Tells the others something, one line."""
        if self._fd >= 0:
            os.pwrite(self._fd, f"{text}\n".encode(), 0)

    def said(self) -> str:
        """What the owner has said; empty for nothing yet."""
        if self._path is None:
            return ""
        try:
            with open(self._path, encoding="ascii") as f:
                text = f.read(1000)
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return text[:-1] if text.endswith("\n") else ""

    def release(self) -> None:
        """The thing is done, or given up."""
        if self._fd >= 0 and self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1
