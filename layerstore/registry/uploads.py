"""Uploads (distribution-spec, "Pushing blobs"): begun, written in pieces, finished, cancelled; mounts.

An upload is a file of the store that outlives this process: its id is all that a client needs to go on
in another worker or after a restart. Between two requests no lock is held on it.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from .. import LayerstoreError, LimitError, RepositoryUpload
from . import routes
from .http import CLOSE, Failure, Request, Response, empty
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\*|\d+))?\Z")
BUFFER = 1 << 20
"""Bytes that are collected before the store sees them."""
MIN_CHUNK = 0
KNOWN = 1024


class Known:
    """What was computed of uploads that this process has seen, the last ones: their ids to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes: OrderedDict[str, object] = OrderedDict()

    def take(self, upload_id: str) -> object:
        with self._lock:
            return self._hashes.pop(upload_id, None)

    def keep(self, upload_id: str, hashes: object) -> None:
        if hashes is None:
            return
        with self._lock:
            self._hashes[upload_id] = hashes
            while len(self._hashes) > KNOWN:
                self._hashes.popitem(last=False)


def mount_source(request: Request) -> str | None:
    """The other repository that a request to mount wants to read."""
    values = request.query.get("from", []) if "mount" in request.query else []
    return values[0] if len(values) == 1 and routes.is_name(values[0]) else None


async def begin(registry: Registry, route: Route, request: Request) -> Response:
    """POST: a new upload; a whole blob at once with `digest`; or a mount with `mount` and `from`."""
    repository = registry.repository(route.name)
    algorithm = request.one("digest-algorithm")
    if algorithm is not None and algorithm not in ("sha256", "sha512", "blake3"):
        raise Failure(400, "DIGEST_INVALID", f"digests of {algorithm[:40]!r} are not known here")
    mounted, source = request.one("mount"), request.one("from")
    if mounted is not None:
        routes.check_digest(mounted)
        if source is None:
            found = await registry.run(
                repository.mount_any, mounted, lambda name: request.caller.may("pull", name)
            )
        else:
            routes.check_name(source)
            # What may not be pulled there is not there: the upload begins, as for any other blob.
            found = None
            if request.caller.may("pull", source):
                found = await registry.run(repository.mount, mounted, registry.repository(source))
        if found is not None:
            return _created(route.name, mounted)
    digest = request.one("digest")
    if digest is not None:
        routes.check_digest(digest)
    upload = await registry.run(repository.upload)
    if digest is None:
        await _close(registry, upload)
        return _status(route.name, upload.id, upload.offset, 202)
    return await _finish(registry, route, request, upload, digest, request.length, keep=False)


async def status(registry: Registry, route: Route, request: Request) -> Response:
    """GET: how much has come. It takes no lock: whoever writes goes on, or begins, meanwhile."""
    repository = registry.repository(route.name)
    size = await registry.run(repository.upload_size, route.argument)
    return _status(route.name, route.argument, size, 204)


async def patch(registry: Registry, route: Route, request: Request) -> Response:
    """PATCH: a piece, at the offset that Content-Range says, or all that comes."""
    upload = await _resume(registry, route)
    try:
        expected = _check_range(route.name, request, upload)
        await _receive(registry, request, upload, expected)
    except LimitError:
        await registry.run(upload.abort)
        raise
    except BaseException:
        await _close(registry, upload)
        raise
    await _close(registry, upload)
    return _status(route.name, upload.id, upload.offset, 202)


async def finish(registry: Registry, route: Route, request: Request) -> Response:
    """PUT: the last piece, if any, and the digest."""
    digest = request.one("digest")
    if digest is None:
        raise Failure(400, "DIGEST_INVALID", "an upload ends with its digest")
    routes.check_digest(digest)
    upload = await _resume(registry, route)
    try:
        expected = _check_range(route.name, request, upload)
    except Failure:
        await _close(registry, upload)
        raise
    return await _finish(registry, route, request, upload, digest, expected, keep=True)


async def cancel(registry: Registry, route: Route, request: Request) -> Response:
    """DELETE: what has come is dropped."""
    upload = await _resume(registry, route)
    await registry.run(upload.abort)
    return empty(204)


async def _finish(
    registry: Registry,
    route: Route,
    request: Request,
    upload: RepositoryUpload,
    digest: str,
    expected: int | None,
    *,
    keep: bool,
) -> Response:
    try:
        await _receive(registry, request, upload, expected)
        await registry.run(upload.commit, digest)
    except LayerstoreError as e:
        # Wrong bytes stay wrong; a full disk may have room later.
        drop = e.kind in ("digest-mismatch", "invalid-input", "limit") or not keep
        await (registry.run(upload.abort) if drop else _close(registry, upload))
        raise
    except BaseException:
        await (_close(registry, upload) if keep else registry.run(upload.abort))
        raise
    return _created(route.name, digest)


async def _resume(registry: Registry, route: Route) -> RepositoryUpload:
    known = registry.uploads.take(route.argument)
    return await registry.run(registry.repository(route.name).resume, route.argument, known)


async def _close(registry: Registry, upload: RepositoryUpload) -> None:
    registry.uploads.keep(upload.id, await registry.run(upload.close))


def _check_range(name: str, request: Request, upload: RepositoryUpload) -> int | None:
    """How long the body has to be, as far as its headers say. Fails for a piece that does not go on
    where the upload stands."""
    length = request.length
    text = request.headers.get("content-range")
    if text is None:
        return length
    match = _RANGE.match(text.strip())
    if match is None:
        raise Failure(400, "BLOB_UPLOAD_INVALID", f"Content-Range is no range: {text[:80]!r}")
    first, last = int(match[1]), int(match[2])
    if first != upload.offset:
        status = _status(name, upload.id, upload.offset, 416)
        raise Failure(
            416,
            "BLOB_UPLOAD_INVALID",
            f"the next byte is {upload.offset}, not {first}",
            headers=tuple(status.headers),
        )
    if length is not None and last - first + 1 != length:
        raise Failure(
            400,
            "SIZE_INVALID",
            f"Content-Range means {last - first + 1} bytes, Content-Length {length}",
        )
    return last - first + 1


async def _receive(
    registry: Registry, request: Request, upload: RepositoryUpload, expected: int | None
) -> None:
    """The body into the upload, of `expected` bytes and no more. What came before a client went away,
    or went silent, stays."""
    if expected is not None:
        upload.check_room(expected)
    parts: list[bytes] = []
    held = got = 0
    writing: asyncio.Future[int] | None = None

    async def settle() -> None:
        nonlocal writing
        before, writing = writing, None
        if before is None:
            return
        try:
            await before
        except BaseException:
            parts.clear()  # what comes behind a gap is not kept
            raise

    async def flush() -> None:
        nonlocal held, writing
        await settle()
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            held = 0
            writing = asyncio.ensure_future(registry.run(upload.write, data))

    try:
        async for piece in request.pieces():
            if expected is not None and got + len(piece) > expected:
                raise Failure(
                    400, "SIZE_INVALID", f"more than {expected} bytes came", headers=CLOSE
                )
            parts.append(piece)
            held += len(piece)
            got += len(piece)
            if held >= BUFFER:
                await flush()
    finally:
        # While one buffer is written the next one comes; whatever ends this, all is written.
        await flush()
        await settle()
    if expected is not None and got != expected:
        raise Failure(400, "SIZE_INVALID", f"{got} bytes came, {expected} were announced")


def _status(name: str, upload_id: str, size: int, code: int) -> Response:
    return empty(
        code,
        ("Location", f"/v2/{name}/blobs/uploads/{upload_id}"),
        ("Range", f"0-{max(0, size - 1)}"),
        ("Docker-Upload-UUID", upload_id),
        ("OCI-Chunk-Min-Length", str(MIN_CHUNK)),
    )


def _created(name: str, digest: str) -> Response:
    return empty(201, ("Location", f"/v2/{name}/blobs/{digest}"), ("Docker-Content-Digest", digest))
