"""A mirror of another registry: what is asked for and not here is fetched, once, while it is given out.

A repository of the upstream is kept under its whole name, `HOST/NAME`: what the store has else is not
shown, and a pull under that name finds what the mirror has. Digests never change, so what is here is
given out without a question. A tag is asked for again after its time to live; while the upstream does
not answer, the last digest that it named counts, with `Warning: 110` (RFC 9111), and for `PAUSE`
seconds it is not asked again. Who asks for a blob that is on its way gets the bytes as they come: a
fetch is a thread that writes an upload of the repository, its readers read that file behind it. The
last byte is given out only when the digest is right and the blob is stored; else the answer is
aborted, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections import OrderedDict
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
    Repository,
    RepositoryUpload,
)
from . import blobs, listings, manifests
from .blobs import described
from .http import Failure, Request, Response, document
from .listings import INDEX, linked, page
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

T = TypeVar("T")
FETCHES = 8
"""Blobs that are fetched at the same time; more wait."""
PAUSE = 10.0
PIECE = 1 << 20
MAX_TAGS = 65536
"""Tags of which is remembered when they were asked for."""
WARNING = ("Warning", '110 layerstore "the upstream does not answer: this may be stale"')


class Mirror:
    """What a registry needs to be a mirror: `upstream` is `docker://HOST[:PORT][/PREFIX]`, `ttl` the
    seconds that a tag is believed. Made outside of the event loop; `close` ends fetches."""

    def __init__(
        self, upstream: str, *, ttl: float = 3600.0, options: RemoteOptions | None = None
    ) -> None:
        self._stopped = threading.Event()
        self.remote, self._prefix = Remote.of(
            upstream, options or RemoteOptions(timeout=30.0, tries=3), stopped=self._stopped
        )
        self.ttl = ttl
        self.pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="layerstore-mirror")
        self._questions = ThreadPoolExecutor(FETCHES, thread_name_prefix="layerstore-mirror-asks")
        self._fetches: dict[tuple[str, str], Fetch] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._away_until = 0.0

    def close(self) -> None:
        """Ends what is on its way, and the connections."""
        self._stopped.set()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._questions.shutdown(wait=True, cancel_futures=True)
        self.remote.close()

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
            return await self._referrers(registry, here, upstream, request)
        raise Failure(404, "BLOB_UPLOAD_UNKNOWN", "a mirror has no uploads")

    def forget(self, key: tuple[str, str]) -> None:
        """A fetch has ended."""
        self._fetches.pop(key, None)

    @contextlib.asynccontextmanager
    async def _turn(self, key: tuple[str, str]) -> AsyncIterator[None]:
        """One after the other, for each key: who comes later finds what the first has brought."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _ask(self, work: Callable[..., T], *args: object) -> T:
        """A question to the upstream, in a thread. Raises RemoteError at once while it is away."""
        if time.monotonic() < self._away_until:
            raise RemoteError(f"{self.remote.host} did not answer a moment ago")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._questions, work, *args)
        except RemoteError:
            self._away_until = time.monotonic() + PAUSE
            raise

    # ---- manifests and lists ------------------------------------------------------------------

    async def _manifest(
        self, registry: Registry, here: Route, upstream: str, request: Request
    ) -> Response:
        key = (here.name, here.argument)
        try:
            async with self._turn(key):
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
        if known is not None and (
            ":" in here.argument or time.monotonic() - self._asked.get(key, -self.ttl) < self.ttl
        ):
            return False
        try:
            if known is not None:
                now = await self._ask(self.remote.resolve, upstream, here.argument)
                if now.digest == known:
                    self._note(key)
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
        )
        self._note(key)
        return False

    def _note(self, key: tuple[str, str]) -> None:
        self._asked[key] = time.monotonic()
        self._asked.move_to_end(key)
        while len(self._asked) > MAX_TAGS:
            self._asked.popitem(last=False)

    async def _tags(
        self, registry: Registry, route: Route, here: Route, upstream: str, request: Request
    ) -> Response:
        """The upstream's list while it answers, else of what is here."""
        try:
            found = sorted(await self._ask(self.remote.tags, upstream))
        except PermissionDeniedError as e:
            raise NotFoundError(e.message) from e
        except (RemoteError, InvalidInputError, LimitError):
            response = await listings.tags(registry, here, request)
            value = json.loads(response.body)
            response = document({"name": route.name, "tags": value["tags"]})
            response.headers.append(WARNING)
            return response
        limit, last = page(request)
        found = [tag for tag in found if tag > last]
        more, found = len(found) > limit, found[:limit]
        answer = document({"name": route.name, "tags": found})
        return linked(answer, f"/v2/{route.name}/tags/list", found, limit, more)

    async def _referrers(
        self, registry: Registry, here: Route, upstream: str, request: Request
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
        except (LayerstoreError, ValueError, KeyError, TypeError, AttributeError):
            response = await listings.referrers(registry, here, request)
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
            await fetch.started()
        except PermissionDeniedError as e:
            raise NotFoundError(e.message) from e
        except (RemoteError, DigestMismatchError) as e:
            raise _gateway(e) from e
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
            response = described(here.argument)
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


class _Growing:
    """A descriptor of what is being fetched, closed with the last of its readers."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Fetch:
    """A blob on its way into a repository. Made and asked in the event loop; a thread brings it."""

    def __init__(
        self, mirror: Mirror, repository: Repository, upstream: str, digest: str, size: int
    ) -> None:
        self.size = size
        self._mirror = mirror
        self._repository = repository
        self._upstream = upstream
        self._digest = digest
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._there = 0
        self._file: _Growing | None = None
        self._done = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        self._loop.run_in_executor(self._mirror.pool, self._run)

    def _run(self) -> None:
        """The thread: upstream to upload, and a word to the loop for each piece."""
        error: BaseException | None = None
        try:
            upload = self._repository.upload()
            try:
                self._bring(upload)
            except BaseException:
                upload.abort()
                raise
        except BaseException as e:
            error = e
        self._say(self._end, error)

    def _bring(self, upload: RepositoryUpload) -> None:
        remote = self._mirror.remote
        with remote.open_blob(self._upstream, self._digest, self.size) as blob:
            # Opened before the first reader is let in: what is refused, is refused with a status.
            piece = blob.read(PIECE)
            self._say(self._begun, upload.reader())
            while piece:
                upload.write(piece)
                self._say(self._came, upload.offset)
                piece = blob.read(PIECE)
        upload.commit(self._digest)

    def _say(self, what: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *args)

    def _begun(self, file: int) -> None:
        self._file = _Growing(file)
        self._tick()

    def _came(self, there: int) -> None:
        self._there = there
        self._tick()

    def _end(self, error: BaseException | None) -> None:
        self._done, self._error = True, error
        self._mirror.forget((self._repository.name, self._digest))
        self._tick()

    def _tick(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def started(self) -> None:
        """Until its first bytes are there. Raises what kept them from coming."""
        while self._file is None and not self._done:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    async def pieces(self, registry: Registry, first: int, end: int) -> AsyncIterator[bytes]:
        """Bytes from `first` to before `end`, as they come. The last of the blob waits for the digest.
        Raises what ended the fetch."""
        at = first
        while at < end:
            there = self.size if self._done else min(self._there, self.size - 1)
            if self._error is not None:
                raise self._error
            if at < min(there, end):
                assert self._file is not None
                size = min(PIECE, min(there, end) - at)
                data = await registry.run(os.pread, self._file.fd, size, at)
                if not data:
                    raise RemoteError(f"the fetch of {self._digest} ended early")
                at += len(data)
                yield data
                continue
            await self._moved.wait()


def _gateway(error: LayerstoreError) -> Failure:
    """The upstream does not answer, or not as it should."""
    return Failure(502, "UNKNOWN", f"the upstream: {error.message}")
