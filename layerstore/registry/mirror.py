"""A mirror of another registry: what is asked for and not here is fetched, once, while it is given out.

A repository of the upstream is kept under its whole name, `HOST/NAME`: what the store has else is not
shown, and a pull under that name finds what the mirror has. Digests never change, so what is here is
given out without a question. A tag is asked for again after its time to live, by one worker for all;
while the upstream does not answer, the last digest that it named counts, with `Warning: 110` (RFC
9111), and for `PAUSE` seconds it is not asked again. Blobs come by `fetches`, once for all who wait.
Where an idle time is set, what nobody has asked for so long is gc's to let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from .. import (
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
    NotFoundError,
    PermissionDeniedError,
    Remote,
    RemoteError,
    RemoteOptions,
)
from . import blobs, listings, manifests
from .asked import Asked
from .blobs import described
from .claims import TICK, Claims
from .fetches import Fetch
from .http import Failure, Request, Response, document
from .listings import INDEX, linked, page
from .routes import Route, is_tag

if TYPE_CHECKING:
    from .app import Registry

T = TypeVar("T")
FETCHES = 8
"""Blobs that are fetched at the same time; more wait."""
PAUSE = 10.0
UPSTREAM = RemoteOptions(timeout=30.0, tries=3)
"""How an upstream is asked if nothing else is said: clients wait for what comes from it."""
AWAY = ("", "")
"""What is asked for when the upstream does not answer, as far as the table of moments is concerned."""
WARNING = ("Warning", '110 layerstore "the upstream does not answer: this may be stale"')


class Mirror:
    """What a registry needs to be a mirror: `upstream` is `docker://HOST[:PORT][/PREFIX]`, `ttl` the
    seconds that a tag is believed, `idle` those that something is kept which nobody asks for (None: for
    good), `shared` the directory by which several processes on one store do their fetches once. Made
    outside of the event loop; `close` ends fetches."""

    def __init__(
        self,
        upstream: str,
        *,
        ttl: float = 3600.0,
        idle: float | None = None,
        shared: str | None = None,
        options: RemoteOptions | None = None,
    ) -> None:
        self.stopped = threading.Event()
        self.remote, self._prefix = Remote.of(upstream, options or UPSTREAM, stopped=self.stopped)
        self.ttl = ttl
        self._idle = idle
        self.lends = idle is not None
        self.claims = Claims(shared)
        self.pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="layerstore-mirror")
        self._questions = ThreadPoolExecutor(FETCHES, thread_name_prefix="layerstore-mirror-asks")
        self._fetches: dict[tuple[str, str], Fetch] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._asked = Asked(shared)

    def close(self) -> None:
        """Ends what is on its way, and the connections."""
        self.stopped.set()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._questions.shutdown(wait=True, cancel_futures=True)
        self.remote.close()
        self._asked.close()

    # ---- requests -----------------------------------------------------------------------------

    async def answer(self, registry: Registry, route: Route, request: Request) -> Response:
        """What a mirror answers instead of a registry."""
        if request.method not in ("GET", "HEAD"):
            raise Failure(
                405,
                "UNSUPPORTED",
                f"this is a mirror of {self.remote.host}: push there",
                headers=(("Allow", "GET, HEAD"),),
            )
        namespace = request.one("ns")
        if namespace is not None and namespace != self.remote.host:
            raise Failure(404, "NAME_UNKNOWN", f"this is a mirror of {self.remote.host} only")
        if route.kind == "catalog":
            return await self._catalog(registry, request)
        upstream = f"{self._prefix}/{route.name}" if self._prefix else route.name
        here = Route(route.kind, f"{self.remote.host}/{upstream}", route.argument)
        if len(here.name) > 255:
            raise Failure(400, "NAME_INVALID", "the name is too long with the upstream's before it")
        if route.kind == "blob":
            return await self._blob(registry, here, upstream, request)
        if route.kind == "manifest":
            return await self._manifest(registry, here, upstream, request)
        if route.kind == "tags":
            return await self._tags(registry, route, here, upstream, request)
        if route.kind == "referrers":
            return await self._referrers(registry, route, here, upstream, request)
        raise Failure(404, "BLOB_UPLOAD_UNKNOWN", "a mirror has no uploads")

    def forget(self, key: tuple[str, str]) -> None:
        """A fetch has ended."""
        self._fetches.pop(key, None)

    @contextlib.asynccontextmanager
    async def _turn(self, key: tuple[str, str], *, across: bool = False) -> AsyncIterator[None]:
        """One after the other, for each key: who comes later finds what the first has brought.
        `across`: of all processes."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        claim = self.claims.of("manifest", *key) if across else None
        try:
            async with lock:
                while claim is not None and not claim.take():
                    await asyncio.sleep(TICK)
                try:
                    yield
                finally:
                    if claim is not None:
                        claim.release()
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _ask(self, work: Callable[..., T], *args: object) -> T:
        """A question to the upstream, in a thread. Raises RemoteError at once while it is away."""
        if self._asked.age(*AWAY) < PAUSE:
            raise RemoteError(f"{self.remote.host} did not answer a moment ago")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._questions, work, *args)
        except RemoteError:
            self._asked.note(*AWAY)
            raise

    # ---- manifests and lists ------------------------------------------------------------------

    async def _manifest(
        self, registry: Registry, here: Route, upstream: str, request: Request
    ) -> Response:
        key = (here.name, here.argument)
        try:
            async with self._turn(key, across=True):
                stale = await self._refresh(registry, here, upstream)
        except (RemoteError, InvalidInputError, LimitError) as e:
            raise _gateway(e) from e
        response = await manifests.get(registry, here, request)
        if stale:
            response.headers.append(WARNING)
        return response

    async def _refresh(self, registry: Registry, here: Route, upstream: str) -> bool:
        """Sees that a manifest is here, and a tag as young as it has to be. True: it may be stale."""
        repository = registry.repository(here.name)
        try:
            known = (await registry.run(repository.manifest, here.argument)).digest
        except NotFoundError:
            known = None
        key = (here.name, here.argument)
        if known is not None and (":" in here.argument or self._asked.age(*key) < self.ttl):
            return False
        try:
            if known is not None:
                now = await self._ask(self.remote.resolve, upstream, here.argument)
                if now.digest == known:
                    self._asked.note(*key)
                    return False
            got = await self._ask(self.remote.manifest, upstream, here.argument)
        except NotFoundError:
            if known is not None:
                with contextlib.suppress(NotFoundError):
                    await registry.run(repository.remove_tag, here.argument)
            raise
        except PermissionDeniedError as e:
            raise NotFoundError(e.message) from e
        except (RemoteError, InvalidInputError, LimitError):
            if known is not None:
                return True
            raise
        tags = () if ":" in here.argument else (here.argument,)
        kind = got.media_type or "application/vnd.oci.image.manifest.v1+json"
        await registry.run(
            repository.put_manifest,
            got.data,
            kind,
            tags=tags,
            digest=got.digest,
            sparse=True,
            keep=self._idle,
        )
        self._asked.note(*key)
        return False

    async def _tags(
        self, registry: Registry, route: Route, here: Route, upstream: str, request: Request
    ) -> Response:
        """The upstream's list while it answers, else of what is here."""
        try:
            found = sorted(await self._ask(self.remote.tags, upstream))
        except PermissionDeniedError as e:
            raise NotFoundError(e.message) from e
        except (RemoteError, InvalidInputError, LimitError):
            response = await listings.tags(registry, here, request, route.name)
            response.headers.append(WARNING)
            return response
        limit, last = page(request)
        found = [tag for tag in found if tag > last and is_tag(tag)]
        more, found = len(found) > limit, found[:limit]
        answer = document({"name": route.name, "tags": found})
        return linked(answer, f"/v2/{route.name}/tags/list", found, limit, more)

    async def _referrers(
        self, registry: Registry, route: Route, here: Route, upstream: str, request: Request
    ) -> Response:
        """The same of what refers to a manifest."""
        try:
            data = await self._ask(self.remote.referrers, upstream, here.argument)
            listed = json.loads(data)["manifests"] if data is not None else []
            wanted = request.one("artifactType")
            if wanted is not None:
                listed = [one for one in listed if one.get("artifactType") == wanted]
            headers = () if wanted is None else (("OCI-Filters-Applied", "artifactType"),)
            value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
            return document(value, headers=headers, kind=INDEX)
        except (
            LayerstoreError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            response = await listings.referrers(registry, here, request, route.name)
            response.headers.append(WARNING)
            return response

    async def _catalog(self, registry: Registry, request: Request) -> Response:
        """What is here of the upstream."""
        limit, last = page(request)
        prefix = f"{self.remote.host}/" + (f"{self._prefix}/" if self._prefix else "")
        after = prefix + last
        found = await registry.run(registry.store.repositories, after, limit + 1)
        found = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        more, found = len(found) > limit, found[:limit]
        answer = document({"repositories": found})
        return linked(answer, "/v2/_catalog", found, limit, more)

    # ---- blobs --------------------------------------------------------------------------------

    async def _blob(
        self, registry: Registry, here: Route, upstream: str, request: Request
    ) -> Response:
        key = (here.name, here.argument)
        if key not in self._fetches:
            with contextlib.suppress(NotFoundError):
                return await self._here(registry, here, request)
        try:
            async with self._turn(key):
                fetch = self._fetches.get(key)
                if fetch is None:
                    found = await self._begin(registry, here, upstream, request)
                    if isinstance(found, Response):
                        return found
                    fetch = self._fetches[key] = found
                    fetch.begin()
            if not await fetch.started():
                return await self._here(registry, here, request)
        except PermissionDeniedError as e:
            raise NotFoundError(e.message) from e
        except (RemoteError, DigestMismatchError) as e:
            raise _gateway(e) from e
        same = blobs.unchanged(request, here.argument)
        if same is not None:
            return same
        response = described(here.argument)
        response.length = fetch.size
        span = blobs.wanted_range(request, here.argument, fetch.size)
        first, last = span if span is not None else (0, fetch.size - 1)
        if span is not None:
            response.status = 206
            response.add("Content-Range", f"bytes {first}-{last}/{fetch.size}")
            response.length = last - first + 1
        if request.method != "HEAD":
            response.pieces = fetch.pieces(registry, first, last + 1)
        return response

    async def _begin(
        self, registry: Registry, here: Route, upstream: str, request: Request
    ) -> Response | Fetch:
        """For one client of many: the answer, if there is one by now, else a fetch."""
        with contextlib.suppress(NotFoundError):
            return await self._here(registry, here, request)
        size = await self._ask(self.remote.blob_size, upstream, here.argument)
        if size is None:
            raise NotFoundError(f"{self.remote.host} has no such blob")
        if size < 0:
            raise RemoteError(f"{self.remote.host} does not say how long a blob is")
        if request.method == "HEAD":
            response = blobs.unchanged(request, here.argument) or described(here.argument)
            response.length = size
            return response
        repository = registry.repository(here.name)
        if await registry.run(repository.mount_any, here.argument, self._is_ours) is not None:
            return await self._here(registry, here, request)
        return Fetch(self, repository, upstream, here.argument, size)

    async def _here(self, registry: Registry, here: Route, request: Request) -> Response:
        """What is stored. Raises NotFoundError."""
        try:
            return await blobs.get(registry, here, request)
        except Failure as failure:
            if failure.status == 404:
                raise NotFoundError(failure.message) from failure
            return failure.response()

    def _is_ours(self, name: str) -> bool:
        """Content that another repository of the same upstream brought need not come again, once the
        upstream has said that this one has it, too."""
        return name.startswith(f"{self.remote.host}/")


def _gateway(error: LayerstoreError) -> Failure:
    """The upstream does not answer, or not as it should."""
    return Failure(502, "UNKNOWN", f"the upstream: {error.message}")
