"""Blobs of a registry, in and out: a file to read from that mends its connection, and uploads.

`RemoteBlob` gives exactly the bytes that came, as many as its descriptor says or an error; the digest
is the taker's to check, over the whole, wherever the stream broke and went on. An upload is one POST
and one PUT for what is small, else a PATCH that goes on where the registry says that it stopped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from ..digest import parse as parse_digest
from ..errors import DigestMismatchError, NotFoundError, RemoteError
from .client import Remote
from .retries import PASSING, Patience, retry_after
from .session import Answer
from .tokens import scope
from .wire import BrokenConnection, Response

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ = 256 << 10
PROGRESS = 1 << 20
"""Bytes that must come for the count of failures to begin anew."""
MONOLITHIC = 4 << 20
"""Up to here a blob goes in one PUT."""
PIECE = 1 << 20
MOUNTS = 2
"""Repositories of which a blob is asked for before it is sent."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_UPLOADED = re.compile(r"(?:bytes=)?0-(\d{1,18})\Z")


class RemoteBlob(io.RawIOBase):
    """A blob of `size` bytes, read once from its beginning. Opened by the first read."""

    def __init__(self, remote: Remote, repository: str, digest: str, size: int) -> None:
        super().__init__()
        self._remote = remote
        self._repository = repository
        self._digest = digest
        self._size = size
        self._offset = 0
        self._fresh = 0
        self._patience: Patience = remote.patience()
        self._response: Response | None = None

    def readable(self) -> bool:
        return True

    def start(self, offset: int) -> int:
        """Lets the first read begin there."""
        assert self._response is None
        assert 0 <= offset <= self._size
        self._offset = offset
        return offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Raises DigestMismatchError for more or fewer bytes than there should be, NotFoundError,
        PermissionDeniedError, RemoteError once patience has ended."""
        view = memoryview(buffer).cast("B")
        if not len(view) or (self._offset == self._size and self._response is None):
            return 0
        while True:
            try:
                if self._response is None:
                    self._response = self._open()
                if self._offset == self._size:
                    self._end()
                    return 0
                data = self._response.read(min(len(view), READ, self._size - self._offset))
                if not data:
                    if self._response.length is not None:
                        raise BrokenConnection("the connection ended early")
                    raise self._wrong(f"{self._offset} bytes")
            except BrokenConnection as e:
                self._mend(e)
                continue
            view[: len(data)] = data
            self._offset += len(data)
            self._fresh += len(data)
            if self._fresh >= PROGRESS:
                self._fresh = 0
                self._patience.progressed()
            return len(data)

    def _open(self) -> Response:
        got = self._remote.stream(self._repository, self._digest, self._offset, self._patience)
        try:
            self._check(got)
        except BaseException:
            got.close()
            raise
        return got

    def _check(self, got: Response) -> None:
        """The answer must be of this blob, from this byte on."""
        if got.status == 206:
            text = got.header("Content-Range") or ""
            match = _CONTENT_RANGE.match(text.strip())
            if match is None or int(match[1]) != self._offset:
                raise RemoteError(
                    f"{self._remote.host} answers {text[:80]!r} when asked for byte {self._offset} "
                    f"of {self._digest}",
                    digest=self._digest,
                )
            if match[3] != "*" and int(match[3]) != self._size:
                raise self._wrong(f"{match[3]} bytes")
            return
        if got.length is not None and got.length != self._size:
            raise self._wrong(f"{got.length} bytes")
        left = self._offset
        while left:  # it knows no ranges, and begins anew
            data = got.read(min(left, READ))
            if not data:
                raise BrokenConnection("the connection ended early")
            left -= len(data)

    def _end(self) -> None:
        """All has come: there must be no more."""
        assert self._response is not None
        if self._response.length is None and self._response.read(1):
            raise self._wrong(f"more than {self._size} bytes")
        self._response.drop()
        self._response = None

    def _mend(self, error: BrokenConnection) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        if error.final or not self._patience.again():
            raise RemoteError(
                f"{self._remote.host}: blob {self._digest} broke off at byte {self._offset} of "
                f"{self._size}: {error}",
                digest=self._digest,
            ) from error

    def _wrong(self, got: str) -> DigestMismatchError:
        return DigestMismatchError(
            f"{self._remote.host}: blob {self._digest} has {got}, its descriptor says {self._size}",
            expected=self._digest,
            got=got,
        )

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()


class Stored(Protocol):
    """A blob of ours, open. `chunks` gives the last piece only if the digest is right."""

    def chunks(self) -> Iterator[memoryview]: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes | None: ...


Opener = Callable[[], AbstractContextManager[Stored]]


def push(
    remote: Remote,
    repository: str,
    digest: str,
    size: int,
    opener: Opener,
    progress: Callable[[int], None],
    mounts: Sequence[str] = (),
) -> str:
    """Makes sure that a repository has a blob: `there`, `mounted` from one of `mounts`, or `sent`.

    Raises PermissionDeniedError, RemoteError, LimitError, and what reading the blob does."""
    if remote.blob_size(repository, digest) is not None:
        progress(size)
        return "there"
    upload = _Upload(remote, repository, digest, size, opener, progress)
    if any(upload.mount(source) for source in mounts[:MOUNTS]):
        progress(size)
        return "mounted"
    upload.send()
    return "sent"


class _Upload:
    def __init__(
        self,
        remote: Remote,
        repository: str,
        digest: str,
        size: int,
        opener: Opener,
        progress: Callable[[int], None],
    ) -> None:
        parse_digest(digest)
        self._remote = remote
        self._repository = repository
        self._digest = digest
        self._size = size
        self._opener = opener
        self._progress = progress
        self._scopes = (scope(repository, "pull,push"),)
        self._told = 0
        self._patience = remote.patience()
        self._location: str | None = None

    def mount(self, source: str) -> bool:
        """Asks for the blob of another repository; an upload that is begun instead is kept."""
        if self._location is not None:
            return False
        path = f"/v2/{self._repository}/blobs/uploads/?mount={self._digest}&from={source}"
        scopes = (*self._scopes, scope(source, "pull"))
        with self._remote.call("POST", path, scopes, headers={"Content-Length": "0"}) as got:
            status = got.response.status
            if status == 201:
                return True
            if status == 202:
                self._location = self._remote.upload_url(got.response)
        # Whatever else is said of a mount, the blob can still be sent.
        return False

    def send(self) -> None:
        while True:
            offset = self._begin()
            if offset is None:
                return
            try:
                if self._size <= MONOLITHIC:
                    done = self._finish(True)
                else:
                    done = self._patch(offset) and self._finish(False)
            except BrokenConnection as e:
                if e.final or not self._patience.again():
                    raise RemoteError(
                        f"{self._remote.host}: blob {self._digest} broke off at byte {self._told} "
                        f"of {self._size}: {e}",
                        digest=self._digest,
                    ) from e
                done = False
            if done:
                self._tell(self._size)
                return

    def _begin(self) -> int | None:
        """Where the upload stands; a new one, if there is none that goes on; None if it has ended, and
        only the answer was lost."""
        ended = self._told == self._size and self._location is not None
        if ended and self._remote.blob_size(self._repository, self._digest) is not None:
            return None
        if self._location is not None and self._told:
            offset = self._status()
            if offset is not None:
                return offset
            self._location = None
        if self._location is None:
            path = f"/v2/{self._repository}/blobs/uploads/"
            with self._remote.call(
                "POST", path, self._scopes, headers={"Content-Length": "0"}
            ) as got:
                missing = f"{self._remote.host} takes no uploads to {self._repository}"
                self._remote.expect(got, (202,), missing, self._digest)
                self._location = self._remote.upload_url(got.response)
        return 0

    def _status(self) -> int | None:
        """How much the registry has of an upload that broke off; None: begin anew."""
        assert self._location is not None
        if self._size <= MONOLITHIC:
            return None
        with self._remote.call("GET", self._location, self._scopes) as got:
            match = _UPLOADED.match(got.response.header("Range") or "")
            if got.response.status != 204 or match is None:
                return None
            self._location = self._moved(got)
        # `0-0` is said of one byte, and of none.
        offset = int(match[1]) + 1 if int(match[1]) else 0
        return offset if 0 < offset <= self._size else None

    def _patch(self, offset: int) -> bool:
        assert self._location is not None
        if offset == self._size:
            return True
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._size - offset),
            "Content-Range": f"{offset}-{self._size - 1}",
        }
        return self._sent("PATCH", self._location, headers, self._pieces(offset), (202, 204))

    def _finish(self, whole: bool) -> bool:
        assert self._location is not None
        joint = "&" if "?" in self._location else "?"
        url = f"{self._location}{joint}digest={self._digest}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._size if whole else 0),
        }
        body = self._pieces(0) if whole else None
        return self._sent("PUT", url, headers, body, (201, 204))

    def _sent(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Iterator[bytes] | None,
        wanted: tuple[int, ...],
    ) -> bool:
        """One step of an upload; False when it has to be looked after where it stands."""
        try:
            got = self._remote.send(method, url, self._scopes, headers, body)
        finally:
            if body is not None:
                body.close()  # type: ignore[attr-defined]
        with got:
            status = got.response.status
            if status in wanted:
                if method == "PATCH":
                    self._location = self._moved(got)
                return True
            passing = status in PASSING or status == 401
            gone = status in (404, 416) and method == "PATCH"
            if (passing or gone) and self._patience.again(
                retry_after(got.response.header("Retry-After"))
            ):
                if gone:
                    self._location = None
                return False
            missing = f"{self._remote.host} lost the upload of {self._digest}"
            self._remote.expect(got, wanted, missing, self._digest)
            raise NotFoundError(missing, digest=self._digest)

    def _moved(self, got: Answer) -> str:
        assert self._location is not None
        if not got.response.header("Location"):
            return self._location
        return self._remote.upload_url(got.response)

    def _pieces(self, offset: int) -> Iterator[bytes]:
        """The blob from `offset` on. Each piece is told of once, whatever is sent again."""
        at = offset
        with self._opener() as blob:
            if offset:
                blob.seek(offset)
                while piece := blob.read(PIECE):
                    yield bytes(piece)
                    at += len(piece)
                    self._tell(at)
            else:
                for chunk in blob.chunks():
                    yield bytes(chunk)
                    at += len(chunk)
                    self._tell(at)

    def _tell(self, at: int) -> None:
        if at > self._told:
            if at - self._told >= PROGRESS:
                self._patience.progressed()
            more, self._told = at - self._told, at
            self._progress(more)
