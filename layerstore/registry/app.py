"""The application: from a request to its handler, and from errors to the answers of the specification.

A request goes through one gate: its path is parsed, its caller made out, its rights looked up in the
table of actions, and only then is the store asked. What is not in the table is not reached.
Handlers are coroutines; what they ask of the store runs in threads, since it waits for the disk and
computes outside the GIL. Nothing that a client sends can make more than one piece of it be held.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    PermissionDeniedError,
    Repository,
    RepositoryLimits,
    Store,
    StoreFullError,
    UnsupportedError,
)
from . import blobs, health, listings, logins, manifests, routes, uploads
from .authentication import Authentication, scopes
from .config import Config
from .http import Disconnected, Failure, Message, Receive, Request, Response, Scope, Send, document
from .logs import AccessLog
from .metrics import Metrics
from .mirror import Mirror
from .routes import Route
from .watch import Watch

T = TypeVar("T")
log = logging.getLogger("layerstore.registry")
THREADS = 16
TICK = 0.02
LAST = 10.0
"""Seconds that requests which were cut have to put away what they were at."""
VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


class Registry:
    """An ASGI application over one open store, which the caller closes after it. `mirror`: of which
    registry it is one; it is closed with the application. `busy` is called whenever something happens.
    `secret` is what processes share that are to know each other's tokens. Raises InvalidInputError,
    UnsupportedError, OSError for users or keys of the configuration that cannot be read."""

    def __init__(
        self,
        store: Store,
        config: Config | None = None,
        *,
        mirror: Mirror | None = None,
        threads: int = THREADS,
        metrics: Metrics | None = None,
        log: AccessLog | None = None,
        busy: Callable[[], None] = lambda: None,
        secret: bytes | None = None,
    ) -> None:
        self.store = store
        self.config = config if config is not None else Config()
        self.mirror = mirror
        self.authentication = Authentication(self.config.access, secret)
        self.uploads = uploads.Known()
        limits = self.config.limits
        self._limits = RepositoryLimits(
            upload_bytes=limits.upload_bytes,
            repository_bytes=limits.repository_bytes,
            open_uploads=limits.open_uploads,
        )
        self.documents = manifests.Documents()
        self.metrics = metrics if metrics is not None else Metrics()
        self.log = log if log is not None else AccessLog(enabled=False)
        self.busy = busy
        self.stopping = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="layerstore-registry")

    async def run(self, work: Callable[..., T], *args: object, **named: object) -> T:
        """A call of the store, in a thread. Who is cancelled waits for its end all the same: what the
        call works on is not used by anybody else, or closed, before."""
        call = self._pool.submit(functools.partial(work, *args, **named))
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            while not call.done():
                await asyncio.sleep(TICK)
            raise

    def stop(self) -> None:
        """The time in which requests could end is over: what is still going on will be cut."""
        self.stopping = True
        if self.mirror is not None:
            self.mirror.stopped.set()

    def repository(self, name: str) -> Repository:
        return self.store.repository(
            name,
            idle=self.config.maintenance.idle,
            limits=self._limits,
            lent=self.mirror is not None and self.mirror.lends,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"not HTTP: {scope['type']}")
        limits = self.config.limits
        watch = Watch(self, scope, receive, send)
        try:
            request = None
            try:
                request = Request(
                    scope,
                    watch.receive,
                    header_bytes=limits.header_bytes,
                    patience=limits.body_idle,
                )
                response = await self._answer(request, watch)
            except Disconnected:
                return
            except Failure as failure:
                response = failure.response()
            await self._send(response, request, scope, watch.send)
        except asyncio.CancelledError:
            # The server gives up waiting: its client sees the connection end, its log a request that
            # was cut.
            self.stopping = True
            await _abort(scope)
        finally:
            watch.end()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                end = time.monotonic() + LAST
                while self.metrics.in_flight and time.monotonic() < end:
                    await asyncio.sleep(TICK)
                self.metrics.save(now=True)
                if self.mirror is not None:
                    await self.run(self.mirror.close)
                self._pool.shutdown(wait=True)
                self.authentication.close()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, request: Request, watch: Watch) -> Response:
        route = routes.parse(request.path)
        watch.kind = route.kind
        action = self._action(route, request)
        request.caller = await self.authentication.caller(request)
        self._authorize(route, action, request)
        try:
            own = action.operation or route.kind in ("base", "login")
            if self.mirror is not None and not own:
                return await self.mirror.answer(self, route, request)
            return await action.handler(self, route, request)
        except PermissionDeniedError as e:
            raise Failure(403, "DENIED", e.message) from e
        except LayerstoreError as e:
            raise failure(e, route) from e

    def _action(self, route: Route, request: Request) -> Action:
        method = "GET" if request.method == "HEAD" else request.method
        action = ACTIONS.get((route.kind, method))
        if route.kind == "metrics" and not self.config.metrics.enabled:
            raise Failure(404, "UNSUPPORTED", "there is nothing at this path")
        allowed = sorted(m for kind, m in ACTIONS if kind == route.kind)
        if action is None or (self.config.readonly and method != "GET"):
            reason = f"{request.method[:20]} is not for this path"
            if action is not None:
                reason, allowed = "the registry is read-only", ["GET"]
            headers = (("Allow", ", ".join(allowed)),)
            raise Failure(405, "UNSUPPORTED", reason, headers=headers)
        return action

    def _authorize(self, route: Route, action: Action, request: Request) -> None:
        """Fails for a caller who has none of the rights that an action needs one of."""
        caller = request.caller
        if action.operation:
            # Health is for everybody; what is counted is for whoever has said who they are.
            allowed = (
                route.kind != "metrics" or caller.name is not None or not self.authentication.asks
            )
        elif route.kind == "login":
            allowed = True
        elif route.name:
            allowed = any(caller.may(right, route.name) for right in action.rights)
        else:
            # The base is where clients ask whether they need credentials, and try those that they
            # have; the catalog shows to each what it may pull.
            allowed = (
                caller.name is not None
                or caller.token is not None
                or not self.authentication.asks
                or (route.kind == "catalog" and caller.policy.anyone_may_pull())
            )
        if not allowed:
            raise self.authentication.refusal(
                caller, scopes(route, action.rights, uploads.mount_source(request))
            )

    async def _send(
        self, response: Response, request: Request | None, scope: Scope, send: Send
    ) -> None:
        head = scope["method"] == "HEAD"
        length = len(response.body) if response.length is None else response.length
        headers = [*response.headers, VERSION]
        if response.status not in (204, 304):
            headers.append(("Content-Length", str(length)))
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        pieces = response.pieces
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": raw})
            if head or pieces is None or request is None:
                body = b"" if head else response.body
                await send({"type": "http.response.body", "body": body})
            else:
                await self._stream(pieces, request, scope, send)
        finally:
            if pieces is not None:
                with contextlib.suppress(RuntimeError):
                    await pieces.aclose()  # type: ignore[attr-defined]

    async def _stream(
        self,
        pieces: AsyncIterator[bytes | memoryview],
        request: Request,
        scope: Scope,
        send: Send,
    ) -> None:
        """A body as it is made, to a client that takes it. Otherwise, and where a blob turns out to be
        damaged before its last piece, the connection is cut: the client sees that the length was not
        reached."""
        gone = asyncio.ensure_future(request.gone())
        try:
            async for piece in pieces:
                if gone.done():
                    return
                body = {"type": "http.response.body", "body": _bytes(piece), "more_body": True}
                await self._give(body, scope, send)
            await send({"type": "http.response.body", "body": b""})
        except (LayerstoreError, OSError, EOFError) as e:
            if isinstance(e, CorruptError):
                self.metrics.add("damaged_total")
                self.log.event("damaged", digest=e.digest, path=request.path)
            log.error("%s is cut off: %s", request.path, str(e) or "its client takes nothing")
            await _abort(scope)
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    async def _give(self, message: Message, scope: Scope, send: Send) -> None:
        """A piece to a client that takes it, however slowly; raises TimeoutError when it takes nothing
        for `body_idle` seconds."""
        unsent: Callable[[], int] = scope.get("state", {}).get("unsent", lambda: 0)
        sending = asyncio.ensure_future(send(message))
        try:
            await asyncio.sleep(0)  # it begins
            left = unsent()
            while not (await asyncio.wait((sending,), timeout=self.config.limits.body_idle))[0]:
                before, left = left, unsent()
                if left >= before:
                    raise TimeoutError
            await sending
        finally:
            sending.cancel()


async def _abort(scope: Scope) -> None:
    """Ends a connection in the middle of an answer."""
    scope.get("state", {}).get("abort", lambda: None)()
    await asyncio.sleep(0)  # the server notices before it misses the rest of the answer


def _bytes(piece: bytes | memoryview) -> bytes:
    """A piece as a server wants it; what was read as one is not copied."""
    if isinstance(piece, memoryview) and type(piece.obj) is bytes and piece.contiguous:
        whole: bytes = piece.obj
        return whole if piece.nbytes == len(whole) else bytes(piece)
    return bytes(piece)


@dataclass(frozen=True, slots=True)
class Action:
    """What answers a request, and the rights of which its caller needs one; `operation`: of the server
    itself, not of what it keeps."""

    handler: Callable[[Registry, Route, Request], Awaitable[Response]]
    rights: tuple[str, ...]
    operation: bool = False


async def base(registry: Registry, route: Route, request: Request) -> Response:
    """GET of /v2/: yes, this is a registry (distribution-spec, "Determining Support")."""
    return document({})


PULL = ("pull",)
PUSH = ("create", "overwrite")
DELETE = ("delete",)

ACTIONS = {
    ("health", "GET"): Action(health.alive, (), operation=True),
    ("ready", "GET"): Action(health.ready, (), operation=True),
    ("metrics", "GET"): Action(health.metrics, (), operation=True),
    ("base", "GET"): Action(base, ()),
    ("login", "GET"): Action(logins.give, ()),
    ("catalog", "GET"): Action(listings.catalog, ()),
    ("tags", "GET"): Action(listings.tags, PULL),
    ("referrers", "GET"): Action(listings.referrers, PULL),
    ("blob", "GET"): Action(blobs.get, PULL),
    ("blob", "DELETE"): Action(blobs.delete, DELETE),
    ("manifest", "GET"): Action(manifests.get, PULL),
    ("manifest", "PUT"): Action(manifests.put, PUSH),
    ("manifest", "DELETE"): Action(manifests.delete, DELETE),
    ("uploads", "POST"): Action(uploads.begin, PUSH),
    ("upload", "GET"): Action(uploads.status, PUSH),
    ("upload", "PATCH"): Action(uploads.patch, PUSH),
    ("upload", "PUT"): Action(uploads.finish, PUSH),
    ("upload", "DELETE"): Action(uploads.cancel, PUSH),
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
        if route.kind == "upload":
            return Failure(409, "BLOB_UPLOAD_INVALID", "somebody else is writing this upload")
        return Failure(429, "TOOMANYREQUESTS", error.message, headers=(("Retry-After", "5"),))
    if isinstance(error, CorruptError):
        return Failure(500, "UNKNOWN", "what is stored under this digest is damaged")
    raise error
