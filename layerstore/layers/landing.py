"""Uploads on their way to be raw blobs: hashed as they come, linked at the end, never copied.

A small one becomes a row of the index instead: a file of its own would cost more than it holds.
What is written goes to the upload's file, to its digest and to the checksums of its pieces. An upload
that somebody else began is read once at its end instead: a digest cannot be taken up in the middle.
`Hashes` keeps the state between two requests to one process; it fits only the bytes that it has seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future

from ..digest import digest_of, hasher, parse
from ..errors import CorruptError, DigestMismatchError
from ..storage import leases, uploads
from ..storage.index import Write
from ..storage.operation import Operation, Staged
from ..storage.raws import PieceHasher
from ..storage.rows import BlobRow
from ..storage.storage import Storage

READ = 1 << 20
INLINE = 2048
"""Bytes of a blob that goes into its row."""


class Hashes:
    """Digest and piece checksums of the first `size` bytes of an upload."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.size = 0
        self._digest = hasher(algorithm)
        self._pieces = PieceHasher()

    def update(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._pieces.update(memoryview(data))
        self.size += len(data)

    @property
    def digest(self) -> str:
        return f"{self.algorithm}:{self._digest.hexdigest()}"

    @property
    def pieces(self) -> PieceHasher:
        return self._pieces


class Landing:
    """An upload that is being written, by one thread at a time."""

    def __init__(
        self, storage: Storage, upload: uploads.Upload, hashes: Hashes | None = None
    ) -> None:
        self._storage = storage
        self.upload = upload
        self._busy: Future[None] | None = None
        if hashes is not None and hashes.size != upload.offset:
            hashes = None
        if hashes is None and upload.offset == 0:
            hashes = Hashes()
        self._hashes = hashes

    @property
    def offset(self) -> int:
        """Bytes that there are."""
        return self.upload.offset

    def write(self, data: bytes | memoryview) -> int:
        """Appends; `data` must not change before the next call."""
        self._settle()
        if self._hashes is not None:
            self._busy = self._storage.pool.submit(self._hashes.update, data)
        return self.upload.write(data)

    def _settle(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.result()

    def close(self) -> Hashes | None:
        """Syncs what was written and lets the upload go, to be resumed; what was computed of it."""
        self._settle()
        if self.upload.fd >= 0:
            self.upload.sync()
        self.upload.close()
        return self._hashes

    def abort(self) -> None:
        """Drops all that was written."""
        self._settle()
        self.upload.discard()

    def staged(
        self, op: Operation, digest: str | None, media_type: str
    ) -> tuple[Staged, Callable[[Write], None]]:
        """The blob, ready to be committed, and what ends the upload in the same commit. Raises
        DigestMismatchError when the bytes are others than `digest` says."""
        self._settle()
        algorithm = "sha256" if digest is None else parse(digest)[0]
        hashes = self._hashes
        if hashes is None or hashes.algorithm != algorithm:
            hashes = self._read(algorithm)
        got = hashes.digest
        if digest is not None and got != digest:
            raise DigestMismatchError(
                f"the upload has digest {got}, not {digest}", expected=digest, got=got
            )
        lease = bytes.fromhex(self.upload.id)

        def drop(tx: Write) -> None:
            leases.drop(tx, lease)

        if self.offset <= INLINE:
            data = os.pread(self.upload.fd, self.offset, 0)
            if digest_of(data, algorithm) != got:
                raise CorruptError(f"the upload {self.upload.id} has changed on the disk")
            return Staged(BlobRow(got, self.offset, media_type, inline=data)), drop
        serial = self._storage.spares.raw_serial()
        self._hashes = None  # the last piece is closed: nothing can be added
        writer = self.upload.land(serial, hashes.pieces)
        try:
            row = BlobRow(got, self.offset, media_type, raw=serial)
            raw = writer.finish()
        except BaseException:
            writer.discard()
            raise
        return Staged(row, raw=raw, writer=writer), drop

    def landed(self) -> None:
        """After the commit: nothing of the upload is left."""
        self.upload.end()

    def _read(self, algorithm: str) -> Hashes:
        hashes = Hashes(algorithm)
        at = 0
        while at < self.offset:
            data = os.pread(self.upload.fd, min(READ, self.offset - at), at)
            if not data:
                break
            hashes.update(data)
            at += len(data)
        return hashes
