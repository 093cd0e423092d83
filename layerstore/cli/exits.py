"""Errors to exit status: the table of INTERFACE, and what `--json` says of each error.

| status | when |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage |
| 3 | damage: wrong or missing bytes were found and not repaired |
| 4 | no such image, blob or store |
| 5 | busy past `--timeout` |
| 6 | no space, or a limit reached |
| 7 | not allowed |
| 130 | interrupted |
"""

from __future__ import annotations

import errno
from typing import NamedTuple

DONE = 0
FAILED = 1
USAGE = 2
DAMAGED = 3
NOT_FOUND = 4
BUSY = 5
FULL = 6
NOT_ALLOWED = 7
INTERRUPTED = 130

# By the stable word that an error of the library carries; what is not here is 1.
_BY_KIND = {
    "corrupt": DAMAGED,
    "not-found": NOT_FOUND,
    "busy": BUSY,
    "full": FULL,
    "limit": FULL,
    "permission": NOT_ALLOWED,
    "cancelled": INTERRUPTED,
}
# What was typed, and not what was found there: reasons that an InvalidInputError carries.
_TYPED = ("transport", "reference grammar", "prefix")
_BY_ERRNO = {
    errno.ENOSPC: ("full", FULL),
    errno.EDQUOT: ("full", FULL),
    errno.EFBIG: ("full", FULL),
    errno.EACCES: ("permission", NOT_ALLOWED),
    errno.EPERM: ("permission", NOT_ALLOWED),
    errno.EROFS: ("permission", NOT_ALLOWED),
}


class Failure(NamedTuple):
    """An error as the user sees it."""

    code: int
    kind: str
    message: str
    digest: str | None = None
    path: str | None = None
    offset: int | None = None

    def document(self) -> dict[str, object]:
        """The JSON document: `{"error": {"kind", "message", "digest"?, "path"?, "offset"?}}`."""
        error: dict[str, object] = {"kind": self.kind, "message": self.message}
        for key in ("digest", "path", "offset"):
            if (value := getattr(self, key)) is not None:
                error[key] = value
        return {"error": error}


def describe(error: BaseException) -> Failure:
    """What to say of an exception, and the exit status that it means."""
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted", "interrupted: what was reported done stays")
    import layerstore

    if isinstance(error, layerstore.LayerstoreError):
        typed = isinstance(error, layerstore.InvalidInputError) and error.reason in _TYPED
        return Failure(
            USAGE if typed else _BY_KIND.get(error.kind, FAILED),
            error.kind,
            str(error),
            error.digest,
            error.path,
            error.offset,
        )
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, MemoryError):
        return Failure(FULL, "memory", "out of memory")
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    message = f"internal error: {detail} (a fault in layerstore; -v shows where)"
    return Failure(FAILED, "internal", message)


def _describe_os_error(error: OSError) -> Failure:
    kind, code = _BY_ERRNO.get(error.errno or 0, ("os-error", FAILED))
    path = _text(error.filename)
    message = error.strerror or str(error) or type(error).__name__
    if path is not None:
        message = f"{path}: {message}"
    for note in getattr(error, "__notes__", ()):
        message = f"{message} ({note})"
    return Failure(code, kind, message, path=path)


def _text(name: object) -> str | None:
    """The name in an OSError: str, bytes, or the number of a file descriptor."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "surrogateescape")
    return name if isinstance(name, str) else None


def code_of_exit(error: SystemExit) -> int:
    """The status that a SystemExit carries."""
    if error.code is None:
        return DONE
    return error.code if isinstance(error.code, int) else FAILED
