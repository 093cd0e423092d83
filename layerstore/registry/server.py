"""The registry served over HTTP by uvicorn (the extra `registry`), until it is told to stop.

Nothing is asked of clients yet: so it listens on loopback only. On SIGINT or SIGTERM requests that are
being answered end first, for a while; what uploads brought is kept, to go on with after a restart.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

from .. import InvalidInputError, Store, UnsupportedError
from .app import Registry
from .mirror import Mirror

GRACE = 30
"""Seconds that a request may take when the server is to stop."""
BACKLOG = 512


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
    idle: float,
    sparse: bool = False,
    mirror: Mirror | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves a store until a signal stops it; `ready` is called with the URL once requests are taken.
    Raises UnsupportedError where uvicorn is not installed, and what `listen` does."""
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

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                ready(url_of(listening))

    with contextlib.closing(listen(address)) as listening:
        config = uvicorn.Config(
            Registry(store, idle=idle, sparse=sparse, mirror=mirror),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            lifespan="on",
        )
        Server(config).run(sockets=[listening])
