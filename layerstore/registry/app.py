"""The application: from a request to its handler, and from errors to the answers of the specification.

Handlers are coroutines; what they ask of the store runs in threads, since it waits for the disk and
computes outside the GIL. Nothing that a client sends can make more than one piece of it be held.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .. import (
    BusyError,
    CorruptError,
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
    MissingBlobsError,
    NotFoundError,
    Repository,
    Store,
    StoreFullError,
    UnsupportedError,
)
from . import blobs, health, listings, manifests, routes, uploads
from .http import Disconnected, Failure, Receive, Request, Response, Scope, Send, document
from .logs import AccessLog
from .metrics import Metrics
from .routes import Route
from .watch import Watch

T = TypeVar("T")
THREADS = 16
VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


class Cut(Exception):
    """An answer that ended before its length, on purpose."""


class Registry:
    """An ASGI application over one open store, which the caller closes after it. `idle`: seconds that a
    blob which no manifest names is kept after somebody last asked for it. `sparse`: manifests of images
    are taken though blobs that they name are not there. `busy` is called whenever something happens."""

    def __init__(
        self,
        store: Store,
        *,
        idle: float = 24 * 3600.0,
        sparse: bool = False,
        threads: int = THREADS,
        metrics: Metrics | None = None,
        log: AccessLog | None = None,
        busy: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.idle = idle
        self.sparse = sparse
        self.uploads = uploads.Known()
        self.documents = manifests.Documents()
        self.metrics = metrics if metrics is not None else Metrics()
        self.log = log if log is not None else AccessLog(enabled=False)
        self.busy = busy
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="layerstore-registry")

    async def run(self, work: Callable[..., T], *args: object, **named: object) -> T:
        """A call of the store, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(work, *args, **named))

    def repository(self, name: str) -> Repository:
        return self.store.repository(name, idle=self.idle)

    def may_pull(self, name: str) -> bool:
        """Whether whoever asks may read a repository."""
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"not HTTP: {scope['type']}")
        watch = Watch(self, scope, receive, send)
        try:
            try:
                request = Request(scope, watch.receive)
                response = await self._answer(request, watch)
            except Disconnected:
                return
            except Failure as failure:
                response = failure.response()
            await self._send(response, scope["method"] == "HEAD", watch.send)
        except CorruptError as e:
            self.metrics.add("damaged_total")
            self.log.event("damaged", digest=e.digest, path=scope["path"])
            raise Cut(f"{scope['path']}: what is stored is damaged; the answer was cut") from e
        finally:
            watch.end()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.metrics.save(now=True)
                self._pool.shutdown(wait=True)
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, request: Request, watch: Watch) -> Response:
        route = routes.parse(request.path)
        watch.kind = route.kind
        try:
            return await self._dispatch(route, request)
        except LayerstoreError as e:
            raise failure(e, route) from e

    async def _dispatch(self, route: Route, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        if route.kind == "base" and method == "GET":
            return document({})
        handler = HANDLERS.get((route.kind, method))
        if handler is None:
            allowed = sorted(m for kind, m in HANDLERS if kind == route.kind)
            raise Failure(
                405,
                "UNSUPPORTED",
                f"{request.method} is not for this path",
                headers=(("Allow", ", ".join(allowed)),),
            )
        return await handler(self, route, request)

    async def _send(self, response: Response, head: bool, send: Send) -> None:
        length = len(response.body) if response.length is None else response.length
        headers = [*response.headers, VERSION]
        if response.status not in (204, 304):
            headers.append(("Content-Length", str(length)))
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        pieces = response.pieces
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": raw})
            if head or pieces is None:
                body = b"" if head else response.body
                await send({"type": "http.response.body", "body": body})
                return
            # A blob that turns out to be damaged raises here, before its last piece: the server then
            # drops the connection, and the client sees that the length was not reached.
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            if pieces is not None:
                with contextlib.suppress(RuntimeError):
                    await pieces.aclose()  # type: ignore[attr-defined]


HANDLERS = {
    ("health", "GET"): health.alive,
    ("ready", "GET"): health.ready,
    ("metrics", "GET"): health.metrics,
    ("catalog", "GET"): listings.catalog,
    ("tags", "GET"): listings.tags,
    ("referrers", "GET"): listings.referrers,
    ("blob", "GET"): blobs.get,
    ("blob", "DELETE"): blobs.delete,
    ("manifest", "GET"): manifests.get,
    ("manifest", "PUT"): manifests.put,
    ("manifest", "DELETE"): manifests.delete,
    ("uploads", "POST"): uploads.begin,
    ("upload", "GET"): uploads.status,
    ("upload", "PATCH"): uploads.patch,
    ("upload", "PUT"): uploads.finish,
    ("upload", "DELETE"): uploads.cancel,
}

_UNKNOWN = {"manifest": "MANIFEST_UNKNOWN", "upload": "BLOB_UPLOAD_UNKNOWN", "tags": "NAME_UNKNOWN"}


def failure(error: LayerstoreError, route: Route) -> Failure:
    """An error of the store as the specification says it. What is of the store alone (paths on its
    disk) stays inside."""
    if isinstance(error, MissingBlobsError):
        detail = [{"digest": digest} for digest in error.digests]
        return Failure(404, "MANIFEST_BLOB_UNKNOWN", error.message, detail)
    if isinstance(error, NotFoundError):
        code = _UNKNOWN.get(route.kind, "BLOB_UNKNOWN")
        return Failure(404, code, "there is no such thing in this repository")
    if isinstance(error, DigestMismatchError):
        return Failure(400, "DIGEST_INVALID", error.message)
    if isinstance(error, LimitError):
        return Failure(413, "SIZE_INVALID", error.message)
    if isinstance(error, StoreFullError):
        return Failure(507, "TOOMANYREQUESTS", "the registry has no space left")
    if isinstance(error, InvalidInputError | UnsupportedError):
        code = "MANIFEST_INVALID" if route.kind == "manifest" else "UNSUPPORTED"
        if getattr(error, "reason", None) in (
            "digest algorithm",
            "digest length",
            "digest grammar",
        ):
            code = "DIGEST_INVALID"
        return Failure(400, code, error.message)
    if isinstance(error, BusyError):
        return Failure(409, "BLOB_UPLOAD_INVALID", "somebody else is writing this upload")
    if isinstance(error, CorruptError):
        return Failure(500, "UNKNOWN", "what is stored under this digest is damaged")
    raise error
