"""Tags, referrers, catalog (distribution-spec, "Content discovery"), paged by `n` and `last`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from . import routes
from .http import Failure, Request, Response, document
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

INDEX = "application/vnd.oci.image.index.v1+json"
PAGE = 1000
"""Entries of a page at most."""


def page(request: Request) -> tuple[int, str]:
    text = request.one("n")
    if text is None:
        return PAGE, request.one("last") or ""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Failure(400, "PAGINATION_NUMBER_INVALID", f"n is no number: {text[:40]!r}")
    return min(int(text), PAGE), request.one("last") or ""


def linked(
    response: Response, path: str, found: list[str], limit: int, more: bool, **others: str
) -> Response:
    if more and found:
        query = urlencode({"n": limit, "last": found[-1], **others})
        response.add("Link", f'<{path}?{query}>; rel="next"')
    return response


async def tags(
    registry: Registry, route: Route, request: Request, shown: str | None = None
) -> Response:
    """GET of the tags of a repository, sorted; `shown`: the name that its client has for it."""
    limit, last = page(request)
    repository = registry.repository(route.name)
    found = await registry.run(repository.tags, last, limit + 1)
    if not found and not await registry.run(repository.exists):
        raise Failure(404, "NAME_UNKNOWN", "there is no such repository")
    more, found = len(found) > limit, found[:limit]
    name = shown or route.name
    answer = document({"name": name, "tags": found})
    return linked(answer, f"/v2/{name}/tags/list", found, limit, more)


async def catalog(registry: Registry, route: Route, request: Request) -> Response:
    """GET of the repositories that may be pulled, sorted."""
    limit, last = page(request)
    if len(last) > routes.MAX_NAME:
        raise Failure(400, "NAME_INVALID", "`last` is longer than any name")
    found: list[str] = []
    for beginning in request.caller.beginnings():
        after, asked = last, limit + 1
        while len(found) <= limit:
            names = await registry.run(registry.store.repositories, after, asked, beginning)
            found += [name for name in names if request.caller.may("pull", name)]
            if len(names) < asked:
                break
            after, asked = names[-1], min(2 * asked, PAGE)  # some were not for this caller
    more, found = len(found) > limit, found[:limit]
    return linked(document({"repositories": found}), "/v2/_catalog", found, limit, more)


async def referrers(
    registry: Registry, route: Route, request: Request, shown: str | None = None
) -> Response:
    """GET of what refers to a manifest, as an index; `artifactType` filters. A page is no larger than
    any manifest is: what its annotations take is its client's memory, and ours."""
    limit, last = page(request)
    wanted = request.one("artifactType")
    found, more = await registry.run(
        registry.repository(route.name).referrers_page,
        route.argument,
        after=last,
        limit=limit,
        max_bytes=registry.config.limits.manifest_bytes,
        artifact_type=wanted,
    )
    entries = []
    for one in found:
        entry: dict[str, object] = {
            "mediaType": one.media_type,
            "digest": one.digest,
            "size": one.size,
        }
        if one.artifact_type is not None:
            entry["artifactType"] = one.artifact_type
        if one.annotations:
            entry["annotations"] = dict(one.annotations)
        entries.append(entry)
    headers = () if wanted is None else (("OCI-Filters-Applied", "artifactType"),)
    value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    answer = document(value, headers=headers, kind=INDEX)
    path = f"/v2/{shown or route.name}/referrers/{route.argument}"
    others = {} if wanted is None else {"artifactType": wanted}
    return linked(answer, path, [one.digest for one in found], limit, more, **others)
