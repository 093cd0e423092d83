"""The registry served over HTTP by uvicorn (the extra `registry`), until it is told to stop.

Where the configuration does not say who may do what, it listens on loopback only. On SIGINT or
SIGTERM requests that are being answered end first, for a while; what uploads brought is kept, to go on
with after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import FrameType

from .. import InvalidInputError, RemoteOptions, Store, UnsupportedError
from .app import Registry
from .config import Config, Tls
from .logs import AccessLog
from .metrics import Metrics
from .mirror import UPSTREAM, Mirror

BACKLOG = 512
KEEP_ALIVE = 60
"""Seconds that a connection may stay between two requests: its client may be busy meanwhile."""
MARGIN = 5
"""Seconds that requests have to end by themselves once their connections were cut."""
GONE = 300
"""Seconds after which a peer that acknowledges nothing is taken for gone."""

TICKS = 10
"""Calls of `on_tick` in a second (uvicorn)."""
TRIM_EVERY = 30.0
"""Seconds until freed memory that lies between what is in use goes back to the kernel once more."""

_MALLOPT = {-8: 2, -1: 16 << 20, -3: 2 << 20}
"""mallopt(3): at most 2 arenas (M_ARENA_MAX); 16 MiB freed at the end of each may stay
(M_TRIM_THRESHOLD); from 2 MiB on an allocation is a mapping of its own (M_MMAP_THRESHOLD)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What no configuration file says: how every process opens the store (`raw_cache` in bytes,
    `timeout` in seconds), and how a mirror speaks to its upstream."""

    raw_cache: int = 0
    timeout: float | None = None
    remote: RemoteOptions | None = None


def listen(address: str, *, anywhere: bool = False) -> socket.socket:
    """A listening socket for `HOST:PORT` (port 0: any). Raises InvalidInputError for what is no such
    address, or none of loopback unless `anywhere` is allowed; OSError when it is taken."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError(f"not an address to listen on: {address!r} (HOST:PORT)")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = found[0]
    loopback = ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback
    if not loopback and not anywhere:
        raise InvalidInputError(
            f"{address}: whoever reaches this server may read and write everything in it, so it "
            "listens on loopback only (127.0.0.1 or [::1]) unless [access] of a configuration says "
            "who may do what"
        )
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted inherits them: a client that vanished without a word is found out.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE // 5)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE // 10)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE * 1000)
        server.bind(where)
        server.listen(BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


def url_of(server: socket.socket, *, tls: bool = False) -> str:
    """Where a client finds it."""
    host, port = server.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_tls(tls: Tls) -> None:
    """Raises InvalidInputError for a certificate and key that cannot be used, or do not fit."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            tls.certificate, tls.key, password=""
        )
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise InvalidInputError(
            f"TLS is not possible with {tls.certificate} and {tls.key}: {e}", path=tls.certificate
        ) from e


def serve(
    store: Store,
    config: Config,
    *,
    options: Options | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves a store until a signal stops it; `ready` is called with the URL once requests are taken.
    Raises UnsupportedError where a package of the extra is not installed, InvalidInputError for a
    configuration that cannot be used, and what `listen` does."""
    options = options or Options()
    upkeep = config.maintenance
    if config.server.tls is not None:
        check_tls(config.server.tls)
    with contextlib.closing(
        listen(config.server.listen, anywhere=config.access is not None)
    ) as listening:
        if config.server.workers == 1 and upkeep.optimize == upkeep.gc == "off":
            run(store, listening, config, options, ready)
            return
        from .supervisor import supervise

        supervise(store.path, listening, config, options, ready)


def run(
    store: Store,
    listening: socket.socket,
    config: Config,
    options: Options,
    ready: Callable[[str], None] | None = None,
    *,
    metrics: Metrics | None = None,
    busy: Callable[[], None] = lambda: None,
    shared: str | None = None,
    secret: bytes | None = None,
) -> None:
    """Serves a store on a socket in this process; `metrics`, `busy`, the directory `shared` and the
    `secret` are those of a supervisor."""
    try:
        import uvicorn

        from .connection import connection
    except ImportError as e:
        raise UnsupportedError(
            "the registry needs uvicorn: pip install 'layerstore[registry]'"
        ) from e
    tls = config.server.tls
    _keep_freed_memory()

    class Server(uvicorn.Server):
        """Ends on a signal, and leaves it at that: a stop that was asked for is no failure."""

        trimming: asyncio.Future[None] | None = None

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, frame: FrameType | None) -> None:
                self.force_exit = self.should_exit
                self.should_exit = True

            before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def on_tick(self, counter: int) -> bool:
            registry.metrics.save()
            if counter % int(TRIM_EVERY * TICKS) == 0:
                self.trimming = asyncio.ensure_future(registry.run(_give_back))
            # A supervisor ends its workers; one that was killed cannot.
            alone = metrics is not None and os.getppid() != parent
            return await super().on_tick(counter) or alone

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Requests may end for the time of grace; then their connections do, so that each finds its
            client gone, and keeps what came."""
            loop = asyncio.get_running_loop()
            over = loop.call_later(config.server.grace, self._cut)
            try:
                await super().shutdown(sockets)
            finally:
                over.cancel()

        def _cut(self) -> None:
            registry.stop()
            for one in list(self.server_state.connections):
                one.transport.abort()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                ready(url_of(listening, tls=tls is not None))

    parent = os.getppid()
    mirror = None
    if config.proxy is not None:
        mirror = Mirror(
            config.proxy.upstream,
            ttl=config.proxy.ttl,
            idle=config.proxy.idle,
            shared=shared,
            options=replace(options.remote or UPSTREAM, slowest=config.proxy.slowest),
        )
    registry = Registry(
        store,
        config,
        mirror=mirror,
        metrics=metrics,
        log=AccessLog(config.log.format, enabled=config.log.access),
        busy=busy,
        secret=secret,
    )
    logging.getLogger("layerstore.registry").setLevel(config.log.level.upper())
    settings = uvicorn.Config(
        registry,
        http=connection(config.limits),
        ws="none",
        proxy_headers=False,
        h11_max_incomplete_event_size=config.limits.header_bytes,
        limit_concurrency=config.limits.connections,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(config.server.grace) + MARGIN,
        lifespan="on",
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    Server(settings).run(sockets=[listening])


def _keep_freed_memory() -> None:
    """The pieces of blobs that are being sent come and go all the time. glibc would give each back to
    the kernel, which then has to map and clear it for the next: a fifth of what a pull costs. An arena
    for each thread would keep many times as much. What is small and stays, such as the state of an
    upload that was left, comes to lie between them: `_give_back` is for the holes in between."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for what, value in _MALLOPT.items():
            mallopt(ctypes.c_int(what), ctypes.c_int(value))


def _give_back() -> None:
    """To the kernel, now and then, whole pages of what is free anywhere (malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
