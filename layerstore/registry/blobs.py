"""Blobs out of a repository: whole, or a range; and away (distribution-spec, "Pulling blobs").

A blob is streamed as it is made and checked on the way; what does not match ends the connection, never
the answer. RFC 9110: Range, If-Range, If-None-Match; a digest is a strong ETag.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .http import Failure, Request, Response, empty
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
PIECE = 1 << 20


class Blob(Protocol):
    """What is needed of a blob that is open."""

    size: int

    def chunks(self) -> Iterator[memoryview]: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int = -1, /) -> bytes | None: ...
    def close(self) -> None: ...


def etag(digest: str) -> str:
    return f'"{digest}"'


def matches(header: str | None, digest: str) -> bool:
    """Whether a list of entity tags names this one."""
    if header is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag(digest) in tags


def wanted_range(request: Request, digest: str, size: int) -> tuple[int, int] | None:
    """First and last byte that are asked for, or None for the whole. Fails with 416 for none at all."""
    text = request.headers.get("range")
    if text is None:
        return None
    unless = request.headers.get("if-range")
    if unless is not None and unless.strip() != etag(digest):
        return None
    match = _RANGE.match(text.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None  # several ranges, other units: the whole is a correct answer
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
    else:
        first, last = max(0, size - int(match[2])), size - 1
        if not int(match[2]):
            first = size
    if first >= size:
        raise Failure(
            416,
            "UNSUPPORTED",
            f"the blob has {size} bytes",
            headers=(("Content-Range", f"bytes */{size}"),),
        )
    return first, last


async def get(registry: Registry, route: Route, request: Request) -> Response:
    """GET and HEAD of a blob."""
    repository = registry.repository(route.name)
    digest = route.argument
    if request.method == "HEAD":
        size = await registry.run(repository.blob_size, digest)
        if size is None:
            raise Failure(404, "BLOB_UNKNOWN", "there is no such thing in this repository")
        response = _found(digest)
        response.length = size
        return response
    blob = await registry.run(repository.open_blob, digest)
    try:
        if matches(request.headers.get("if-none-match"), digest):
            await registry.run(blob.close)
            return empty(304, ("ETag", etag(digest)))
        span = wanted_range(request, digest, blob.size)
    except BaseException:
        await registry.run(blob.close)
        raise
    response = _found(digest)
    response.length = blob.size
    if span is None:
        response.pieces = _whole(registry, blob)
    else:
        first, last = span
        response.status = 206
        response.add("Content-Range", f"bytes {first}-{last}/{blob.size}")
        response.length = last - first + 1
        response.pieces = _part(registry, blob, first, response.length)
    return response


def _found(digest: str) -> Response:
    return Response(
        200,
        [
            ("Content-Type", "application/octet-stream"),
            ("Docker-Content-Digest", digest),
            ("ETag", etag(digest)),
            ("Accept-Ranges", "bytes"),
        ],
    )


async def _whole(registry: Registry, blob: Blob) -> AsyncIterator[memoryview]:
    try:
        pieces = blob.chunks()
        while (piece := await registry.run(next, pieces, None)) is not None:
            yield piece
    finally:
        await registry.run(blob.close)


async def _part(registry: Registry, blob: Blob, first: int, length: int) -> AsyncIterator[bytes]:
    try:
        await registry.run(blob.seek, first)
        left = length
        while left:
            piece = await registry.run(_read, blob, min(PIECE, left))
            left -= len(piece)
            yield piece
    finally:
        await registry.run(blob.close)


def _read(blob: BinaryIO, size: int) -> bytes:
    out = blob.read(size)
    if not out:
        raise EOFError("a blob ended before its size")
    return out


async def delete(registry: Registry, route: Route, request: Request) -> Response:
    """DELETE of a blob: it is no longer read in this repository."""
    await registry.run(registry.repository(route.name).remove_blob, route.argument)
    return empty(202)
