"""Blobs out of a repository: whole, or a range; and away (distribution-spec, "Pulling blobs").

A blob is streamed as it is made and checked on the way; what does not match ends the connection, never
the answer. RFC 9110: Range, If-Range, If-None-Match; a digest is a strong ETag.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Protocol

from .. import LayerstoreError
from .http import Failure, Request, Response, empty
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


class Blob(Protocol):
    """What is needed of a blob that is open."""

    size: int

    def pieces(self, offset: int = 0) -> Iterator[bytes | memoryview]: ...
    def close(self) -> None: ...


def etag(digest: str) -> str:
    return f'"{digest}"'


def matches(header: str | None, digest: str) -> bool:
    """Whether a list of entity tags names this one, weakly (RFC 9110, 13.1.2): a proxy that packs what
    it passes on weakens them."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag(digest) in tags


def unchanged(request: Request, digest: str) -> Response | None:
    """The answer to GET or HEAD of what is there, where its client has it (RFC 9110, 13.1.2)."""
    if not matches(request.headers.get("if-none-match"), digest):
        return None
    return empty(304, ("ETag", etag(digest)))


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
        size = repository.blob_size_at_once(digest)
        if size is None:
            size = await registry.run(repository.blob_size, digest)
        if size is None:
            raise Failure(404, "BLOB_UNKNOWN", "there is no such thing in this repository")
        response = unchanged(request, digest) or described(digest)
        response.length = size
        return response
    blob = await registry.run(repository.open_blob, digest)
    try:
        same = unchanged(request, digest)
        if same is not None:
            await registry.run(blob.close)
            return same
        span = wanted_range(request, digest, blob.size)
    except BaseException:
        await registry.run(blob.close)
        raise
    response = described(digest)
    response.length = blob.size
    first = 0
    if span is not None:
        first, last = span
        response.status = 206
        response.add("Content-Range", f"bytes {first}-{last}/{blob.size}")
        response.length = last - first + 1
    response.pieces = _stream(registry, blob, first, response.length)
    return response


def described(digest: str) -> Response:
    return Response(
        200,
        [
            ("Content-Type", "application/octet-stream"),
            ("Docker-Content-Digest", digest),
            ("ETag", etag(digest)),
            ("Accept-Ranges", "bytes"),
        ],
    )


async def _stream(
    registry: Registry, blob: Blob, first: int, length: int
) -> AsyncIterator[bytes | memoryview]:
    """`length` bytes from `first` on. While one piece is sent the next one is read and checked."""
    pieces = blob.pieces(first)
    coming: asyncio.Future[bytes | memoryview | None] | None = None
    try:
        left = length
        while left:
            if coming is None:
                coming = asyncio.ensure_future(registry.run(next, pieces, None))
            piece = await coming
            coming = None
            if piece is None:
                raise EOFError(f"a blob ended {left} bytes before its size")
            left -= len(piece)
            if left > 0:
                coming = asyncio.ensure_future(registry.run(next, pieces, None))
            else:
                piece = piece[: len(piece) + left]
                left = 0
            yield piece
    finally:
        if coming is not None:
            with contextlib.suppress(LayerstoreError, OSError):
                await coming
        await registry.run(blob.close)


async def delete(registry: Registry, route: Route, request: Request) -> Response:
    """DELETE of a blob: it is no longer read in this repository."""
    await registry.run(registry.repository(route.name).remove_blob, route.argument)
    return empty(202)
