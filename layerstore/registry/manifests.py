"""Manifests in and out (distribution-spec, "Pulling manifests", "Pushing manifests"): bytes as they
came, under the media type that they came with."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from . import routes
from .blobs import etag, matches
from .http import Failure, Request, Response, empty
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

MAX_TAGS = 64
KEPT = 8 << 20


class Documents:
    """The bytes of manifests that were asked for last, up to `KEPT` bytes of them. Who may read them is
    asked of the store each time."""

    def __init__(self) -> None:
        self._bytes: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def get(self, digest: str) -> bytes | None:
        data = self._bytes.get(digest)
        if data is not None:
            self._bytes.move_to_end(digest)
        return data

    def put(self, digest: str, data: bytes) -> None:
        if digest in self._bytes or len(data) > KEPT // 8:
            return
        self._bytes[digest] = data
        self._size += len(data)
        while self._size > KEPT:
            self._size -= len(self._bytes.popitem(last=False)[1])


async def get(registry: Registry, route: Route, request: Request) -> Response:
    """GET and HEAD by tag or digest."""
    repository = registry.repository(route.name)
    found = repository.manifest_at_once(route.argument)
    if found is None:
        found = await registry.run(repository.manifest, route.argument)
    headers = [
        ("Content-Type", found.media_type),
        ("Docker-Content-Digest", found.digest),
        ("ETag", etag(found.digest)),
    ]
    if matches(request.headers.get("if-none-match"), found.digest):
        return Response(304, headers)
    if request.method == "HEAD":
        return Response(200, headers, length=found.size)
    data = registry.documents.get(found.digest)
    if data is None:
        data = await registry.run(repository.manifest_bytes, found.digest)
        registry.documents.put(found.digest, data)
    return Response(200, headers, data)


async def put(registry: Registry, route: Route, request: Request) -> Response:
    """PUT by tag; or by digest, and with `tag` parameters under several tags at once."""
    media_type = request.headers.get("content-type", "").strip()
    if not media_type:
        raise Failure(400, "MANIFEST_INVALID", "a manifest comes with its Content-Type")
    data = await request.body(registry.config.limits.manifest_bytes)
    tags = list(dict.fromkeys(request.query.get("tag", [])))
    if len(tags) > MAX_TAGS:
        raise Failure(400, "TAG_INVALID", f"more than {MAX_TAGS} tags at once")
    for tag in tags:
        routes.check_tag(tag)
    digest = None
    if ":" in route.argument:
        digest = route.argument
    else:
        if tags:
            raise Failure(400, "TAG_INVALID", "tag parameters go with a digest in the path")
        tags = [route.argument]
    info, subject = await registry.run(
        registry.repository(route.name).put_manifest,
        data,
        media_type,
        tags=tags,
        digest=digest,
        sparse=registry.config.sparse,
        overwrite=request.caller.may("overwrite", route.name),
        create=request.caller.may("create", route.name),
    )
    response = empty(
        201,
        ("Location", f"/v2/{route.name}/manifests/{route.argument}"),
        ("Docker-Content-Digest", info.digest),
    )
    if subject is not None:
        response.add("OCI-Subject", subject)
    if digest is not None:
        for tag in tags:
            response.add("OCI-Tag", tag)
    return response


async def delete(registry: Registry, route: Route, request: Request) -> Response:
    """DELETE by digest: the manifest and its tags; by tag: the tag alone."""
    repository = registry.repository(route.name)
    if ":" in route.argument:
        await registry.run(repository.remove_manifest, route.argument)
    else:
        await registry.run(repository.remove_tag, route.argument)
    return empty(202)
