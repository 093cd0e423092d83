"""A blob on its way from a mirror's upstream: one thread of one process brings it, all give it out.

The thread writes an upload of the repository, its readers read that file behind it; other processes
find the upload by what the claim says, and read along. The last byte is given out only when the digest
is right and the blob is stored; else the answer is aborted, and nothing is kept. Where the process that
brings it dies, one of those that wait begins anew, and its readers go on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from .. import NotFoundError, RemoteError, Repository, RepositoryUpload
from .claims import TICK

if TYPE_CHECKING:
    from .app import Registry
    from .mirror import Mirror

PIECE = 1 << 20


class _Growing:
    """A descriptor of what is being fetched, closed with the last of its readers."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Fetch:
    """A blob on its way into a repository. Made and asked in the event loop; a thread brings it, or
    follows the process that does."""

    def __init__(
        self, mirror: Mirror, repository: Repository, upstream: str, digest: str, size: int
    ) -> None:
        self.size = size
        self._mirror = mirror
        self._repository = repository
        self._upstream = upstream
        self._digest = digest
        self._claim = mirror.claims.of("blob", repository.name, digest)
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._there = 0
        self._file: _Growing | None = None
        self._done = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        self._loop.run_in_executor(self._mirror.pool, self._run)

    # ---- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        """Upstream to upload, and a word to the loop for each piece."""
        error: BaseException | None = None
        try:
            self._follow()
            try:
                # Whoever had the claim before may have brought it.
                known = self._repository.blob_size(self._digest) if self._claim.shared else None
                if known is None:
                    self._bring()
            finally:
                self._claim.release()
        except BaseException as e:
            error = e
        self._say(self._end, error)

    def _follow(self) -> None:
        """Reads along with other processes, until there is none and the claim is ours."""
        followed, file, there = "", -1, 0
        while not self._claim.take():
            if self._mirror.stopped.is_set():
                raise RemoteError("the mirror is about to stop")
            upload = self._claim.said()
            if upload and upload != followed:
                with contextlib.suppress(NotFoundError):  # it has just ended
                    file, there = self._repository.reader(upload), 0
                    self._say(self._begun, file)
                followed = upload
            if file >= 0 and (size := os.fstat(file).st_size) != there:
                there = size
                self._say(self._came, there)
            time.sleep(TICK)

    def _bring(self) -> None:
        upload = self._repository.upload()
        try:
            self._fill(upload)
        except BaseException:
            upload.abort()
            raise

    def _fill(self, upload: RepositoryUpload) -> None:
        remote = self._mirror.remote
        with remote.open_blob(self._upstream, self._digest, self.size) as blob:
            # Opened before the first reader is let in: what is refused, is refused with a status.
            piece = blob.read(PIECE)
            self._say(self._begun, upload.reader())
            self._claim.say(upload.id)
            while piece:
                upload.write(piece)
                self._say(self._came, upload.offset)
                piece = blob.read(PIECE)
        upload.commit(self._digest)

    def _say(self, what: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *args)

    # ---- the event loop -----------------------------------------------------------------------

    def _begun(self, file: int) -> None:
        self._file, self._there = _Growing(file), 0
        self._tick()

    def _came(self, there: int) -> None:
        self._there = there
        self._tick()

    def _end(self, error: BaseException | None) -> None:
        self._done, self._error = True, error
        self._mirror.forget((self._repository.name, self._digest))
        self._tick()

    def _tick(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def started(self) -> bool:
        """Waits for its first bytes; False if it ended without: it is stored. Raises what kept them
        from coming."""
        while self._file is None and not self._done:
            await self._moved.wait()
        if self._error is not None:
            raise self._error
        return self._file is not None

    async def pieces(self, registry: Registry, first: int, end: int) -> AsyncIterator[bytes]:
        """Bytes from `first` to before `end`, as they come. The last of the blob waits for the digest.
        Raises what ended the fetch."""
        at = first
        while at < end:
            there = self.size if self._done else min(self._there, self.size - 1)
            if self._error is not None:
                raise self._error
            if at < min(there, end):
                file = self._file  # it may be another one meanwhile
                assert file is not None
                size = min(PIECE, min(there, end) - at)
                data = await registry.run(os.pread, file.fd, size, at)
                if not data:
                    raise RemoteError(f"the fetch of {self._digest} ended early")
                at += len(data)
                yield data
                continue
            await self._moved.wait()
