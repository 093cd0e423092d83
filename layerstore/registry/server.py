"""The registry served over HTTP by uvicorn (the extra `registry`), until it is told to stop.

Nothing is asked of clients yet: so it listens on loopback only. On SIGINT or SIGTERM requests that are
being answered end first, for a while; what uploads brought is kept, to go on with after a restart.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from .. import InvalidInputError, Store, UnsupportedError
from .app import Cut, Registry
from .logs import AccessLog
from .metrics import Metrics

GRACE = 30
"""Seconds that a request may take when the server is to stop."""
BACKLOG = 512
GONE = 300
"""Seconds after which a peer that acknowledges nothing is taken for gone."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. `idle`: seconds that what no manifest names is kept; `log`: `text`, `json` or None;
    `optimize` and `gc`: `now`, `idle` or `off`, after `quiet` seconds without a request."""

    idle: float = 24 * 3600.0
    sparse: bool = False
    log: str | None = None
    workers: int = 1
    optimize: str = "off"
    gc: str = "off"
    quiet: float = 30.0
    raw_cache: int = 0
    timeout: float | None = None

    @property
    def alone(self) -> bool:
        """Whether one process does it all."""
        return self.workers == 1 and self.optimize == self.gc == "off"


def listen(address: str) -> socket.socket:
    """A listening socket for `HOST:PORT` (port 0: any). Raises InvalidInputError for what is no such
    address, or none of loopback; OSError when it is taken."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError(f"not an address to listen on: {address!r} (HOST:PORT)")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = found[0]
    if not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback:
        raise InvalidInputError(
            f"{address}: whoever reaches this server may read and write everything in it, so it "
            "listens on loopback only (127.0.0.1 or [::1])"
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


def url_of(server: socket.socket) -> str:
    """Where a client finds it."""
    host, port = server.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    store: Store,
    address: str,
    *,
    options: Options,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves a store until a signal stops it; `ready` is called with the URL once requests are taken.
    Raises UnsupportedError where uvicorn is not installed, and what `listen` does."""
    with contextlib.closing(listen(address)) as listening:
        if options.alone:
            run(store, listening, options, ready)
            return
        from .supervisor import supervise

        supervise(store.path, listening, options, ready)


def run(
    store: Store,
    listening: socket.socket,
    options: Options,
    ready: Callable[[str], None] | None = None,
    *,
    metrics: Metrics | None = None,
    busy: Callable[[], None] = lambda: None,
) -> None:
    """Serves a store on a socket in this process."""
    try:
        import uvicorn
    except ImportError as e:
        raise UnsupportedError(
            "the registry needs uvicorn: pip install 'layerstore[registry]'"
        ) from e

    class Server(uvicorn.Server):
        """Ends on a signal, and leaves it at that: a stop that was asked for is no failure."""

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
            # Whoever started this process is to end it; one that was killed cannot.
            return await super().on_tick(counter) or os.getppid() != parent

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                ready(url_of(listening))

    parent = os.getppid()
    registry = Registry(
        store,
        idle=options.idle,
        sparse=options.sparse,
        metrics=metrics,
        log=AccessLog(options.log or "text", enabled=options.log is not None),
        busy=busy,
    )
    config = uvicorn.Config(
        registry,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        lifespan="on",
    )
    logging.getLogger("uvicorn.error").addFilter(_brief)
    Server(config).run(sockets=[listening])


def _brief(record: logging.LogRecord) -> bool:
    """A cut that is ours is no fault of the program: it is said without a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Cut):
        record.exc_info, record.msg, record.args = None, str(error), ()
    return True
