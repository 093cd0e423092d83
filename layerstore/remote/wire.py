"""HTTP, once: one request to one server, through the proxy of the environment, over TLS as configured.

urllib3 does the protocol (the extra `remote`); nothing of it shows above this room. No redirect is
followed, nothing is tried again, no body is decoded here: `client` decides about all of that.
Proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY; never for loopback.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import InvalidInputError, LayerstoreError, NotFoundError, UnsupportedError
from . import sockets
from .names import is_loopback
from .options import RemoteOptions

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager

CONNECT = 15.0
"""Seconds that a connection may take to be made."""
CONNECTIONS = 8
AGENT = "layerstore"
CERTS = ("/etc/containers/certs.d", "/etc/docker/certs.d")
MAX_SMALL = 64 << 10
"""Bytes that are read of an answer which only has to be out of the way, or explains an error."""


class BrokenConnection(Exception):
    """It could not be made, or ended before the answer did. `tls`: because of TLS; `final`: another
    time will be no different."""

    def __init__(self, message: str, *, tls: bool = False, final: bool = False) -> None:
        super().__init__(message)
        self.tls = tls
        self.final = final


class Response:
    """An answer whose body is still to come."""

    def __init__(self, raw: BaseHTTPResponse, url: str) -> None:
        self._raw = raw
        self.url = url
        self.status: int = raw.status

    def header(self, name: str) -> str | None:
        return self._raw.headers.get(name)

    def headers(self, name: str) -> list[str]:
        """All values of a header that may come several times."""
        return list(self._raw.headers.getlist(name))

    @property
    def length(self) -> int | None:
        """Content-Length, if it is a number."""
        text = self.header("Content-Length")
        if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
            return None
        return int(text)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none only at the end. Raises BrokenConnection, also when the end comes
        before Content-Length."""
        import urllib3

        try:
            return self._raw.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise BrokenConnection(_reason(e)) from e

    def small(self, limit: int) -> bytes:
        """The whole body, or its first `limit` + 1 bytes."""
        parts: list[bytes] = []
        left = limit + 1
        while left and (piece := self.read(min(left, MAX_SMALL))):
            parts.append(piece)
            left -= len(piece)
        if left:
            self._raw.release_conn()
        else:
            self.close()
        return b"".join(parts)

    def drop(self) -> None:
        """Takes what is left of a short answer off the connection, which can be used again then."""
        try:
            self.small(MAX_SMALL)
        except BrokenConnection:
            self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._raw.close()


class Wire:
    """Connections to one registry and to the servers that it sends us to. Thread-safe. `stopped` set:
    whatever waits gives up with BrokenConnection."""

    def __init__(
        self, host: str, options: RemoteOptions, stopped: threading.Event | None = None
    ) -> None:
        try:
            import urllib3
        except ImportError as e:
            raise UnsupportedError(
                "registries are reached through urllib3: pip install 'layerstore[remote]'"
            ) from e
        self._options = options
        self._stopped = stopped or threading.Event()
        self._timeout = urllib3.Timeout(connect=min(CONNECT, options.timeout), read=options.timeout)
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, bool], PoolManager] = {}
        self._folders = _cert_folders(host, options)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        own: bool = True,
    ) -> Response:
        """One request. `own`: to the registry itself, which may see our client certificate. Raises
        BrokenConnection."""
        import urllib3

        sent = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
        try:
            raw = self._pool(url, own).urlopen(
                method,
                url,
                body=body,
                headers=sent,
                redirect=False,
                retries=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except urllib3.exceptions.LocationValueError as e:
            raise BrokenConnection(f"not a URL: {url[:300]!r} ({e})", final=True) from e
        except urllib3.exceptions.SSLError as e:
            verify = "certificate verify failed" in str(e) or "CertificateError" in str(e)
            raise BrokenConnection(_reason(e), tls=True, final=verify) from e
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise BrokenConnection(_reason(e)) from e
        return Response(raw, url)

    def close(self) -> None:
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _pool(self, url: str, own: bool) -> PoolManager:
        import urllib3

        proxy = proxy_for(url) or ""
        with self._lock:
            pool = self._pools.get((proxy, own))
            if pool is None:
                named: dict[str, Any] = {
                    "maxsize": CONNECTIONS,
                    "ssl_context": self._context(own),
                }
                if not self._options.tls_verify:
                    named |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
                try:
                    if proxy:
                        pool = urllib3.ProxyManager(
                            proxy, proxy_headers=_proxy_headers(proxy), **named
                        )
                    else:
                        pool = urllib3.PoolManager(**named)
                except urllib3.exceptions.HTTPError as e:
                    raise InvalidInputError(
                        f"the environment names a proxy that cannot be used: {_reason(e)}"
                    ) from e
                pool.pool_classes_by_scheme = _pools(self._stopped, self._options.slowest)
                self._pools[proxy, own] = pool
            return pool

    def _context(self, own: bool) -> ssl.SSLContext:
        context = sockets.watching(
            ssl.create_default_context(), self._stopped, self._options.slowest
        )
        if not self._options.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for folder in self._folders:
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                stem, end = os.path.splitext(path)
                try:
                    if end == ".crt":
                        context.load_verify_locations(path)
                    elif end == ".cert" and own:
                        context.load_cert_chain(path, stem + ".key")
                except (ssl.SSLError, OSError) as e:
                    raise InvalidInputError(f"{path} cannot be used: {e}", path=path) from e
        return context


def _pools(stopped: threading.Event, slowest: int) -> dict[str, type[HTTPConnectionPool]]:
    """Pools of connections that do not wait any more once the work was stopped."""

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, connection
    from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

    def connect(made: connection.HTTPConnection) -> socket.socket:
        host, timeout = made.host.strip("[]"), made.timeout
        seconds = timeout if isinstance(timeout, int | float) else None
        try:
            return sockets.connect(host, made.port, seconds, stopped, slowest)
        except socket.gaierror as e:
            raise NameResolutionError(made.host, made, e) from e
        except TimeoutError as e:
            raise ConnectTimeoutError(made, f"no connection to {host} in time") from e
        except OSError as e:
            raise NewConnectionError(made, f"no connection to {host}: {e}") from e

    plain = type("Bound", (connection.HTTPConnection,), {"_new_conn": connect})
    secure = type("Bound", (connection.HTTPSConnection,), {"_new_conn": connect})
    return {
        "http": type("Bound", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("Bound", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL; None for none. Loopback has none."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bypassed = urllib.request.proxy_bypass_environment(host)  # type: ignore[attr-defined]
    if is_loopback(host) or bypassed:
        return None
    found = urllib.request.getproxies_environment()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_headers(proxy: str) -> dict[str, str]:
    import urllib3

    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return dict(urllib3.make_headers(proxy_basic_auth=pair))


def _cert_folders(host: str, options: RemoteOptions) -> list[str]:
    """containers-certs.d(5); a directory that was named is the only one."""
    if options.cert_dir is not None:
        if not os.path.isdir(options.cert_dir):
            raise NotFoundError(
                f"there is no directory {options.cert_dir} with certificates", path=options.cert_dir
            )
        return [options.cert_dir]
    home = os.path.join(os.path.expanduser("~"), ".config", "containers", "certs.d")
    found = [os.path.join(folder, host) for folder in (home, *CERTS)]
    return [folder for folder in found if os.path.isdir(folder)]


def _reason(error: BaseException) -> str:
    """The innermost thing that urllib3 says, without its objects."""
    seen = error
    for _ in range(8):
        inner = getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = seen.__cause__
        if inner is None or isinstance(inner, LayerstoreError):
            break
        seen = inner
    text = str(seen)
    return text.partition("): ")[2] or text or type(seen).__name__
