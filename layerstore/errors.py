"""The one hierarchy of errors. Each says what went wrong, where, and what to do about it.

Floor 0: values only, no I/O. Everything that layerstore raises on purpose is a `LayerstoreError`;
errors of the operating system keep their `errno` (an `OSError` passes through, or is the cause).
"""

from __future__ import annotations


class LayerstoreError(Exception):
    """Base of all. `kind` is the stable word that `--json` prints; `digest`, `path` and `offset`
    (bytes) name the place where they are known."""

    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        digest: str | None = None,
        path: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.digest = digest
        self.path = path
        self.offset = offset


class NotFoundError(LayerstoreError):
    """No such image, blob, file or store."""

    kind = "not-found"


class MissingBlobsError(NotFoundError):
    """A manifest names blobs that its repository does not have: `digests`."""

    kind = "missing-blobs"

    def __init__(self, message: str, digests: tuple[str, ...]) -> None:
        super().__init__(message, digest=digests[0])
        self.digests = digests


class InvalidInputError(LayerstoreError):
    """Bytes or arguments from outside are not what they should be. `reason` and `offset` say where."""

    kind = "invalid-input"

    def __init__(
        self,
        message: str,
        *,
        digest: str | None = None,
        path: str | None = None,
        offset: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message, digest=digest, path=path, offset=offset)
        self.reason = reason if reason is not None else message


class DigestMismatchError(InvalidInputError):
    """Bytes do not have the digest, or the size, under which they were handed over."""

    kind = "digest-mismatch"

    def __init__(self, message: str, *, expected: str, got: str, path: str | None = None) -> None:
        super().__init__(message, digest=expected, path=path)
        self.expected = expected
        self.got = got


class CorruptError(LayerstoreError):
    """Stored bytes are wrong or missing. `where` names the file and place inside the store."""

    kind = "corrupt"

    def __init__(
        self,
        message: str,
        *,
        digest: str | None = None,
        where: str | None = None,
        path: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message, digest=digest, path=path, offset=offset)
        self.where = where


class BusyError(LayerstoreError):
    """Somebody else holds what is needed, past the timeout."""

    kind = "busy"


class UnsupportedError(LayerstoreError):
    """A newer format, a remote filesystem, a feature that this build does not have."""

    kind = "unsupported"


class StoreFullError(LayerstoreError):
    """No space left, or a limit was reached. The store is whole; it goes on when there is room."""

    kind = "full"


class LimitError(StoreFullError):
    """Input needs more than a bound that was set (bytes when inflated, depth, manifest size)."""

    kind = "limit"


class PermissionDeniedError(LayerstoreError):
    """The store, or what is asked of it, is not ours to write or read."""

    kind = "permission"


class RemoteError(LayerstoreError):
    """Another registry could not be reached, or did not answer as it should; `status` is its last
    HTTP status, if there was one. It may be different another time."""

    kind = "remote"

    def __init__(
        self, message: str, *, digest: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, digest=digest)
        self.status = status


class CancelledError(LayerstoreError):
    """The caller cancelled the work (by raising in its progress callback, or by a signal)."""

    kind = "cancelled"
